package orders

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const someRef = "127.0.0.1:5000/qwen@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func request(ready int, deadline time.Duration) Request {
	return Request{References: []string{someRef}, Pool: "gpu", Ready: ready, Deadline: deadline.Seconds()}
}

func openBoard(t *testing.T, dir string) *Board {
	t.Helper()
	b, err := Open(dir, Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func place(t *testing.T, b *Board, r Request) View {
	t.Helper()
	v, err := b.Place(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func view(t *testing.T, b *Board, id string) View {
	t.Helper()
	v, err := b.View(id)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// report reports once as a node of the pool gpu, and returns the orders that it is given.
func report(t *testing.T, b *Board, node string, told ...Progress) Work {
	t.Helper()
	w, err := b.Report(t.Context(), Report{Node: node, Labels: map[string]string{PoolLabel: "gpu"}, Orders: told})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// at is the progress of a node with all of v, or with a part of it.
func at(v View, s Standing) Progress {
	p := Progress{Order: v.ID, Run: v.Run, State: s, Have: 100, Total: 100}
	if s != Ready {
		p.Have = 40
	}
	return p
}

// TestReady: an order for all that are connected is done when all of them hold it,
// is then not given again to those that do, and is begun anew when it is placed anew.
func TestReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBoard(t, t.TempDir())
		time.Sleep(settling)
		for _, node := range []string{"a", "b"} {
			if w := report(t, b, node); len(w.Tasks) != 0 {
				t.Fatalf("%+v for a node without orders", w)
			}
		}
		if _, err := b.Report(t.Context(), Report{Node: "other", Labels: map[string]string{PoolLabel: "cpu"}}); err != nil {
			t.Fatal(err)
		}
		v := place(t, b, request(0, time.Minute))
		if v.Need != 2 || fmt.Sprint(v.Members) != "[a b]" || v.State != Active || v.Run != 1 {
			t.Fatalf("%+v", v)
		}
		if again := place(t, b, request(0, time.Minute)); again.ID != v.ID || again.Run != 1 {
			t.Errorf("the same order placed again is %+v", again.Order)
		}
		w := report(t, b, "a")
		if len(w.Tasks) != 1 || w.Tasks[0].Order != v.ID || w.Tasks[0].References[0] != someRef {
			t.Fatalf("the work is %+v", w)
		}
		if w, err := b.Report(t.Context(), Report{Node: "other", Labels: map[string]string{PoolLabel: "cpu"}}); err != nil || len(w.Tasks) != 0 {
			t.Errorf("a node of another pool is given %+v, %v", w, err)
		}
		report(t, b, "a", at(v, Ready))
		if v := view(t, b, v.ID); v.State != Active || v.Holding != 1 {
			t.Errorf("one of two is ready: %s, %d", v.State, v.Holding)
		}
		if w := report(t, b, "a", at(v, Ready)); len(w.Tasks) != 1 {
			t.Error("a node lets go of what it holds before enough do")
		}
		report(t, b, "b", at(v, Ready))
		if v := view(t, b, v.ID); v.State != Done || v.Holding != 2 {
			t.Errorf("both are ready: %s, %d", v.State, v.Holding)
		}
		if w := report(t, b, "a", at(v, Ready)); len(w.Tasks) != 0 {
			t.Errorf("a node that holds what is done is given %+v", w)
		}
		if w := report(t, b, "late"); len(w.Tasks) != 1 {
			t.Error("a node that comes before the end is given nothing")
		}
		if v := place(t, b, request(0, time.Minute)); v.Run != 2 || v.Holding != 0 || v.State != Active {
			t.Errorf("placed anew: %+v", v)
		}
		if w := report(t, b, "a"); len(w.Tasks) != 1 || w.Tasks[0].Run != 2 {
			t.Errorf("the new run gives %+v", w)
		}
	})
}

// TestGone: a node that has gone holds nothing, and is named.
func TestGone(t *testing.T) {
	for _, tt := range []struct {
		ready int
		want  State
	}{{2, Done}, {3, Late}} {
		synctest.Test(t, func(t *testing.T) {
			b := openBoard(t, t.TempDir())
			for _, node := range []string{"a", "b", "c"} {
				report(t, b, node)
			}
			v := place(t, b, request(tt.ready, 30*time.Second))
			// c held everything, and was killed.
			ctx, kill := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, kill)
			if _, err := b.Report(ctx, Report{Node: "c", Labels: map[string]string{PoolLabel: "gpu"}, Orders: []Progress{at(v, Ready)}, Wait: 10}); err != nil {
				t.Fatal(err)
			}
			report(t, b, "a", at(v, Ready))
			if v := view(t, b, v.ID); v.State != Active || v.Holding != 1 {
				t.Fatalf("%s with %d nodes", v.State, v.Holding)
			}
			for range 31 {
				report(t, b, "a", at(v, Ready))
				report(t, b, "b", at(v, Ready))
				time.Sleep(time.Second)
			}
			got := view(t, b, v.ID)
			if got.State != tt.want {
				t.Errorf("with %d nodes to be ready the order is %s, want %s", tt.ready, got.State, tt.want)
			}
			if c := got.Nodes[2]; c.Node != "c" || c.Connected || !got.Nodes[0].Connected {
				t.Errorf("the nodes are %+v", got.Nodes)
			}
			if w := report(t, b, "b", at(v, Ready)); len(w.Tasks) != 0 {
				t.Errorf("an order that has ended is given as %+v", w)
			}
		})
	}
}

// TestSilent: a node that tells nothing for a while is not connected.
func TestSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBoard(t, t.TempDir())
		report(t, b, "a")
		v := place(t, b, request(1, time.Minute))
		time.Sleep(grace - time.Second)
		if !view(t, b, v.ID).Nodes[0].Connected {
			t.Error("a node is gone too soon")
		}
		time.Sleep(time.Second)
		if view(t, b, v.ID).Nodes[0].Connected {
			t.Error("a silent node is still connected")
		}
		if _, err := b.Place(t.Context(), Request{References: []string{someRef}}); !errors.Is(err, ErrNoNodes) {
			t.Errorf("an order for nobody: %v", err)
		}
	})
}

// TestBegunAnew: a node that tells nothing of an order any more does not hold what it held.
func TestBegunAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBoard(t, t.TempDir())
		v := place(t, b, request(2, time.Minute))
		report(t, b, "a", at(v, Ready))
		if w := report(t, b, "a"); len(w.Tasks) != 1 {
			t.Errorf("a restarted node is given %+v", w)
		}
		report(t, b, "b", at(v, Ready))
		if v := view(t, b, v.ID); v.State != Active || v.Holding != 1 || v.Nodes[0].State != Waiting {
			t.Errorf("%s with %d nodes: %+v", v.State, v.Holding, v.Nodes)
		}
	})
}

// TestDenied: refusals end an order when too few nodes are left, and only then.
func TestDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBoard(t, t.TempDir())
		for _, node := range []string{"a", "b", "c"} {
			report(t, b, node)
		}
		v := place(t, b, request(2, time.Minute))
		denied := Progress{Order: v.ID, Run: 1, State: Denied, ETA: -1, Bound: -1, Error: "no signature"}
		report(t, b, "a", denied)
		if v := view(t, b, v.ID); v.State != Active {
			t.Errorf("with two nodes left it is %s", v.State)
		}
		report(t, b, "b", denied)
		v = view(t, b, v.ID)
		if v.State != Refused || v.Nodes[1].Error != "no signature" {
			t.Errorf("with one node left it is %s, %+v", v.State, v.Nodes)
		}
	})
}

// TestRestart: an order is there again as it was, and what is not whole on disk is not.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		b := openBoard(t, dir)
		report(t, b, "a")
		v := place(t, b, request(1, time.Hour))
		other := place(t, b, request(2, time.Hour))
		for name, text := range map[string]string{
			"new-1": `{"id":"`, "0123456789abcdef.json": `{"id":"0123456789abcdef"}`, "x.json": "{", v.ID[:15] + "g.json": mustRead(t, dir, v.ID),
		} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		b = openBoard(t, dir)
		if list := b.List(); len(list) != 2 {
			t.Errorf("%d orders are there, want 2", len(list))
		}
		if files, err := os.ReadDir(dir); err != nil || len(files) != 2 {
			t.Errorf("the directory holds %v, %v", files, err)
		}
		got := view(t, b, v.ID)
		if got.State != Active || !got.Created.Equal(v.Created) || got.Nodes[0].Node != "a" || got.Nodes[0].Connected {
			t.Errorf("after a restart the order is %+v", got)
		}
		report(t, b, "a", at(v, Ready))
		if _, err := b.Cancel(other.ID); err != nil {
			t.Fatal(err)
		}
		b = openBoard(t, dir)
		if got := view(t, b, v.ID).State; got != Done {
			t.Errorf("what was done is %s after a restart", got)
		}
		if got := view(t, b, other.ID).State; got != Cancelled {
			t.Errorf("what was cancelled is %s after a restart", got)
		}
	})
}

func mustRead(t *testing.T, dir, id string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, id+orderSuffix))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestHeld: a report is answered when there is something to say, and not before.
func TestHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBoard(t, t.TempDir())
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- b.Run(ctx) }()
		type answer struct {
			Work
			err error
		}
		answers := make(chan answer, 1)
		hold := func(told ...Progress) {
			go func() {
				w, err := b.Report(t.Context(), Report{Node: "a", Labels: map[string]string{PoolLabel: "gpu"}, Orders: told, Wait: 20})
				answers <- answer{w, err}
			}()
			synctest.Wait()
		}
		answered := func(what string) Work {
			t.Helper()
			synctest.Wait()
			select {
			case got := <-answers:
				if got.err != nil {
					t.Fatalf("%s: %v", what, got.err)
				}
				return got.Work
			default:
				t.Fatalf("%s: the report is still held", what)
			}
			return Work{}
		}
		hold()
		v := place(t, b, request(1, time.Minute))
		if w := answered("an order is placed"); len(w.Tasks) != 1 {
			t.Errorf("%+v", w)
		}
		hold(at(v, Fetching))
		if _, err := b.Cancel(v.ID); err != nil {
			t.Fatal(err)
		}
		if w := answered("it is cancelled"); len(w.Tasks) != 0 {
			t.Errorf("%+v", w)
		}
		v = place(t, b, request(1, 10*time.Second))
		hold(at(v, Fetching))
		time.Sleep(11 * time.Second)
		if w := answered("its deadline passes"); len(w.Tasks) != 0 {
			t.Errorf("%+v", w)
		}
		hold()
		report(t, b, "a")
		answered("the node reports again")
		hold()
		time.Sleep(20 * time.Second)
		answered("it has waited for long enough")
		hold()
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the board ends with %v", err)
		}
		if got := <-answers; !errors.Is(got.err, errEnding) {
			t.Errorf("a board that ends answers %v", got.err)
		}
	})
}

// TestBounds: a board that is full takes no more before something has ended, and forgets what is old.
func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBoard(t, t.TempDir())
		for i := range maxOrders {
			place(t, b, request(i+1, time.Hour))
		}
		if _, err := b.Place(t.Context(), request(maxOrders+1, time.Hour)); !errors.Is(err, errBusy) {
			t.Errorf("one order too many: %v", err)
		}
		if _, err := b.Cancel(request(7, time.Hour).ID()); err != nil {
			t.Fatal(err)
		}
		place(t, b, request(maxOrders+1, time.Hour))
		if _, err := b.View(request(7, time.Hour).ID()); !errors.Is(err, ErrUnknown) {
			t.Errorf("the one that made room: %v", err)
		}
		for i := range maxNodes {
			report(t, b, fmt.Sprint(i))
		}
		over := Report{Node: "one more"}
		if _, err := b.Report(t.Context(), over); !errors.Is(err, errBusy) {
			t.Errorf("one node too many: %v", err)
		}
		time.Sleep(grace)
		if _, err := b.Report(t.Context(), over); err != nil {
			t.Errorf("a node in place of one that is silent: %v", err)
		}
		time.Sleep(keeping + 2*time.Hour)
		b.sweep()
		if len(b.List()) != 0 || len(b.nodes) != 0 || b.told != 0 {
			t.Errorf("a day later there are %d orders, %d nodes and %d progresses", len(b.List()), len(b.nodes), b.told)
		}
	})
}
