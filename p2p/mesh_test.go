package p2p_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/p2ptest"
	"github.com/spate-project/spate/p2p/tracker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// These tests are of a mesh without peers: nodes, a tracker and an origin, in
// bubbles of their own time. What peers add is tested with real engines in p2p/torrent.

const size = 20*piece.MinLength + 4321

var (
	data = p2ptest.Bytes(size, 1)
	tree = p2ptest.Tree(data)
	id   = tree.Object().Digest
)

// An origin holds data and may be told to misbehave.
type origin struct {
	sent  atomic.Int64 // bytes asked for
	asked atomic.Int64 // requests

	mu     sync.Mutex
	before func(ctx context.Context, first int) error // what happens first, if anything
	change func(off int64, p []byte)                  // what becomes of the bytes
}

func (o *origin) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	o.asked.Add(1)
	o.mu.Lock()
	before, change := o.before, o.change
	o.mu.Unlock()
	if before != nil {
		if err := before(ctx, int(off/piece.MinLength)); err != nil {
			return nil, err
		}
	}
	o.sent.Add(n)
	p := bytes.Clone(data[off : off+n])
	if change != nil {
		change(off, p)
	}
	return io.NopCloser(bytes.NewReader(p)), nil
}

// fails makes the origin do before first; nil ends that.
func (o *origin) fails(before func(ctx context.Context, first int) error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.before = before
}

func (o *origin) copies() float64 { return float64(o.sent.Load()) / size }

// A node is a mesh that runs until the test ends or stop is called.
type node struct {
	*p2p.Mesh
	holding *p2ptest.Holding
	stop    func()
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newNode(t *testing.T, name string, tr p2p.Tracker) *node {
	m := p2p.New(p2p.Options{Node: name, Tracker: tr, Logger: quiet()})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v, want context.Canceled", err)
		}
	})
	t.Cleanup(stop)
	return &node{Mesh: m, holding: p2ptest.NewHolding(tree), stop: stop}
}

func (n *node) join(t *testing.T, o p2p.Origin, fill bool) {
	t.Helper()
	if err := n.Join(n.holding, p2p.JoinOptions{Origin: o, Fill: fill}); err != nil {
		t.Fatal(err)
	}
}

// put brings piece i into the holding, as a peer would.
func (n *node) put(t *testing.T, i int) {
	t.Helper()
	off, length := tree.Object().Span(i)
	v, err := tree.Verify(i, data[off:off+length])
	if err != nil {
		t.Fatal(err)
	}
	if err := n.holding.Put(v); err != nil {
		t.Fatal(err)
	}
}

// filled fails the test unless the holding is whole within d.
func (n *node) filled(t *testing.T, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := n.holding.WaitAll(ctx); err != nil {
		t.Fatalf("%d of %d pieces after %v: %v", n.holding.Count(), tree.Object().Pieces(), d, err)
	}
	if !bytes.Equal(n.holding.Bytes(), data) {
		t.Error("it is whole, but with other bytes")
	}
}

func newTracker() *tracker.Server { return tracker.New(tracker.Options{Logger: quiet()}) }

func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

func TestFillFromOrigin(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, n := &origin{}, newNode(t, "a", nil)
		n.join(t, o, true)
		n.filled(t, time.Second)
		if o.sent.Load() != size {
			t.Errorf("the origin sent %d bytes of %d", o.sent.Load(), size)
		}
		s, ok := n.Stats(id)
		if !ok || s.OriginBytes != size || s.OriginWrong != 0 {
			t.Errorf("stats %+v, %v", s, ok)
		}
	})
}

// TestShared: nodes that start together draw each piece once, also where some have parts already.
func TestShared(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, server := &origin{}, tracker.Local{Server: newTracker()}
		var nodes []*node
		for i := range 4 {
			n := newNode(t, fmt.Sprint("n", i), server)
			for k := i; k < 8; k += 4 { // pieces 0 to 7 are there
				n.put(t, k)
			}
			nodes = append(nodes, n)
		}
		for _, n := range nodes {
			n.join(t, o, true)
		}
		time.Sleep(5 * time.Second)
		if want := int64(size - 8*piece.MinLength); o.sent.Load() != want {
			t.Errorf("the origin sent %d bytes, want %d", o.sent.Load(), want)
		}
		have := make(map[int]bool)
		for _, n := range nodes {
			for i := range tree.Object().Pieces() {
				have[i] = have[i] || n.holding.Has(i)
			}
		}
		for i, has := range have {
			if !has {
				t.Errorf("nobody has piece %d", i)
			}
		}
	})
}

// TestHeldUnknown: what a node holds and the tracker does not know of is not drawn.
func TestHeldUnknown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, n := &origin{}, newNode(t, "a", nil)
		gate := make(chan struct{})
		o.fails(func(context.Context, int) error {
			<-gate
			return nil
		})
		n.join(t, o, true)
		synctest.Wait() // the first pieces are leased, the announce is out
		for i := 4; i < tree.Object().Pieces(); i++ {
			if i%3 != 0 {
				n.put(t, i)
			}
		}
		before := n.holding.Count()
		close(gate)
		n.filled(t, 5*time.Second)
		if drawn := o.sent.Load() / piece.MinLength; drawn > int64(tree.Object().Pieces()-before) {
			t.Errorf("%d pieces are drawn, where %d were missing", drawn, tree.Object().Pieces()-before)
		}
	})
}

func TestFetch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, n := &origin{}, newNode(t, "a", nil)
		n.join(t, o, false)
		if err := n.Fetch(t.Context(), id, 11); err != nil {
			t.Fatal(err)
		}
		if !n.holding.Has(11) {
			t.Fatal("Fetch returned nil but the piece is not there")
		}
		// A fetch that is served already asks nobody.
		asked := o.asked.Load()
		if err := n.Fetch(t.Context(), id, 11); err != nil || o.asked.Load() != asked {
			t.Errorf("fetched again: %v, with %d requests", err, o.asked.Load()-asked)
		}
		time.Sleep(time.Hour)
		if got := n.holding.Count(); got > 2 { // a lease is of two pieces
			t.Errorf("%d pieces came where one was read", got)
		}
		if err := n.Fetch(t.Context(), id, tree.Object().Pieces()-1); err != nil {
			t.Errorf("fetch the last piece: %v", err)
		}
		for _, i := range []int{-1, tree.Object().Pieces()} {
			if err := n.Fetch(t.Context(), id, i); err == nil {
				t.Errorf("there is no piece %d, but it is fetched", i)
			}
		}
		if err := n.Fetch(t.Context(), piece.Digest{}, 0); !errors.Is(err, piece.ErrNotHere) {
			t.Errorf("fetch of an object that is not in the mesh: %v, want piece.ErrNotHere", err)
		}
	})
}

// TestFetchOnce: however many read the same pieces, the origin sends each once.
func TestFetchOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, n := &origin{}, newNode(t, "a", nil)
		o.fails(func(context.Context, int) error {
			time.Sleep(100 * time.Millisecond)
			return nil
		})
		n.join(t, o, false)
		var readers sync.WaitGroup
		for i := range tree.Object().Pieces() {
			for range 3 {
				readers.Go(func() {
					if err := n.Fetch(t.Context(), id, i); err != nil {
						t.Errorf("piece %d: %v", i, err)
					}
				})
			}
		}
		readers.Wait()
		if o.copies() > 1 {
			t.Errorf("the origin sent %.2f copies to one node", o.copies())
		}
	})
}

// TestFetchBeforeRun: a reader is served also where nothing announces the node.
func TestFetchBeforeRun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := p2p.New(p2p.Options{Node: "a", Logger: quiet()})
		h := p2ptest.NewHolding(tree)
		if err := m.Join(h, p2p.JoinOptions{Origin: &origin{}}); err != nil {
			t.Fatal(err)
		}
		if err := m.Fetch(t.Context(), id, 3); err != nil || !h.Has(3) {
			t.Errorf("%v", err)
		}
	})
}

func TestFetchCancelled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, n := &origin{}, newNode(t, "a", nil)
		n.join(t, o, false)
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if err := n.Fetch(gone, id, 0); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want context.Canceled", err)
		}

		o.fails(func(ctx context.Context, _ int) error {
			<-ctx.Done()
			return ctx.Err()
		})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		err := n.Fetch(ctx, id, 0)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Errorf("%v after %v, want context.DeadlineExceeded after 3 s", err, time.Since(start))
		}
		for _, says := range []string{"piece 0", id.String()} {
			if !strings.Contains(fmt.Sprint(err), says) {
				t.Errorf("%q does not name %s", err, says)
			}
		}
		// What it had leased is free for others soon, not when the lease is over.
		o.fails(nil)
		start = time.Now()
		if err := n.Fetch(t.Context(), id, 0); err != nil || time.Since(start) > time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestLeave(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, n := &origin{}, newNode(t, "a", nil)
		o.fails(func(ctx context.Context, _ int) error {
			<-ctx.Done()
			return ctx.Err()
		})
		n.join(t, o, true)
		fetched := make(chan error)
		go func() { fetched <- n.Fetch(t.Context(), id, 9) }()
		time.Sleep(time.Second)
		n.Leave(id)
		n.Leave(id)
		if err := <-fetched; !errors.Is(err, piece.ErrNotHere) {
			t.Errorf("fetch of an object that leaves: %v, want piece.ErrNotHere", err)
		}
		if _, ok := n.Stats(id); ok {
			t.Error("there are stats of an object that left")
		}
		time.Sleep(time.Minute)
		if o.sent.Load() != 0 {
			t.Error("an object that left is drawn")
		}
		o.fails(nil)
		n.join(t, o, true)
		n.filled(t, 2*time.Second)
	})
}

func TestJoinErrors(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNode(t, "a", nil)
		if err := n.Join(n.holding, p2p.JoinOptions{}); err == nil {
			t.Error("an object joined without an origin")
		}
		n.join(t, &origin{}, false)
		if err := n.Join(n.holding, p2p.JoinOptions{Fill: true}); err != nil { // fills from the first origin
			t.Fatal(err)
		}
		n.filled(t, time.Second)

		other := tree.Object()
		other.Size, other.Root = piece.MinLength, piece.Root{1}
		otherTree, err := piece.NewTree(other, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Join(p2ptest.NewHolding(otherTree), p2p.JoinOptions{Origin: &origin{}}); err == nil {
			t.Error("a digest joined with two trees")
		}
		if err := n.Join(p2ptest.NewHolding(p2ptest.Tree(nil)), p2p.JoinOptions{}); err != nil {
			t.Errorf("an object of no bytes: %v", err)
		}
	})
}

// TestOriginFails: failures of the origin as a whole are waited out.
func TestOriginFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		down := errors.New("registry is down")
		o, n := &origin{}, newNode(t, "a", nil)
		o.fails(func(context.Context, int) error { return down })
		n.join(t, o, true)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := n.Fetch(ctx, id, 5); !errors.Is(err, down) {
			t.Errorf("fetch from an origin that is down: %v, want its error", err)
		}
		if asked := o.asked.Load(); asked > 40 {
			t.Errorf("a broken origin was asked %d times in 20 s", asked)
		}
		o.fails(nil)
		n.filled(t, 31*time.Second)
	})
}

// TestOriginCutsShort: an answer that ends early gives what it gave, and the rest is asked for again.
func TestOriginCutsShort(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNode(t, "a", nil)
		short := p2p.OriginFunc(func(_ context.Context, off, length int64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(data[off : off+length*2/3])), nil // of two pieces, the first one
		})
		n.join(t, short, true)
		time.Sleep(time.Hour)
		if got := n.holding.Count(); got != tree.Object().Pieces()/2 {
			t.Errorf("%d of %d pieces", got, tree.Object().Pieces())
		}
	})
}

// TestOriginSilent: an origin that answers with nothing is given up, and asked again.
func TestOriginSilent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, n := &origin{}, newNode(t, "a", nil)
		first := make(map[int]bool)
		var mu sync.Mutex
		o.fails(func(ctx context.Context, at int) error {
			mu.Lock()
			hang := !first[at]
			first[at] = true
			mu.Unlock()
			if hang {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		n.join(t, o, false)
		start := time.Now()
		if err := n.Fetch(t.Context(), id, 4); err != nil || time.Since(start) > 20*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		o.fails(func(ctx context.Context, _ int) error {
			<-ctx.Done()
			return ctx.Err()
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := n.Fetch(ctx, id, 8); err == nil || !strings.Contains(err.Error(), "sent nothing for 15s") {
			t.Errorf("%v: want to be told that the origin is silent", err)
		}
	})
}

// TestOriginSlow: an origin that sends a little all the time is not silent.
func TestOriginSlow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNode(t, "a", nil)
		slow := p2p.OriginFunc(func(_ context.Context, off, length int64) (io.ReadCloser, error) {
			return io.NopCloser(&drip{data[off : off+length]}), nil
		})
		n.join(t, slow, false)
		if err := n.Fetch(t.Context(), id, 4); err != nil {
			t.Error(err)
		}
	})
}

// A drip gives 16 KiB every 5 seconds.
type drip struct{ rest []byte }

func (d *drip) Read(p []byte) (int, error) {
	if len(d.rest) == 0 {
		return 0, io.EOF
	}
	time.Sleep(5 * time.Second)
	n := copy(p[:min(len(p), 16<<10)], d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

// TestOriginWrong: one piece that the origin has wrong keeps back neither the
// others nor, once it is right again, itself.
func TestOriginWrong(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const bad = 6
		o, n := &origin{}, newNode(t, "a", nil)
		o.change = func(off int64, p []byte) {
			if at := bad*piece.MinLength + 77 - off; at >= 0 && at < int64(len(p)) {
				p[at] ^= 1
			}
		}
		n.join(t, o, true)
		time.Sleep(5 * time.Second)
		if got := n.holding.Count(); got != tree.Object().Pieces()-1 || n.holding.Has(bad) {
			t.Errorf("%d pieces of %d, want all but the wrong one", got, tree.Object().Pieces())
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := n.Fetch(ctx, id, bad)
		w, ok := errors.AsType[*piece.WrongBytesError](err)
		if !ok || w.Piece != bad || w.Object != id || w.From != "the origin" {
			t.Errorf("%v, want a *piece.WrongBytesError that blames the origin", err)
		}
		if s, _ := n.Stats(id); s.OriginWrong < 2 {
			t.Errorf("%d wrong pieces are counted", s.OriginWrong)
		}
		o.mu.Lock()
		o.change = nil
		o.mu.Unlock()
		n.filled(t, 31*time.Second)
	})
}

// TestDeadNode: what a node that is gone had leased, and what it alone held, is drawn by the others.
func TestDeadNode(t *testing.T) {
	bubble(t, func(t *testing.T) {
		server := tracker.Local{Server: newTracker()}
		hung := &origin{}
		hung.fails(func(ctx context.Context, first int) error {
			if first >= 4 {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		dead := newNode(t, "dead", server)
		dead.join(t, hung, true)
		time.Sleep(time.Second)
		if got := dead.holding.Count(); got != 4 {
			t.Fatalf("the node that is to die has %d pieces, want 4", got)
		}
		dead.stop()
		n := newNode(t, "a", server)
		n.join(t, &origin{}, true)
		n.filled(t, time.Minute)
	})
}

// TestGivenBack: what one node cannot draw another draws at once.
func TestGivenBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		server := tracker.Local{Server: newTracker()}
		down := &origin{}
		down.fails(func(context.Context, int) error { return errors.New("no route to the registry") })
		cut, n := newNode(t, "cut", server), newNode(t, "a", server)
		cut.join(t, down, true)
		time.Sleep(time.Second)
		n.join(t, &origin{}, true)
		n.filled(t, 2*time.Second)
	})
}

// TestHoldersGone: a reader is served soon although the tracker still believes dead nodes to hold the piece.
func TestHoldersGone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		server := tracker.Local{Server: newTracker()}
		n := newNode(t, "a", server)
		n.join(t, &origin{}, true)
		n.filled(t, time.Second)
		time.Sleep(2 * time.Second) // until it has announced that
		n.stop()
		m := newNode(t, "b", server)
		m.join(t, &origin{}, false)
		start := time.Now()
		if err := m.Fetch(t.Context(), id, 0); err != nil || time.Since(start) > 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// TestLiar: a node that is said to hold everything, and gives nothing, cannot starve a fill.
func TestLiar(t *testing.T) {
	bubble(t, func(t *testing.T) {
		server := newTracker()
		have := tracker.NewBitmap(tree.Object().Pieces())
		for i := range tree.Object().Pieces() {
			have.Set(i)
		}
		ctx, cancel := context.WithCancel(t.Context())
		lied := make(chan struct{})
		t.Cleanup(func() {
			cancel()
			<-lied
		})
		go func() {
			defer close(lied)
			for ctx.Err() == nil {
				_, err := server.Announce(tracker.Announce{Node: "liar", Addr: "127.0.0.1:1", Swarms: []tracker.Holding{
					{Swarm: tracker.SwarmOf(tree.Object()), Pieces: tree.Object().Pieces(), Have: have},
				}})
				if err != nil {
					t.Error(err)
				}
				time.Sleep(time.Second)
			}
		}()
		synctest.Wait() // until he has lied for the first time
		o := &origin{}
		var nodes []*node
		for i := range 3 {
			n := newNode(t, fmt.Sprint("n", i), tracker.Local{Server: server})
			n.join(t, o, true)
			nodes = append(nodes, n)
		}
		time.Sleep(5 * time.Second)
		if o.sent.Load() != 0 {
			t.Error("the tracker's word counts for nothing")
		}
		start := time.Now()
		if err := nodes[0].Fetch(t.Context(), id, 17); err != nil || time.Since(start) > 3*time.Second {
			t.Errorf("a reader: %v after %v", err, time.Since(start))
		}
		for _, n := range nodes {
			n.filled(t, time.Minute)
		}
	})
}

// trackerFunc is a tracker that may be exchanged, or fail.
type trackerFunc func() (p2p.Tracker, error)

func (f trackerFunc) Announce(ctx context.Context, a tracker.Announce) (tracker.Peers, error) {
	t, err := f()
	if err != nil {
		return tracker.Peers{}, err
	}
	return t.Announce(ctx, a)
}

func (f trackerFunc) Lease(ctx context.Context, r tracker.LeaseRequest) (tracker.Lease, error) {
	t, err := f()
	if err != nil {
		return tracker.Lease{}, err
	}
	return t.Lease(ctx, r)
}

// TestNoTracker: without a tracker readers are served at once, and a fill comes on after a while.
func TestNoTracker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, n := &origin{}, newNode(t, "a", trackerFunc(func() (p2p.Tracker, error) { return nil, errors.New("no tracker") }))
		n.join(t, o, true)
		if err := n.Fetch(t.Context(), id, 3); err != nil {
			t.Error(err)
		}
		n.filled(t, time.Minute)
		if o.copies() != 1 {
			t.Errorf("the origin sent %.2f copies", o.copies())
		}
	})
}

// TestTrackerRestarts: a tracker that has forgotten everything is told again, and no byte is drawn twice.
func TestTrackerRestarts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var current atomic.Pointer[tracker.Server]
		current.Store(newTracker())
		tr := trackerFunc(func() (p2p.Tracker, error) { return tracker.Local{Server: current.Load()}, nil })
		o := &origin{}
		o.fails(func(context.Context, int) error {
			time.Sleep(100 * time.Millisecond)
			return nil
		})
		n := newNode(t, "a", tr)
		n.join(t, o, true)
		for range 4 {
			time.Sleep(130 * time.Millisecond)
			current.Store(newTracker())
		}
		n.filled(t, 5*time.Second)
		// What was under way when the tracker forgot it may be drawn once more.
		if o.copies() > 1.5 {
			t.Errorf("the origin sent %.2f copies", o.copies())
		}
	})
}

// TestWrongLease: a tracker that leases what does not exist does no harm.
func TestWrongLease(t *testing.T) {
	for _, l := range []tracker.Lease{
		{First: 0, Count: tree.Object().Pieces() + 1}, {First: -1, Count: 1}, {First: 1, Count: -1},
		{First: 1<<63 - 1, Count: 2}, {First: 2, Count: 1<<63 - 1}, {First: 0, Count: 1}, {First: 0, Count: 2},
	} {
		bubble(t, func(t *testing.T) {
			n := newNode(t, "a", leaser{tracker.Local{Server: newTracker()}, l})
			n.join(t, &origin{}, true)
			if err := n.Fetch(t.Context(), id, 3); err != nil {
				t.Error(err)
			}
			n.filled(t, time.Minute)
		})
	}
}

// A leaser is a tracker that always gives the same lease.
type leaser struct {
	tracker.Local
	lease tracker.Lease
}

func (l leaser) Lease(context.Context, tracker.LeaseRequest) (tracker.Lease, error) {
	return l.lease, nil
}

// A full holding has no room while full is set.
type full struct {
	*p2ptest.Holding
	full atomic.Bool
}

func (f *full) Put(v piece.Verified) error {
	if f.full.Load() {
		return fmt.Errorf("write: %w", syscall.ENOSPC)
	}
	return f.Holding.Put(v)
}

// TestFullDisk: a full disk is told to the reader at once, does not use up the
// origin, keeps no piece from other nodes, and is forgotten when there is room.
func TestFullDisk(t *testing.T) {
	bubble(t, func(t *testing.T) {
		server := tracker.Local{Server: newTracker()}
		n, o := newNode(t, "a", server), &origin{}
		h := &full{Holding: n.holding}
		h.full.Store(true)
		if err := n.Join(h, p2p.JoinOptions{Origin: o, Fill: true}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := n.Fetch(t.Context(), id, 3); !errors.Is(err, syscall.ENOSPC) || time.Since(start) > time.Second {
			t.Errorf("%v after %v, want ENOSPC at once", err, time.Since(start))
		}
		other := newNode(t, "b", server)
		other.join(t, &origin{}, true)
		other.filled(t, 3*time.Second)
		other.stop()
		time.Sleep(10 * time.Minute)
		if o.copies() > 3 {
			t.Errorf("%.1f copies were drawn in vain in ten minutes", o.copies())
		}
		h.full.Store(false)
		n.filled(t, time.Minute)
	})
}

// TestHoldingFails: where the holding itself is closed, waiting is over.
func TestHoldingFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNode(t, "a", trackerFunc(func() (p2p.Tracker, error) { return tracker.Local{Server: newTracker()}, nil }))
		if err := n.Join(shut{n.holding}, p2p.JoinOptions{Origin: &origin{}}); err != nil {
			t.Fatal(err)
		}
		if err := n.Fetch(t.Context(), id, 0); !errors.Is(err, errShut) {
			t.Errorf("%v, want the holding's error", err)
		}
	})
}

var errShut = errors.New("the holding is closed")

// shut is a holding that was closed.
type shut struct{ *p2ptest.Holding }

func (shut) Put(piece.Verified) error        { return errShut }
func (shut) Wait(context.Context, int) error { return errShut }
