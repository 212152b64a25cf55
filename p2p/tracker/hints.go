package tracker

import (
	"container/list"
	"time"

	"github.com/spate-project/spate/cache/piece"
)

// hintCost is what a blob takes of the hints' memory without its piece layer, in bytes.
const hintCost = 1024

// hints are what the tracker knows of blobs, of which those that were asked for
// longest ago make room for others.
type hints struct {
	limit  int64 // bytes
	used   int64
	byBlob map[piece.Digest]*list.Element // of *blob
	recent *list.List                     // the one asked for last in front
}

// A blob has a hint, or is drawn, or neither.
type blob struct {
	digest piece.Digest
	hint   *Hint
	given  time.Time // when hint was

	node  string    // that draws it, until
	until time.Time // then another node may
	since time.Time // when the draw began
}

func newHints(limit int64) hints {
	return hints{limit: limit, byBlob: make(map[piece.Digest]*list.Element), recent: list.New()}
}

// get returns the blob, which is new when it was not known.
func (h *hints) get(d piece.Digest) *blob {
	if e := h.byBlob[d]; e != nil {
		h.recent.MoveToFront(e)
		return e.Value.(*blob)
	}
	b := &blob{digest: d}
	h.byBlob[d] = h.recent.PushFront(b)
	h.used += hintCost
	h.evict()
	return b
}

// set replaces b's hint.
func (h *hints) set(b *blob, hint *Hint) {
	h.used -= layerCost(b.hint)
	b.hint = hint
	h.used += layerCost(hint)
	h.evict()
}

// evict keeps h within its limit, by blobs other than the one asked for last.
func (h *hints) evict() {
	for h.used > h.limit && h.recent.Len() > 1 {
		old := h.recent.Remove(h.recent.Back()).(*blob)
		delete(h.byBlob, old.digest)
		h.used -= hintCost + layerCost(old.hint)
	}
}

func layerCost(h *Hint) int64 {
	if h == nil {
		return 0
	}
	return int64(len(h.Layer))
}

// Hint records what r tells of a blob and answers how to come by it: by a hint
// while nodes in its swarm hold the blob, else by drawing it, one node at a time.
// Who draws keeps the right for a lease's time after each request. A hint does not
// replace one that is of use. Hint keeps r.Give's layer, which must not change any more.
func (s *Server) Hint(r HintRequest) (HintAnswer, error) {
	if err := r.check(); err != nil {
		return HintAnswer{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.opts.Now()
	s.expire(now)
	b := s.hints.get(r.Blob)
	if r.Wrong != nil && b.hint != nil && b.hint.Root == *r.Wrong {
		s.opts.Logger.Warn("a hint is said to be wrong and is dropped", "blob", r.Blob, "from", b.hint.From, "by", r.Node)
		s.hints.set(b, nil)
	}
	if b.node == r.Node && (r.Failed || r.Give != nil) {
		b.node = ""
	}
	if r.Failed {
		return HintAnswer{}, nil
	}
	if r.Give != nil && !s.held(b) {
		given := *r.Give
		given.From = r.Node
		s.hints.set(b, &given)
		b.given = now
	}
	switch {
	case s.held(b):
		return HintAnswer{Hint: b.hint}, nil
	case b.hint != nil && now.Sub(b.given) < s.opts.Interval: // who gave it is about to announce what it holds
		return HintAnswer{Again: Seconds(soonestHint)}, nil
	case b.node == "" || b.node == r.Node || now.After(b.until):
		if b.node != r.Node || now.After(b.until) {
			b.since = now
		}
		b.node, b.until = r.Node, now.Add(s.opts.LeaseTTL)
		return HintAnswer{Draw: true, Again: Seconds(s.opts.LeaseTTL / 3)}, nil
	}
	return HintAnswer{Again: Seconds(min(max(now.Sub(b.since)/4, soonestHint), latestHint))}, nil
}

// held reports whether b has a hint and the nodes in its swarm hold every piece.
func (s *Server) held(b *blob) bool {
	if b.hint == nil {
		return false
	}
	sw := s.swarms[SwarmOf(b.hint.Object)]
	return sw != nil && sw.open == 0
}
