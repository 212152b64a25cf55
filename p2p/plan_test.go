package p2p_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/tracker"
)

// aSecond makes each request to the origin take one.
func aSecond(context.Context, int) error {
	time.Sleep(time.Second)
	return nil
}

// TestUnfill: a fill that ends brings no more than what was asked for already;
// readers go on, and so does the fill once it is asked for again.
func TestUnfill(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, o := &giver{crowd: crowd{holds: half}, takes: 2 * time.Second}, &origin{}
		o.fails(aSecond)
		n := startNode(t, p2p.Options{Node: "a", Engine: g, Logger: quiet()})
		n.Unfill(id)
		n.join(t, o, true)
		time.Sleep(1500 * time.Millisecond)
		n.Unfill(id)
		if n := g.wanted(p2p.Fill); n > 0 {
			t.Errorf("%d pieces are wanted of peers still", n)
		}
		time.Sleep(5 * time.Second)
		here := n.holding.Count()
		if here == pieces {
			t.Fatal("all came before the fill ended")
		}
		time.Sleep(time.Hour)
		if n.holding.Count() != here {
			t.Errorf("%d pieces came long after the fill ended", n.holding.Count()-here)
		}
		for _, i := range []int{0, pieces - 1} {
			if err := n.Fetch(t.Context(), id, i); err != nil {
				t.Error(err)
			}
		}
		n.join(t, nil, true)
		n.filled(t, time.Minute)
	})
}

// TestPlan: what is planned comes, from the origin or from peers, and nothing else.
func TestPlan(t *testing.T) {
	for _, test := range []struct {
		name    string
		engine  p2p.Engine
		tracker p2p.Tracker
		copies  float64 // of the origin
	}{
		{"no engine", nil, nil, 6},
		{"peers hold nothing", &giver{crowd: crowd{holds: none}}, nil, 6},
		{"peers hold everything", &giver{crowd: crowd{holds: all}}, nil, 0},
		{"no tracker", nil, trackerFunc(func() (p2p.Tracker, error) { return nil, errors.New("no tracker") }), 6},
	} {
		for _, limit := range []int64{0, pieceRate} {
			t.Run(test.name, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					o := &origin{}
					n := startNode(t, p2p.Options{Node: "a", Engine: test.engine, Tracker: test.tracker, Logger: quiet()})
					n.SetLimits(limit, 0)
					n.join(t, o, false)
					start := time.Now()
					for _, release := range []func(){n.Plan(id, 3, 7), n.Plan(id, 5, 8), n.Plan(id, 20, 99), n.Plan(id, 9, 9)} {
						defer release()
					}
					for _, i := range []int{3, 4, 5, 6, 7, 20} {
						if err := n.holding.Wait(t.Context(), i); err != nil {
							t.Fatal(err)
						}
					}
					if took := time.Since(start); limit > 0 && took < 2*time.Second {
						t.Errorf("6 pieces took %v at one a second", took)
					}
					time.Sleep(time.Minute)
					n.is(t, 3, 4, 5, 6, 7, 20)
					if got := float64(o.sent.Load()) / pieceRate; got < test.copies-1 || got > test.copies {
						t.Errorf("the origin sent %.2f pieces, want %v", got, test.copies)
					}
				})
			})
		}
	}
}

// TestPlanReleased: what was planned and did not come is not fetched afterwards,
// but what another plan wants too is.
func TestPlanReleased(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, o := &giver{crowd: crowd{holds: none}}, &origin{}
		o.fails(func(context.Context, int) error { return errors.New("the registry is down") })
		n := startNode(t, p2p.Options{Node: "a", Engine: g, Logger: quiet()})
		n.Plan(id, 0, 2)() // of an object that is not in the mesh
		n.join(t, o, false)
		release, other := n.Plan(id, 0, 8), n.Plan(id, 6, 10)
		time.Sleep(time.Minute)
		release()
		release()
		if n := g.wanted(p2p.Fill); n != 4 {
			t.Errorf("%d pieces are wanted of peers, want 4", n)
		}
		o.fails(nil)
		time.Sleep(time.Minute)
		n.is(t, 6, 7, 8, 9)
		other()
		n.Plan(id, 0, 1)
		n.Leave(id)
		time.Sleep(time.Minute)
		n.is(t, 6, 7, 8, 9)
	})
}

// TestPlanShared: nodes with the same plan draw each piece once between them, and not one of them all.
func TestPlanShared(t *testing.T) {
	bubble(t, func(t *testing.T) {
		tr, o := tracker.Local{Server: newTracker()}, &origin{}
		o.fails(func(context.Context, int) error {
			time.Sleep(200 * time.Millisecond)
			return nil
		})
		a, b := newNode(t, "a", tr), newNode(t, "b", tr)
		for _, n := range []*node{a, b} {
			n.join(t, o, false)
			defer n.Plan(id, 0, 12)()
		}
		time.Sleep(time.Second) // later each fetches what no peer sends it
		if a.holding.Count()+b.holding.Count() != 12 || a.holding.Count() == 0 || b.holding.Count() == 0 {
			t.Errorf("of 12 pieces one drew %d, the other %d", a.holding.Count(), b.holding.Count())
		}
	})
}

// TestPlanYields: what readers come to is drawn before what is planned.
func TestPlanYields(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, n := &origin{}, newNode(t, "a", nil)
		o.fails(aSecond)
		n.join(t, o, false)
		defer n.Plan(id, 0, 12)()
		time.Sleep(100 * time.Millisecond)
		n.Ahead(id, 14, 18)
		start := time.Now()
		if err := n.Fetch(t.Context(), id, 20); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > 1100*time.Millisecond {
			t.Errorf("a reader waited %v while a plan is fetched", took)
		}
		if err := n.holding.Wait(t.Context(), 17); err != nil {
			t.Error(err)
		}
		if n.holding.Count() == 17 {
			t.Error("the plan came before what a reader is on its way to")
		}
		time.Sleep(time.Minute)
		n.is(t, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 16, 17, 20)
	})
}
