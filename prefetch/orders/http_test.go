package orders

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// served returns a client of b, over HTTP.
func served(t *testing.T, b *Board) (*Client, *httptest.Server) {
	t.Helper()
	srv := httptest.NewServer(b.Handler())
	t.Cleanup(srv.Close)
	return NewClient(srv.Client(), srv.URL+"/"), srv
}

// TestClient: an order and reports of it go over HTTP, and errors keep their class.
func TestClient(t *testing.T) {
	c, _ := served(t, openBoard(t, t.TempDir()))
	ctx := t.Context()
	labels := map[string]string{PoolLabel: "gpu"}
	if _, err := c.Report(ctx, Report{Node: "a", Labels: labels}); err != nil {
		t.Fatal(err)
	}
	v, err := c.Place(ctx, request(1, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	w, err := c.Report(ctx, Report{Node: "a", Labels: labels, Wait: 30})
	if err != nil || len(w.Tasks) != 1 {
		t.Fatalf("%+v, %v", w, err)
	}
	if _, err := c.Report(ctx, Report{Node: "a", Labels: labels, Orders: []Progress{at(v, Ready)}}); err != nil {
		t.Fatal(err)
	}
	if v, err = c.View(ctx, v.ID); err != nil || v.State != Done || v.Nodes[0].Have != 100 {
		t.Errorf("%+v, %v", v, err)
	}
	if list, err := c.List(ctx); err != nil || len(list) != 1 || list[0].Nodes != nil {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := c.Cancel(ctx, v.ID); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"nothing", "../../etc", "a b"} {
		if _, err := c.View(ctx, id); !errors.Is(err, ErrUnknown) {
			t.Errorf("order %q: %v", id, err)
		}
	}
	if _, err := c.Place(ctx, Request{References: []string{"127.0.0.1:5000/qwen:v1"}, Ready: 1}); err == nil || !strings.Contains(err.Error(), "names no digest") {
		t.Errorf("a reference by its tag: %v", err)
	}
}

// TestDisconnected: a node whose connection breaks while its report is held is gone at once.
func TestDisconnected(t *testing.T) {
	b := openBoard(t, t.TempDir())
	c, _ := served(t, b)
	v := place(t, b, request(1, time.Minute))
	ctx, kill := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.Report(ctx, Report{Node: "a", Labels: map[string]string{PoolLabel: "gpu"}, Orders: []Progress{at(v, Fetching)}, Wait: 30})
	}()
	connected := func() bool {
		nodes := view(t, b, v.ID).Nodes
		return len(nodes) == 1 && nodes[0].Connected
	}
	until(t, connected)
	kill()
	<-ended
	until(t, func() bool { return !connected() })
}

// until waits for a condition.
func until(t *testing.T, ok func() bool) {
	t.Helper()
	for start := time.Now(); !ok(); time.Sleep(time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatal("not after a minute")
		}
	}
}

// TestNoBoard: what is no board is told from an order that is not there.
func TestNoBoard(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	c := NewClient(srv.Client(), "http://user:secret@"+strings.TrimPrefix(srv.URL, "http://"))
	_, err := c.View(t.Context(), "x")
	if !errors.Is(err, ErrNoBoard) || errors.Is(err, ErrUnknown) || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
	srv.Close()
	if _, err := c.View(t.Context(), "x"); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
}

// TestBodies: bodies that are wrong or too large are refused.
func TestBodies(t *testing.T) {
	_, srv := served(t, openBoard(t, t.TempDir()))
	large, err := json.Marshal(Report{Node: strings.Repeat("x", maxBody)})
	if err != nil {
		t.Fatal(err)
	}
	for body, want := range map[string]int{
		"":            http.StatusBadRequest,
		"{":           http.StatusBadRequest,
		`{"node":""}`: http.StatusBadRequest,
		string(large): http.StatusRequestEntityTooLarge,
	} {
		for _, path := range []string{OrdersPath, AgentsPath} {
			resp, err := srv.Client().Post(srv.URL+path, "application/json", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s with %.20q is answered %d, want %d", path, body, resp.StatusCode, want)
			}
		}
	}
}

// TestRefuses: what is out of bounds changes nothing.
func TestRefuses(t *testing.T) {
	b := openBoard(t, t.TempDir())
	for _, r := range []Request{
		{Ready: 1},
		{References: []string{"127.0.0.1:5000/qwen:v1"}, Ready: 1},
		{References: []string{"user:secret@127.0.0.1:5000/qwen:v1"}, Ready: 1},
		{References: []string{someRef}, Ready: -1},
		{References: []string{someRef}, Ready: 1, Deadline: -1},
		{References: []string{someRef}, Ready: 1, Deadline: 1e9},
		{References: []string{someRef}, Ready: 1, Pool: strings.Repeat("x", maxName+1)},
	} {
		if _, err := b.Place(t.Context(), r); err == nil {
			t.Errorf("%+v is placed", r)
		}
	}
	many := make(map[string]string)
	for i := range maxLabels + 1 {
		many[fmt.Sprint(i)] = ""
	}
	p := Progress{Order: "x", Run: 1, State: Fetching}
	for _, r := range []Report{
		{},
		{Node: strings.Repeat("x", maxName+1)},
		{Node: "a", Labels: many},
		{Node: "a", Wait: 1e6},
		{Node: "a", Orders: []Progress{p, p}},
		{Node: "a", Orders: []Progress{{State: "happy"}}},
		{Node: "a", Orders: []Progress{{State: Ready, Have: 1, Total: 2}}},
		{Node: "a", Orders: []Progress{{State: Fetching, Have: 2, Total: 1}}},
		{Node: "a", Orders: make([]Progress, maxOrders+1)},
	} {
		if _, err := b.Report(t.Context(), r); err == nil {
			t.Errorf("%+v is taken", r)
		}
	}
	if len(b.nodes) != 0 || len(b.orders) != 0 {
		t.Errorf("%d nodes and %d orders are there", len(b.nodes), len(b.orders))
	}
}

// FuzzReport: whatever a node tells, the board keeps within its bounds and answers about orders that it has.
func FuzzReport(f *testing.F) {
	f.Add([]byte(`{"node":"a","labels":{"pool":"gpu"},"orders":[{"order":"x","run":1,"state":"ready","haveBytes":1,"totalBytes":1}]}`))
	f.Add([]byte(`{"node":"a","waitSeconds":1e308}`))
	b, err := Open(f.TempDir(), Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	v, err := b.Place(f.Context(), request(1, time.Hour))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		clear(b.nodes)
		var r Report
		if json.Unmarshal(body, &r) != nil {
			return
		}
		r.Wait = min(r.Wait, 0)
		r.Node = r.Node[:min(1, len(r.Node))] // so that it is of few
		w, err := b.Report(t.Context(), r)
		if err != nil {
			if len(b.nodes) != 0 {
				t.Errorf("a report that was refused (%v) is kept", err)
			}
			return
		}
		if len(w.Tasks) > 1 || b.told != len(b.orders[v.ID].progress) || b.told > 256 {
			t.Errorf("%d tasks and %d progresses of one order", len(w.Tasks), b.told)
		}
		if _, err := b.View(v.ID); err != nil {
			t.Error(err)
		}
	})
}

// FuzzRequest: an order that is placed is there after a restart.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"references":["` + someRef + `"],"pool":"gpu","ready":2,"deadlineSeconds":60}`))
	f.Add([]byte(`{"references":["x@sha256:00"],"ready":-1}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var r Request
		if json.Unmarshal(body, &r) != nil || r.Ready == 0 {
			return
		}
		dir := t.TempDir()
		v, err := openBoard(t, dir).Place(t.Context(), r)
		if err != nil {
			return
		}
		if got := view(t, openBoard(t, dir), v.ID); got.ID != r.ID() || got.Need != r.Ready {
			t.Errorf("%+v becomes %+v", r, got.Order)
		}
	})
}

// FuzzOrder: what is read as an order could have been written as one.
func FuzzOrder(f *testing.F) {
	f.Add([]byte(`{"id":"x","references":["` + someRef + `"],"run":1,"need":1,"state":"active"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		o, err := parseOrder(text)
		if err == nil && (o.ID != o.Request.ID() || len(o.References) == 0) {
			t.Errorf("%q is read as %+v", text, o)
		}
	})
}
