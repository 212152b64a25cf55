package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci/mirror"
	"github.com/spate-project/spate/p2p/tracker"
)

const (
	// hintPatience is how long a blob may take to come from other nodes before
	// the origin is asked. containerd's CRI gives a pull up that brought nothing
	// for five minutes.
	hintPatience = 3 * time.Minute

	// hintStall is how long no piece may come of a blob that others are said to hold.
	hintStall = 15 * time.Second

	// mostWrongHints is how many wrong hints of a blob are followed for one request.
	mostWrongHints = 2

	// smallestHinted is from which size on a blob travels by hints, in bytes. What
	// is smaller the origin sends in less time than it takes to ask who has it.
	smallestHinted = piece.MinLength
)

// hints bring blobs that no trusted index lists through the mesh: one node draws
// a blob from the origin on behalf of all, and tells by a hint how it is cut into
// pieces. Nobody believes a hint. A blob that comes by one is given out, and counts
// as held, after all of it matched its digest.
//
// What was drawn or fetched so is shared until the cache needs its room, like
// other objects; a trusted index takes it over. A later agent
// uses what lies there when a hint leads to the blob again.
type hints struct {
	agent   *Agent
	tracker *tracker.Client // nil without a mesh

	mu    sync.Mutex
	turns map[piece.Digest]chan struct{} // blobs that a request brings now; closed when it has ended

	blobs map[piece.Digest]*hinted // guarded by Agent.mu
}

func newHints(a *Agent) *hints {
	return &hints{agent: a, turns: make(map[piece.Digest]chan struct{}), blobs: make(map[piece.Digest]*hinted)}
}

// pass tells how blob d comes, as mirror.Blobs' Pass does.
func (h *hints) pass(ctx context.Context, d piece.Digest, size int64) mirror.Passed {
	if h.tracker == nil {
		return mirror.Passed{Reason: mirror.NoMesh}
	}
	ctx, cancel := context.WithTimeout(ctx, hintPatience)
	defer cancel()
	end, err := h.turn(ctx, d)
	if err != nil {
		return mirror.Passed{Reason: mirror.Late}
	}
	b := h.held(d)
	got := bringing{reason: mirror.ByHint}
	if b == nil {
		b, got = h.bring(ctx, d, size)
	}
	switch {
	case b != nil:
		end()
		return mirror.Passed{Reason: got.reason, Reader: &blobReader{io.NewSectionReader(b.object, 0, size), func() { h.release(b) }}}
	case got.reason == mirror.NoTracker:
		end()
		return mirror.Passed{Reason: got.reason}
	}
	return mirror.Passed{Reason: got.reason, Sink: h.draw(d, size, got.renew, end)}
}

// turn waits until no other request brings blob d, and keeps others waiting until end is called.
func (h *hints) turn(ctx context.Context, d piece.Digest) (end func(), err error) {
	for {
		h.mu.Lock()
		busy := h.turns[d]
		if busy == nil {
			ended := make(chan struct{})
			h.turns[d] = ended
			h.mu.Unlock()
			return func() {
				h.mu.Lock()
				defer h.mu.Unlock()
				delete(h.turns, d)
				close(ended)
			}, nil
		}
		h.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// A bringing says how a blob came, or why it is to be drawn.
type bringing struct {
	reason mirror.Reason
	renew  time.Duration // of the right to draw it, how often; 0 without one
}

// bring returns blob d whole and checked, from other nodes, or nil where this node
// is to draw it. Who gets it releases it.
func (h *hints) bring(ctx context.Context, d piece.Digest, size int64) (*hinted, bringing) {
	log := h.agent.log.With("blob", d)
	ask := tracker.HintRequest{Node: h.agent.opts.Identity.Name(), Blob: d}
	for wrong := 0; ; {
		a, err := h.tracker.Hint(ctx, ask)
		switch {
		case ctx.Err() != nil:
			return nil, bringing{reason: mirror.Late}
		case err != nil:
			log.Warn("no tracker tells who has a blob; the origin is asked", "err", err)
			return nil, bringing{reason: mirror.NoTracker}
		case a.Draw && wrong > 0:
			return nil, bringing{mirror.WrongHint, time.Duration(a.Again)}
		case a.Draw:
			return nil, bringing{mirror.Draws, time.Duration(a.Again)}
		case a.Hint == nil:
			ask.Wrong = nil
			select {
			case <-ctx.Done():
			case <-time.After(max(time.Duration(a.Again), time.Millisecond)):
			}
			continue
		case wrong == mostWrongHints:
			return nil, bringing{reason: mirror.WrongHint}
		}
		b, err := h.fetch(ctx, *a.Hint, d, size)
		switch {
		case err == nil:
			return b, bringing{reason: mirror.ByHint}
		case errors.Is(err, errWrongHint):
			wrong++
			ask.Wrong = &a.Hint.Root
			log.Warn("a hint is wrong and is dropped", "from", a.Hint.From, "err", err)
		case errors.Is(err, context.DeadlineExceeded):
			log.Warn("other nodes take too long to send a blob; the origin is asked", "err", err)
			return nil, bringing{reason: mirror.Late}
		default:
			if ctx.Err() == nil {
				log.Warn("a blob does not come from other nodes; the origin is asked", "err", err)
			}
			return nil, bringing{reason: mirror.Failing}
		}
	}
}

// errWrongHint says that a hint does not lead to the blob.
var errWrongHint = errors.New("the hint is wrong")

// treeOfHint returns the tree that a hint of blob d has. It proves nothing of the blob.
func treeOfHint(hint tracker.Hint, d piece.Digest, size int64) (*piece.Tree, error) {
	t, err := piece.NewTree(hint.Object, hint.Layer)
	if err == nil && (hint.Digest != d || hint.Size != size) {
		err = fmt.Errorf("it is about %d bytes of %s, asked for are %d of %s", hint.Size, hint.Digest, size, d)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errWrongHint, err)
	}
	return t, nil
}
