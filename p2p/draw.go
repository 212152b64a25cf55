package p2p

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p/tracker"
)

const (
	trackerTimeout = 10 * time.Second

	// given is how long to wait when every piece is given out, open how long
	// when the origin is not needed at all, failing how long after a failure.
	given   = 50 * time.Millisecond
	closed  = time.Second
	failing = time.Second

	// stall is how long an object goes without a new piece before the node
	// stops waiting for holders that it does not reach.
	stall = 2 * time.Second
)

// draw fills objects from the origin, one lease after the other, in the order in which they joined.
func (m *Mesh) draw(ctx context.Context) error {
	for ctx.Err() == nil {
		m.mu.Lock()
		changed := m.changed
		m.mu.Unlock()
		mb, wait := m.next(time.Now())
		if mb != nil {
			m.drawOnce(ctx, mb)
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
	return ctx.Err()
}

// next returns the first object that may need the origin, or how long to wait for one.
func (m *Mesh) next(now time.Time) (*member, time.Duration) {
	wait := time.Minute
	for _, mb := range m.list() {
		mb.mu.Lock()
		fill, again := mb.fill, mb.again
		mb.mu.Unlock()
		if !fill || mb.complete() {
			continue
		}
		if !now.Before(again) {
			return mb, 0
		}
		wait = min(wait, again.Sub(now))
	}
	return nil, wait
}

func (mb *member) complete() bool {
	for i := mb.object.Pieces() - 1; i >= 0; i-- {
		if !mb.Has(i) {
			return false
		}
	}
	return true
}

// drawOnce takes one lease in order and draws it.
func (m *Mesh) drawOnce(ctx context.Context, mb *member) {
	l, err := m.lease(ctx, mb, -1, false)
	switch {
	case err != nil:
		mb.pause(failing)
		if errors.Is(err, tracker.ErrUnknown) {
			m.hurry()
			mb.pause(given)
		} else if ctx.Err() == nil {
			m.log.Warn("no origin lease", "object", mb.object.Digest, "err", err)
		}
	case l.Count > 0:
		if err := m.fetch(ctx, mb, l.First, l.Count); err != nil && ctx.Err() == nil {
			m.log.Warn("draw from the origin", "object", mb.object.Digest, "err", err)
			mb.pause(failing)
		}
	case mb.stalled():
		if !m.drawUnheld(ctx, mb) {
			mb.pause(closed)
		}
	case l.Open > 0:
		mb.pause(given)
	default:
		mb.pause(closed)
	}
}

// drawUnheld draws pieces that the tracker takes for held but none of this
// node's peers has, as when their only holder is banned here or out of reach.
// It reports whether there were such pieces and they came.
func (m *Mesh) drawUnheld(ctx context.Context, mb *member) bool {
	for i := range mb.object.Pieces() {
		if mb.Has(i) || mb.held(i) {
			continue
		}
		l, err := m.lease(ctx, mb, i, true)
		if err != nil || l.Count == 0 {
			return false
		}
		return m.fetch(ctx, mb, l.First, l.Count) == nil
	}
	return false
}

// stalled reports whether no piece came for longer than a working swarm takes.
func (mb *member) stalled() bool {
	return time.Since(time.Unix(0, mb.progress.Load())) > stall
}

func (mb *member) held(i int) bool { return mb.swarm != nil && mb.swarm.Held(i) }

func (mb *member) pause(d time.Duration) {
	mb.mu.Lock()
	defer mb.mu.Unlock()
	mb.again = time.Now().Add(d)
}

// lease reports what was drawn and asks for more: piece want, or with -1 the next ones.
func (m *Mesh) lease(ctx context.Context, mb *member, want int, unheld bool) (tracker.Lease, error) {
	mb.mu.Lock()
	done, failed := mb.done, mb.failed
	mb.done, mb.failed = nil, nil
	mb.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, trackerTimeout)
	defer cancel()
	l, err := m.opts.Tracker.Lease(ctx, tracker.LeaseRequest{
		Node: m.opts.Node, Swarm: mb.id,
		Done: done, Failed: failed,
		Want: want, Unheld: unheld,
		Max: int(max(1, m.opts.LeaseBytes/mb.object.PieceLength)),
	})
	if err != nil {
		mb.mu.Lock()
		mb.done, mb.failed = append(mb.done, done...), append(mb.failed, failed...)
		mb.mu.Unlock()
		return l, err
	}
	if l.Count < 0 || l.First < 0 || l.First+l.Count > mb.object.Pieces() {
		return l, fmt.Errorf("the tracker leased pieces %d to %d of %d", l.First, l.First+l.Count, mb.object.Pieces())
	}
	return l, nil
}

// fetch reads count pieces from the origin with one request, verifies each as
// it is whole and puts it into the holding.
func (m *Mesh) fetch(ctx context.Context, mb *member, first, count int) (err error) {
	next := first
	defer func() {
		mb.mu.Lock()
		defer mb.mu.Unlock()
		for i := first; i < first+count; i++ {
			if i < next {
				mb.done = append(mb.done, i)
			} else {
				mb.failed = append(mb.failed, i)
			}
		}
	}()
	off, _ := mb.object.Span(first)
	lastOff, lastLen := mb.object.Span(first + count - 1)
	body, err := mb.origin.Range(ctx, off, lastOff+lastLen-off)
	if err != nil {
		return fmt.Errorf("read pieces %d to %d of object %s from the origin: %w", first, first+count-1, mb.object.Digest, err)
	}
	defer body.Close()
	buf := make([]byte, mb.object.PieceLength)
	for ; next < first+count; next++ {
		_, n := mb.object.Span(next)
		got, err := io.ReadFull(body, buf[:n])
		mb.originBytes.Add(int64(got))
		if err != nil {
			return fmt.Errorf("read piece %d of object %s from the origin: %w", next, mb.object.Digest, err)
		}
		v, err := mb.Tree().Verify(next, buf[:n])
		if err != nil {
			mb.originWrong.Add(1)
			if w, ok := errors.AsType[*piece.WrongBytesError](err); ok {
				w.From = "the origin"
			}
			return err
		}
		if err := mb.Put(v); err != nil {
			return err
		}
	}
	return nil
}

const (
	// grace is how long peers that hold a piece have before a reader looks elsewhere.
	grace = 300 * time.Millisecond

	// patience is after how many refused leases a reader insists on a piece
	// that no peer of its own holds.
	patience = 5
)

// Fetch brings piece i of object d into its holding, before everything else
// that the mesh does. It returns nil once the piece is present. While sources
// fail it keeps trying until ctx ends, and then returns the last failure; it
// returns at once when trying again cannot help. The error is
// piece.ErrNotHere when the object is not in the mesh.
func (m *Mesh) Fetch(ctx context.Context, d piece.Digest, i int) error {
	mb := m.member(d)
	if mb == nil {
		return fmt.Errorf("object %s is not in the mesh: %w", d, piece.ErrNotHere)
	}
	m.demand(mb, i)
	defer mb.calm(i)

	wait := time.Duration(0)
	if mb.held(i) {
		wait = grace
	}
	var last error
	for refused := 0; ; {
		if mb.waitFor(ctx, i, wait) {
			return nil
		}
		if ctx.Err() != nil {
			if last == nil {
				last = fmt.Errorf("no peer sent it and the origin was not free: %w", ctx.Err())
			}
			return fmt.Errorf("fetch piece %d of object %s: %w", i, d, last)
		}
		unheld := !mb.held(i)
		l, err := m.lease(ctx, mb, i, unheld && (refused >= patience || mb.stalled()))
		switch {
		case errors.Is(err, tracker.ErrUnknown):
			m.hurry()
			wait = 2 * settle
			continue
		case err != nil && unheld:
			// Without a tracker nobody shares the origin out; a waiting reader still gets its piece.
			l = tracker.Lease{First: i, Count: 1}
		case err != nil, l.Count == 0:
			refused++
			wait = min(time.Second, given<<min(refused, 10))
			continue
		}
		if last = m.fetch(ctx, mb, l.First, l.Count); last == nil {
			wait = 0
			continue
		}
		if errors.Is(last, syscall.ENOSPC) || errors.Is(last, piece.ErrNotTrusted) {
			return last
		}
		wait = min(4*time.Second, max(grace, 2*wait))
	}
}

// demand makes piece i the most urgent and a window after it urgent.
func (m *Mesh) demand(mb *member, i int) {
	mb.want(i, i+1, Now)
	window := int(max(1, m.opts.Readahead/mb.object.PieceLength))
	mb.mu.Lock()
	first, last := max(i+1, mb.ahead), min(i+1+window, mb.object.Pieces())
	if i+1 < mb.ahead-2*window { // the reader jumped back
		first = i + 1
	}
	if last-first < window/2 && last < mb.object.Pieces() {
		last = first // enough is wanted already
	}
	if last > first {
		mb.ahead = last
	}
	mb.mu.Unlock()
	if last > first {
		mb.want(first, last, Ahead)
	}
}

// calm takes back the urgency of a piece that its reader stopped waiting for.
func (mb *member) calm(i int) {
	if mb.Has(i) {
		return
	}
	u := None
	mb.mu.Lock()
	if mb.fill {
		u = Fill
	}
	mb.mu.Unlock()
	mb.want(i, i+1, u)
}

// waitFor reports whether piece i became present within d; 0 only looks.
func (mb *member) waitFor(ctx context.Context, i int, d time.Duration) bool {
	if d == 0 {
		return mb.Has(i)
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return mb.Wait(ctx, i) == nil
}
