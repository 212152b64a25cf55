package p2p

import (
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p/tracker"
)

// Plan has pieces [first, last) of object d fetched as those of a fill are,
// under its limit and after what readers want, until release is called; then
// those that did not come are fetched no more, unless something else wants them.
// Where nobody holds them they are leased in the order of their places, so
// whoever has an order of its own plans a window at a time. Nobody is told of
// errors: what waits for a piece is its holding's Wait. Of an object that is
// not in the mesh, or is filled anyway, Plan does nothing. Any number of plans
// may want the same pieces.
func (m *Mesh) Plan(d piece.Digest, first, last int) (release func()) {
	mb := m.member(d)
	if mb == nil {
		return func() {}
	}
	first, last = max(0, first), min(last, mb.object.Pieces())
	mb.plan(first, last)
	m.mu.Lock()
	m.stir()
	m.mu.Unlock()
	return sync.OnceFunc(func() { mb.unplan(first, last) })
}

// Unfill ends what a Join with Fill began: of object d only what is read or
// planned is fetched from now on. What was asked for already may still come.
func (m *Mesh) Unfill(d piece.Digest) {
	mb := m.member(d)
	if mb == nil {
		return
	}
	mb.entry.Lock()
	defer mb.entry.Unlock()
	mb.mu.Lock()
	was := mb.fill
	mb.fill, mb.ahead, mb.behind = false, 0, 0
	clear(mb.granted)
	mb.mu.Unlock()
	if was {
		mb.wantAgain(0, mb.object.Pieces())
	}
}

// plan notes that one more plan wants pieces [first, last).
func (mb *member) plan(first, last int) {
	mb.entry.Lock()
	defer mb.entry.Unlock()
	mb.mu.Lock()
	for i := first; i < last; i++ {
		if !mb.Has(i) {
			mb.planned[i]++
		}
	}
	mb.hasten()
	mb.mu.Unlock()
	mb.wantAgain(first, last)
}

// unplan is the end of plan.
func (mb *member) unplan(first, last int) {
	mb.entry.Lock()
	defer mb.entry.Unlock()
	mb.mu.Lock()
	for i := first; i < last; i++ {
		if mb.planned[i]--; mb.planned[i] <= 0 {
			delete(mb.planned, i)
			if !mb.fill {
				delete(mb.granted, i)
			}
		}
	}
	mb.mu.Unlock()
	mb.wantAgain(first, last)
}

// wantAgain makes the swarm want absent pieces [first, last) as urgently as they
// are now, but for what readers want. mb.entry is held.
func (mb *member) wantAgain(first, last int) {
	sw := mb.in()
	if sw == nil {
		return
	}
	for i := first; i < last; i++ {
		if mb.Has(i) || mb.urgent(i) {
			continue
		}
		mb.mu.Lock()
		u := mb.filled(i)
		mb.mu.Unlock()
		sw.Want(i, i+1, u)
	}
}

// plans reports whether a plan wants pieces that are absent, and forgets the others. mb.mu is held.
func (mb *member) plans() bool {
	maps.DeleteFunc(mb.planned, func(i, _ int) bool { return mb.Has(i) })
	return len(mb.planned) > 0
}

// plannedSpans returns the first of the pieces that plans want, as many as a
// request to a tracker may name. mb.mu is held.
func (mb *member) plannedSpans() (spans []tracker.Span) {
	for _, i := range slices.Sorted(maps.Keys(mb.planned)) {
		if k := len(spans) - 1; k >= 0 && spans[k].First+spans[k].Count == i {
			spans[k].Count++
			continue
		}
		if len(spans) == tracker.MaxSpans {
			break
		}
		spans = append(spans, tracker.Span{First: i, Count: 1})
	}
	return spans
}

// lacking yields the absent pieces that the fill, or a plan, wants, each once
// and from a random one on, so that equal nodes do not come to the same ones.
func (mb *member) lacking() iter.Seq[int] {
	mb.mu.Lock()
	first, n, fill := mb.first, mb.object.Pieces()-mb.first, mb.fill
	var planned []int
	if !fill {
		planned = slices.Collect(maps.Keys(mb.planned))
		n = len(planned)
	}
	mb.mu.Unlock()
	return func(yield func(int) bool) {
		if n == 0 {
			return
		}
		start := rand.IntN(n)
		for k := range n {
			i := (start + k) % n
			if fill {
				i += first
			} else {
				i = planned[i]
			}
			if !mb.Has(i) && !yield(i) {
				return
			}
		}
	}
}
