package p2p

import (
	"context"
	"slices"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p/tracker"
)

// longest is how long a reader waits for those before it.
const longest = 2 * time.Second

// Ahead says that a reader is on its way to pieces [first, last) of object d,
// and returns soon. They are fetched as those of a fill are, but before all
// fills: peers send what they hold, and what nobody holds is drawn by leases in
// order, so that nodes which read the same at the same time draw different
// pieces and pass them on. Nobody is told of an error; a Fetch follows where it
// matters. Under the limit of readers only a quarter of a second's worth is
// fetched, and nothing of an object that is being filled, where the readers'
// Fetches order the pieces, or that is not in the mesh.
func (m *Mesh) Ahead(d piece.Digest, first, last int) {
	mb := m.member(d)
	if mb == nil {
		return
	}
	first, last = max(0, first), min(last, mb.object.Pieces())
	if m.demanded.holds() {
		last = min(last, first+m.readahead(mb))
	}
	if first >= last || !mb.comes(first, last) {
		return
	}
	if err := m.enter(mb); err != nil {
		m.log.Error("a reader gets everything from the origin", "err", err)
	}
	m.payAhead(mb, first, last)
	mb.want(first, last, Ahead)
	m.mu.Lock()
	m.stir()
	m.mu.Unlock()
}

// comes notes that a reader is on its way to pieces [first, last), and reports
// false where the whole object is fetched anyway.
func (mb *member) comes(first, last int) bool {
	mb.mu.Lock()
	defer mb.mu.Unlock()
	if mb.fill {
		return false
	}
	if k := len(mb.soon) - 1; k >= 0 && mb.soon[k].First+mb.soon[k].Count == first {
		mb.soon[k].Count += last - first
	} else {
		mb.soon = append(mb.soon, tracker.Span{First: first, Count: last - first})
	}
	if len(mb.soon) > tracker.MaxSpans { // what is oldest its reader may have left
		mb.soon = slices.Delete(mb.soon, 0, 1)
	}
	mb.hasten()
	return true
}

// follow waits while readers wait for pieces shortly before piece i: a kernel
// that reads ahead waits for many at a time, and would have each node demand the
// same ones of the same peer. Piece i is on the reader's way meanwhile. follow
// reports whether it came, and gives up when it takes long.
func (m *Mesh) follow(ctx context.Context, mb *member, i int) (here bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	for told := false; ; told = true {
		moved := mb.behindOthers(i, m.readahead(mb))
		if moved == nil || ctx.Err() != nil {
			return false, nil
		}
		if !told {
			m.Ahead(mb.object.Digest, i, i+1)
		}
		if here, err := mb.waitUnless(ctx, i, longest, moved); here || err != nil {
			return here, err
		}
	}
}

// behindOthers returns what is closed when a piece that was awaited is not any
// more, if one of the pieces at most window before i is awaited; nil if none is,
// or where the object is filled.
func (mb *member) behindOthers(i, window int) <-chan struct{} {
	mb.mu.Lock()
	defer mb.mu.Unlock()
	for k := max(0, i-window); k < i && !mb.fill; k++ {
		if mb.awaited[k] > 0 {
			return mb.moved
		}
	}
	return nil
}

// among returns what a lease in order is to be taken from, nil being all of the
// object, and whether a reader is on its way there. mb.mu is held.
func (mb *member) among() (spans []tracker.Span, read bool) {
	switch {
	case mb.fill:
		return nil, false
	case mb.nears():
		return slices.Clone(mb.soon), true
	}
	return mb.plannedSpans(), false
}

// nears reports whether a reader is on its way to pieces that are absent, and forgets the others. mb.mu is held.
func (mb *member) nears() bool {
	for len(mb.soon) > 0 {
		s := &mb.soon[0]
		for ; s.Count > 0 && mb.Has(s.First); s.Count-- {
			s.First++
		}
		if s.Count > 0 {
			return true
		}
		mb.soon = slices.Delete(mb.soon, 0, 1)
	}
	return false
}

// near reports whether a reader is on its way to piece i. mb.mu is held.
func (mb *member) near(i int) bool {
	return slices.ContainsFunc(mb.soon, func(s tracker.Span) bool { return i >= s.First && i < s.First+s.Count })
}
