package tracker_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p/tracker"
)

func newServer() *tracker.Server {
	return tracker.New(tracker.Options{Logger: slog.New(slog.DiscardHandler)})
}

// TestHTTP: what a Client says over a real connection is what the server hears, and back.
func TestHTTP(t *testing.T) {
	s := newServer()
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	remote := tracker.NewClient(srv.Client(), srv.URL+"/") // the last slash does not matter
	local := tracker.Local{Server: s}

	id := tracker.SwarmOf(piece.Object{Size: 9, PieceLength: piece.MinLength})
	announce := func(node string, have ...int) tracker.Announce {
		return tracker.Announce{Node: node, Addr: node + ":6881", Swarms: []tracker.Holding{{Swarm: id, Pieces: 20, Have: bits(20, have...)}}}
	}
	if _, err := local.Announce(t.Context(), announce("a", 0, 19)); err != nil {
		t.Fatal(err)
	}
	got, err := remote.Announce(t.Context(), announce("b", 7))
	if err != nil {
		t.Fatal(err)
	}
	want := tracker.Peers{
		Interval: tracker.Seconds(tracker.DefaultInterval),
		Swarms:   map[tracker.SwarmID][]tracker.Peer{id: {{Node: "a", Addr: "a:6881"}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("announced over HTTP: %+v, want %+v", got, want)
	}
	for _, r := range []tracker.LeaseRequest{
		{Node: "b", Swarm: id, Want: -1, Max: 2},
		{Node: "b", Swarm: id, Want: -1, Done: []int{1}, Failed: []int{2}},
		{Node: "b", Swarm: id, Want: 19, Max: 1},
		{Node: "b", Swarm: id, Want: 19, Unheld: true, Max: 1},
	} {
		over, err := remote.Lease(t.Context(), r)
		if err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
		direct, err := newTwin(t, announce("a", 0, 19), announce("b", 7), r)
		if err != nil {
			t.Fatal(err)
		}
		if over.First != direct.First || over.Count != direct.Count {
			t.Errorf("%+v over HTTP: %+v, directly %+v", r, over, direct)
		}
	}
	if _, err := remote.Lease(t.Context(), tracker.LeaseRequest{Node: "c", Swarm: id, Want: -1}); !errors.Is(err, tracker.ErrUnknown) {
		t.Errorf("lease of an unknown node: %v, want ErrUnknown", err)
	}
	if _, err := remote.Lease(t.Context(), tracker.LeaseRequest{Node: "b", Swarm: id, Want: 99}); err == nil || !strings.Contains(err.Error(), "piece 99 of 20") {
		t.Errorf("a wrong request: %v, want the tracker's words", err)
	}
	if _, err := remote.Announce(t.Context(), tracker.Announce{}); err == nil {
		t.Error("an announce without a name is accepted")
	}
	srv.Close()
	if _, err := remote.Announce(t.Context(), announce("b")); err == nil {
		t.Error("an announce to nobody is accepted")
	}
}

// newTwin asks a tracker of the same state without HTTP.
func newTwin(t *testing.T, a, b tracker.Announce, r tracker.LeaseRequest) (tracker.Lease, error) {
	l := tracker.Local{Server: newServer()}
	for _, a := range []tracker.Announce{a, b} {
		if _, err := l.Announce(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	return l.Lease(t.Context(), r)
}

func TestHTTPRefuses(t *testing.T) {
	for _, test := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", tracker.AnnouncePath, "", http.StatusMethodNotAllowed},
		{"PUT", tracker.LeasePath, "{}", http.StatusMethodNotAllowed},
		{"POST", "/", "{}", http.StatusNotFound},
		{"POST", tracker.AnnouncePath + "/", "{}", http.StatusNotFound},
		{"POST", tracker.AnnouncePath, "", http.StatusBadRequest},
		{"POST", tracker.AnnouncePath, "{}", http.StatusBadRequest},
		{"POST", tracker.AnnouncePath, `{"node":1}`, http.StatusBadRequest},
		{"POST", tracker.AnnouncePath, `{"node":"a","swarms":7}`, http.StatusBadRequest},
		{"POST", tracker.AnnouncePath, `{"node":"a","swarms":[{"swarm":"00","pieces":1}]}`, http.StatusBadRequest},
		{"POST", tracker.AnnouncePath, `{"node":"a","swarms":[{"swarm":"` + strings.Repeat("zz", 32) + `","pieces":1}]}`, http.StatusBadRequest},
		{"POST", tracker.AnnouncePath, `{"node":"a","swarms":[{"pieces":1,"have":"!"}]}`, http.StatusBadRequest},
		{"POST", tracker.AnnouncePath, `{"node":"a","swarms":[{"pieces":1}]}`, http.StatusOK},
		{"POST", tracker.LeasePath, `{"node":"a","swarm":"` + strings.Repeat("00", 32) + `","want":-1}`, http.StatusConflict},
		{"POST", tracker.LeasePath, `{"node":"a","want":"x"}`, http.StatusBadRequest},
		{"POST", tracker.LeasePath, `{"node":"a","done":[1.5]}`, http.StatusBadRequest},
	} {
		rec := httptest.NewRecorder()
		newServer().ServeHTTP(rec, httptest.NewRequest(test.method, test.path, strings.NewReader(test.body)))
		if rec.Code != test.status {
			t.Errorf("%s %s %.60s: status %d, want %d: %s", test.method, test.path, test.body, rec.Code, test.status, rec.Body)
		}
		if allow := rec.Header().Get("Allow"); (rec.Code == http.StatusMethodNotAllowed) != (allow == "POST") {
			t.Errorf("%s %s: Allow: %q", test.method, test.path, allow)
		}
	}
}

// trackers are in-memory trackers by host name; one that is nil does not answer.
type trackers map[string]http.Handler

func (ts trackers) RoundTrip(r *http.Request) (*http.Response, error) {
	h := ts[r.URL.Host]
	if h == nil {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec.Result(), nil
}

func announceOf(node string) tracker.Announce {
	return tracker.Announce{Node: node, Addr: node + ":1", Swarms: []tracker.Holding{{Pieces: 100}}}
}

func nextLease(node string) tracker.LeaseRequest {
	return tracker.LeaseRequest{Node: node, Want: -1, Max: 1}
}

func TestFailover(t *testing.T) {
	broken := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "broken", http.StatusInternalServerError) })
	for name, dead := range map[string]http.Handler{"silent": nil, "broken": broken} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				patient := tracker.Options{Interval: time.Hour, LeaseTTL: time.Hour, Logger: slog.New(slog.DiscardHandler)}
				first, second := tracker.New(patient), tracker.New(patient)
				ts := trackers{"first": first, "second": second}
				c := tracker.NewClient(&http.Client{Transport: ts}, "http://first", "http://second")
				lease := func(want int) {
					t.Helper()
					l, err := c.Lease(t.Context(), nextLease("a"))
					if err != nil || l.First != want || l.Count != 1 {
						t.Fatalf("leased %+v, %v; want piece %d", l, err, want)
					}
				}
				announce := func() {
					t.Helper()
					if _, err := c.Announce(t.Context(), announceOf("a")); err != nil {
						t.Fatal(err)
					}
				}
				announce()
				lease(0)
				lease(1)

				ts["first"] = dead
				lease(0) // the second has leased none yet
				start := time.Now()
				lease(1)
				if waited := time.Since(start); waited != 0 {
					t.Errorf("a lease waits %v for a tracker that is known to be dead", waited)
				}
				announce() // one that answers is enough

				ts["first"] = first
				lease(2)
				time.Sleep(time.Minute)
				announce()
				lease(2) // of the first again
				ts["first"], ts["second"] = dead, dead
				if _, err := c.Announce(t.Context(), announceOf("a")); err == nil {
					t.Error("nobody answered, but the announce is said to have been heard")
				}
				if l, err := c.Lease(t.Context(), nextLease("a")); err == nil {
					t.Errorf("nobody answered, but %+v is leased", l)
				}
				ts["first"] = first // all are tried, also those that rest
				announce()
				lease(3)
			})
		})
	}
}

// TestUnknownIsAnAnswer: a tracker that does not know the node is not passed over.
func TestUnknownIsAnAnswer(t *testing.T) {
	ts := trackers{"first": newServer(), "second": newServer()}
	if _, err := ts["second"].(*tracker.Server).Announce(announceOf("a")); err != nil {
		t.Fatal(err)
	}
	c := tracker.NewClient(&http.Client{Transport: ts}, "http://first", "http://second")
	if _, err := c.Lease(t.Context(), nextLease("a")); !errors.Is(err, tracker.ErrUnknown) {
		t.Errorf("%v, want ErrUnknown", err)
	}
}

// TestAnnounceToAll: peers come from all trackers, and so does the interval.
func TestAnnounceToAll(t *testing.T) {
	slow := newServer()
	quick := tracker.New(tracker.Options{Interval: time.Second, Logger: slog.New(slog.DiscardHandler)})
	for s, node := range map[*tracker.Server]string{slow: "b", quick: "c"} {
		if _, err := s.Announce(announceOf(node)); err != nil {
			t.Fatal(err)
		}
	}
	c := tracker.NewClient(&http.Client{Transport: trackers{"slow": slow, "quick": quick}}, "http://slow", "http://quick")
	p, err := c.Announce(t.Context(), announceOf("a"))
	if err != nil {
		t.Fatal(err)
	}
	if time.Duration(p.Interval) != time.Second {
		t.Errorf("interval %v, want the shorter one", time.Duration(p.Interval))
	}
	if peers := p.Swarms[tracker.SwarmID{}]; len(peers) != 2 {
		t.Errorf("peers %v, want both trackers'", peers)
	}
}

// TestCallerLeaves: a caller that gives up is answered, and does not count against the tracker.
func TestCallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newServer(), newServer()
		ts := trackers{"first": nil, "second": second}
		c := tracker.NewClient(&http.Client{Transport: ts}, "http://first", "http://second")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Lease(ctx, nextLease("a")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want context.DeadlineExceeded", err)
		}
		ts["first"] = first
		for _, s := range []*tracker.Server{first, second} {
			if _, err := s.Announce(announceOf("a")); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.Lease(t.Context(), nextLease("a")); err != nil {
			t.Fatal(err)
		}
		if l, err := second.Lease(nextLease("a")); err != nil || l.First != 0 {
			t.Errorf("the second tracker leases %+v, %v: the first one was passed over", l, err)
		}
	})
}

// TestNoSecrets: a password in a tracker's address is in no error.
func TestNoSecrets(t *testing.T) {
	const secret = "tr0ub4dor"
	status := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != secret {
			t.Errorf("the password %q is sent", password)
		}
		if r.URL.Path == tracker.LeasePath {
			io.WriteString(w, "no JSON")
			return
		}
		http.Error(w, "no", http.StatusForbidden)
	})
	failing := roundTrip(func(*http.Request) (*http.Response, error) { return nil, errors.New("no route") })
	for _, transport := range []http.RoundTripper{trackers{"host": status}, failing} {
		for _, url := range []string{"http://user:" + secret + "@host", "http://user:" + secret + "@host:port"} {
			c := tracker.NewClient(&http.Client{Transport: transport}, url)
			_, err := c.Announce(t.Context(), announceOf("a"))
			_, err2 := c.Lease(t.Context(), nextLease("a"))
			for _, err := range []error{err, err2} {
				if err == nil || strings.Contains(err.Error(), secret) {
					t.Errorf("%v: want an error without the password", err)
				}
			}
		}
	}
}
