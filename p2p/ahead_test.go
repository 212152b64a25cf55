package p2p_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/tracker"
)

// is fails the test unless the holding has those pieces and no others.
func (n *node) is(t *testing.T, pieces ...int) {
	t.Helper()
	for _, i := range pieces {
		if !n.holding.Has(i) {
			t.Errorf("piece %d is not here", i)
		}
	}
	if n.holding.Count() != len(pieces) {
		t.Errorf("%d pieces are here, want %v", n.holding.Count(), pieces)
	}
}

// TestAhead: what a reader is on its way to comes, and nothing else, once, and before the fill of another object.
func TestAhead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, n := &origin{}, newNode(t, "a", nil)
		n.join(t, o, false)
		n.Ahead(id, 3, 7)
		n.Ahead(id, 7, 8)
		n.Ahead(id, 15, 99)
		n.Ahead(id, -4, 1)
		n.Ahead(id, 9, 9)
		time.Sleep(time.Minute)
		n.is(t, 0, 3, 4, 5, 6, 7, 15, 16, 17, 18, 19, 20)
		if want := float64(n.holding.Count()) / float64(tree.Object().Pieces()); o.copies() > want {
			t.Errorf("the origin sent %.2f copies, want %.2f", o.copies(), want)
		}
	})
}

// TestAheadShared: nodes on the same way draw each piece once between them, and not one of them all.
func TestAheadShared(t *testing.T) {
	bubble(t, func(t *testing.T) {
		tr, o := tracker.Local{Server: newTracker()}, &origin{}
		o.fails(func(context.Context, int) error {
			time.Sleep(200 * time.Millisecond)
			return nil
		})
		a, b := newNode(t, "a", tr), newNode(t, "b", tr)
		for _, n := range []*node{a, b} {
			n.join(t, o, false)
			n.Ahead(id, 0, 12)
		}
		time.Sleep(time.Minute)
		if a.holding.Count()+b.holding.Count() != 12 || a.holding.Count() == 0 || b.holding.Count() == 0 {
			t.Errorf("of 12 pieces one drew %d, the other %d", a.holding.Count(), b.holding.Count())
		}
	})
}

// TestAheadGoesOn: pieces come although the reader begins with others, while
// the origin is away at first, and until the object leaves.
func TestAheadGoesOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, n := &origin{}, newNode(t, "a", nil)
		n.join(t, o, false)
		o.fails(func(context.Context, int) error { return errors.New("the registry is down") })
		n.Ahead(id, 3, 5)
		time.Sleep(time.Minute)
		n.is(t)
		o.fails(nil)
		time.Sleep(time.Minute)
		n.is(t, 3, 4)
		n.Leave(id)
		n.Ahead(id, 8, 12)
		time.Sleep(time.Minute)
		n.is(t, 3, 4)
	})
}

// TestAheadOfAFill: where everything comes anyway, nothing is fetched twice.
func TestAheadOfAFill(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, n := &origin{}, newNode(t, "a", nil)
		n.join(t, o, false)
		n.Ahead(id, 12, 18)
		synctest.Wait()
		n.join(t, o, true)
		n.Ahead(id, 2, 5)
		n.filled(t, time.Minute)
		if o.copies() > 1 {
			t.Errorf("the origin sent %.2f copies", o.copies())
		}
	})
}

// TestAheadUnderLimit: the limit of readers holds for what comes ahead of them, that of fills does not.
func TestAheadUnderLimit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := startNode(t, p2p.Options{Node: "a", Logger: quiet()})
		n.SetLimits(1, 0)
		n.join(t, &origin{}, false)
		n.Ahead(id, 0, 8)
		time.Sleep(time.Second)
		n.is(t, 0, 1, 2, 3, 4, 5, 6, 7)
		n.SetLimits(0, pieceRate)
		n.Ahead(id, 8, 20)
		time.Sleep(time.Second)
		n.is(t, 0, 1, 2, 3, 4, 5, 6, 7, 8)
	})
}

// TestFetchesInARow: of readers that wait for pieces in a row only the first
// demands one, the others' come as what is ahead of it; and none waits for a
// reader before it whose piece does not come.
func TestFetchesInARow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		tr := &asked{Local: tracker.Local{Server: newTracker()}}
		o, n := &origin{}, newNode(t, "a", tr)
		o.fails(func(ctx context.Context, first int) error {
			if first == 4 {
				<-ctx.Done()
			}
			time.Sleep(100 * time.Millisecond)
			return ctx.Err()
		})
		n.join(t, o, false)
		stuck, cancel := context.WithCancel(t.Context())
		var readers sync.WaitGroup
		for i := 4; i < 16; i++ {
			readers.Go(func() {
				ctx := t.Context()
				if i == 4 {
					ctx = stuck
				}
				if err := n.Fetch(ctx, id, i); err != nil && i > 4 {
					t.Errorf("piece %d: %v", i, err)
				}
			})
			synctest.Wait()
		}
		time.Sleep(time.Second)
		tr.mu.Lock()
		if demanded := slices.Compact(slices.Sorted(slices.Values(tr.demanded))); !slices.Equal(demanded, []int{4}) {
			t.Errorf("pieces %v are demanded", demanded)
		}
		tr.mu.Unlock()
		time.Sleep(time.Minute)
		n.is(t, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
		cancel()
		readers.Wait()
	})
}

// An asked tracker writes down which pieces are demanded of it.
type asked struct {
	tracker.Local
	mu       sync.Mutex
	demanded []int
}

func (a *asked) Lease(ctx context.Context, r tracker.LeaseRequest) (tracker.Lease, error) {
	if r.Want >= 0 {
		a.mu.Lock()
		a.demanded = append(a.demanded, r.Want)
		a.mu.Unlock()
	}
	return a.Local.Lease(ctx, r)
}

// TestAheadOfALoneReader: where nobody else asks, leases are large enough for an origin that is far away.
func TestAheadOfALoneReader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, n := &origin{}, newNode(t, "a", nil)
		o.fails(func(context.Context, int) error {
			time.Sleep(100 * time.Millisecond)
			return nil
		})
		n.join(t, o, false)
		n.Ahead(id, 0, 20)
		time.Sleep(350 * time.Millisecond)
		if got := n.holding.Count(); got <= 10 {
			t.Errorf("%d pieces came in the time of three requests", got)
		}
	})
}
