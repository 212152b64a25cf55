package p2p_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/tracker"
)

// A seen is one step that an observer was told of, and within which other one.
type seen struct {
	p2p.Step
	p2p.Outcome
	within p2p.StepKind
}

// steps records all steps that have ended.
type steps struct {
	mu  sync.Mutex
	all []seen
}

type outerStep struct{}

func (s *steps) observe(ctx context.Context, step p2p.Step) (context.Context, func(p2p.Outcome)) {
	within, _ := ctx.Value(outerStep{}).(p2p.StepKind)
	return context.WithValue(ctx, outerStep{}, step.Kind), func(o p2p.Outcome) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.all = append(s.all, seen{step, o, within})
	}
}

// of returns the steps of one kind and forgets them.
func (s *steps) of(kind p2p.StepKind) (found []seen) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var rest []seen
	for _, x := range s.all {
		if x.Kind == kind {
			found = append(found, x)
		} else {
			rest = append(rest, x)
		}
	}
	s.all = rest
	return found
}

func TestObserver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var s steps
		n := startNode(t, p2p.Options{Node: "a", Tracker: tracker.Local{Server: newTracker()}, Logger: quiet(), Observer: s.observe})
		o := &origin{}
		n.join(t, o, false)

		// A piece that the origin sends.
		if err := n.Fetch(t.Context(), id, 3); err != nil {
			t.Fatal(err)
		}
		fetched := s.of(p2p.StepFetch)
		if len(fetched) != 1 || fetched[0].First != 3 || fetched[0].Object != id ||
			fetched[0].Outcome != (p2p.Outcome{Count: 1, Bytes: piece.MinLength, Source: p2p.FromOrigin}) {
			t.Errorf("a fetch from the origin: %+v", fetched)
		}
		synctest.Wait() // the draw goes on without the reader
		drawn := s.of(p2p.StepDraw)
		if len(drawn) != 1 || drawn[0].First != 3 || drawn[0].Outcome.Count < 1 || drawn[0].Err != nil || drawn[0].within != p2p.StepFetch ||
			drawn[0].Bytes != int64(drawn[0].Outcome.Count)*piece.MinLength {
			t.Errorf("draws: %+v", drawn)
		}
		leased := s.of(p2p.StepLease)
		if last := len(leased) - 1; last < 0 || leased[last].First != 3 || leased[last].Outcome.Count < 1 || leased[last].within != p2p.StepFetch {
			t.Errorf("leases: %+v", leased)
		}

		// One that a peer sends while a reader waits.
		o.fails(func(ctx context.Context, _ int) error {
			<-ctx.Done()
			return ctx.Err()
		})
		done := make(chan error)
		go func() { done <- n.Fetch(t.Context(), id, 10) }()
		time.Sleep(time.Second)
		n.put(t, 10)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if f := s.of(p2p.StepFetch); len(f) != 1 || f[0].Source != p2p.FromPeer {
			t.Errorf("a fetch from a peer: %+v", f)
		}

		// The object's last piece is shorter.
		o.fails(nil)
		last := tree.Object().Pieces() - 1
		if err := n.Fetch(t.Context(), id, last); err != nil {
			t.Fatal(err)
		}
		if f := s.of(p2p.StepFetch); len(f) != 1 || f[0].Bytes != size%piece.MinLength {
			t.Errorf("a fetch of the last piece: %+v", f)
		}

		// One that nobody can send.
		broken := errors.New("broken")
		o.fails(func(context.Context, int) error { return broken })
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := n.Fetch(ctx, id, 15); !errors.Is(err, broken) {
			t.Errorf("a fetch in vain: %v", err)
		}
		if f := s.of(p2p.StepFetch); len(f) != 1 || !errors.Is(f[0].Err, broken) || f[0].Source != "" || f[0].Bytes != 0 {
			t.Errorf("a fetch in vain: %+v", f)
		}
		for _, d := range s.of(p2p.StepDraw) {
			if d.First == 15 && (d.Err == nil || d.Outcome.Count != 0) {
				t.Errorf("a draw in vain: %+v", d)
			}
		}
	})
}

// TestTotals: what left the mesh stays counted.
func TestTotals(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNode(t, "a", nil)
		n.join(t, &origin{}, true)
		n.filled(t, time.Second)
		pieces := int64(tree.Object().Pieces())
		s := n.Totals()
		if s.Objects != 1 || s.OriginBytes != size || s.OriginPieces != pieces || s.Drawing != 0 || s.Returned != 0 {
			t.Errorf("with its object: %+v", s)
		}
		n.Leave(id)
		if s := n.Totals(); s.Objects != 0 || s.OriginBytes != size || s.OriginPieces != pieces {
			t.Errorf("without it: %+v", s)
		}
		n.join(t, &origin{}, false)
		if s, ok := n.Stats(id); !ok || s.OriginPieces != 0 {
			t.Errorf("back again: %+v, %v", s, ok)
		}
		if s := n.Totals(); s.Objects != 1 || s.OriginPieces != pieces {
			t.Errorf("back again: %+v", s)
		}
	})
}
