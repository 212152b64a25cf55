package agent

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/spate-project/spate/cache"
	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci/mirror"
	"github.com/spate-project/spate/p2p/tracker"
)

// A draw takes a blob from the origin into the cache, while the mirror gives it to
// its caller, and then shares it. Without room in the cache it takes nothing.
type draw struct {
	hints *hints
	blob  piece.Digest
	in    *cache.Incoming // nil when this node's disk failed
	taken atomic.Int64    // bytes
	whole bool
	ended chan struct{} // closed by Close
	end   func()        // of the blob's turn
}

var _ mirror.Sink = (*draw)(nil)

// draw begins a draw, which ends the blob's turn. The right to it is renewed at
// every interval, if there is a right, for as long as bytes come.
func (h *hints) draw(d piece.Digest, size int64, renew time.Duration, end func()) *draw {
	s := &draw{hints: h, blob: d, ended: make(chan struct{}), end: end}
	var err error
	if s.in, err = h.agent.store.Receive(d, size); err != nil {
		s.failed(err)
		return s
	}
	if renew > 0 {
		h.spawn(func(ctx context.Context) { s.renew(ctx, renew) })
	}
	return s
}

func (s *draw) failed(err error) {
	s.hints.agent.log.Warn("a blob is drawn for this node alone", "blob", s.blob, "err", err)
	s.in = nil
}

// renew keeps the right to draw until the draw ends or brings no more bytes.
func (s *draw) renew(ctx context.Context, interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for before := int64(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-s.ended:
			return
		case <-tick.C:
		}
		if taken := s.taken.Load(); taken > before {
			before = taken
			s.tell(ctx, tracker.HintRequest{})
		}
	}
}

// tell tells the tracker about the blob. A tracker that is away hears of it when this node is asked for it again.
func (s *draw) tell(ctx context.Context, r tracker.HintRequest) {
	r.Node, r.Blob = s.hints.agent.opts.Identity.Name(), s.blob
	if _, err := s.hints.tracker.Hint(ctx, r); err != nil && ctx.Err() == nil {
		s.hints.agent.log.Warn("other nodes are not told of a blob", "blob", s.blob, "err", err)
	}
}

// Write implements mirror.Sink.
func (s *draw) Write(p []byte) (int, error) {
	if s.in != nil {
		if _, err := s.in.Write(p); err != nil {
			s.in.Close()
			s.failed(err)
		} else {
			s.taken.Add(int64(len(p)))
		}
	}
	return len(p), nil
}

// Commit implements mirror.Sink.
func (s *draw) Commit() { s.whole = true }

// Close implements mirror.Sink.
func (s *draw) Close() {
	close(s.ended)
	finish := func(ctx context.Context) {
		defer s.end()
		if err := s.share(ctx); err != nil && ctx.Err() == nil {
			s.hints.agent.log.Warn("a blob that was drawn is not shared", "blob", s.blob, "err", err)
		}
	}
	if !s.hints.spawn(finish) { // the agent is ending
		if s.in != nil {
			s.in.Close()
		}
		s.end()
	}
}

// share enters the blob's swarm and tells the tracker, or gives the right to draw back.
func (s *draw) share(ctx context.Context) error {
	b, err := s.keep(ctx)
	if b == nil {
		s.tell(ctx, tracker.HintRequest{Failed: true})
		return err
	}
	defer s.hints.release(b)
	t := b.object.Tree()
	s.tell(ctx, tracker.HintRequest{Give: &tracker.Hint{Object: t.Object(), Layer: t.Layer()}})
	return nil
}

// keep puts what was taken into the cache, and returns nil where that is not the
// whole blob. Who gets it releases it.
func (s *draw) keep(ctx context.Context) (*hinted, error) {
	if s.in == nil {
		return nil, nil
	}
	defer s.in.Close()
	if !s.whole {
		return nil, nil
	}
	t, err := s.in.Commit()
	if err != nil {
		return nil, err
	}
	b, err := s.hints.enter(ctx, t)
	if err != nil {
		return nil, err
	}
	if !b.object.Complete() {
		s.hints.drop(b)
		return nil, fmt.Errorf("object %s is not whole in the cache", s.blob)
	}
	if err := s.hints.approve(b); err != nil {
		return nil, err
	}
	return b, nil
}

// spawn is Agent.spawn.
func (h *hints) spawn(f func(context.Context)) bool {
	h.agent.mu.Lock()
	defer h.agent.mu.Unlock()
	return h.agent.spawn(f)
}
