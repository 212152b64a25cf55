package p2p_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/tracker"
)

// A mortal is the tracker of a node that may die: it is not told of that.
type mortal struct {
	p2p.Tracker
	dead atomic.Bool
}

func (m *mortal) Announce(ctx context.Context, a tracker.Announce) (tracker.Peers, error) {
	if m.dead.Load() {
		return tracker.Peers{}, errors.New("the node is dead")
	}
	return m.Tracker.Announce(ctx, a)
}

// dies ends n as a crash does.
func (m *mortal) dies(n *node) {
	m.dead.Store(true)
	n.stop()
}

// TestDeparted: where the only holder of an object ends in good order nobody waits for it.
func TestDeparted(t *testing.T) {
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
		if err := m.Fetch(t.Context(), id, 0); err != nil || time.Since(start) > 100*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(start))
		}
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
		mortal := &mortal{Tracker: server}
		dead := newNode(t, "dead", mortal)
		dead.join(t, hung, true)
		time.Sleep(time.Second)
		if got := dead.holding.Count(); got != 4 {
			t.Fatalf("the node that is to die has %d pieces, want 4", got)
		}
		mortal.dies(dead)
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
		mortal := &mortal{Tracker: server}
		n := newNode(t, "a", mortal)
		n.join(t, &origin{}, true)
		n.filled(t, time.Second)
		time.Sleep(2 * time.Second) // until it has announced that
		mortal.dies(n)
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
		time.Sleep(1500 * time.Millisecond)
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
