package p2p

import (
	"context"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p/tracker"
)

// StepKind says what a Step does.
type StepKind string

// The kinds of steps. A fetch holds the leases and the draws that it caused.
const (
	StepFetch StepKind = "fetch" // a reader waits for a piece
	StepLease StepKind = "lease" // the tracker is asked for pieces to draw, or only told what was drawn
	StepDraw  StepKind = "draw"  // pieces are read from the origin
)

// A Step is a part of bringing pieces of an object.
type Step struct {
	Kind   StepKind
	Object piece.Digest
	First  int // piece; -1 of a lease that takes what comes next
	Count  int // pieces that are wanted; 0 of a lease that only reports
}

// Sources of a piece.
const (
	FromPeer   = "peer"
	FromOrigin = "origin"
)

// An Outcome says how a Step ended.
type Outcome struct {
	Count  int    // pieces that were leased, or brought and verified
	Bytes  int64  // of those that were brought
	Source string // of a fetch that brought a piece: FromPeer or FromOrigin
	Err    error
}

// An Observer is told of each Step as it begins. It returns the context to do
// it with, which what happens within the step gets the values of, and what is
// called once at its end. It must return soon and is called concurrently.
type Observer func(ctx context.Context, s Step) (context.Context, func(Outcome))

// observe tells the observer, where there is one.
func (m *Mesh) observe(ctx context.Context, s Step) (context.Context, func(Outcome)) {
	if m.opts.Observer == nil {
		return ctx, func(Outcome) {}
	}
	return m.opts.Observer(ctx, s)
}

// drew notes that this node has read piece i from the origin and verified it.
func (mb *member) drew(i int) {
	mb.originPieces.Add(1)
	mb.mu.Lock()
	defer mb.mu.Unlock()
	if mb.drawn == nil {
		mb.drawn = tracker.NewBitmap(mb.object.Pieces())
	}
	mb.drawn.Set(i)
	if mb.swarm != nil {
		mb.fresh = append(mb.fresh, i)
	}
}

// brought is the outcome of a fetch of piece i.
func (mb *member) brought(i int, err error) Outcome {
	if err != nil {
		return Outcome{Err: err}
	}
	mb.mu.Lock()
	defer mb.mu.Unlock()
	_, n := mb.object.Span(i)
	o := Outcome{Count: 1, Bytes: n, Source: FromPeer}
	if mb.drawn.Has(i) {
		o.Source = FromOrigin
	}
	return o
}

// bytesOf returns how many bytes pieces [first, last) have.
func (mb *member) bytesOf(first, last int) int64 {
	if first == last {
		return 0
	}
	off, _ := mb.object.Span(first)
	end, n := mb.object.Span(last - 1)
	return end + n - off
}
