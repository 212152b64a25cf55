package p2p

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p/tracker"
)

const (
	trackerTimeout = 10 * time.Second

	// originIdle is how long the origin may send nothing.
	originIdle = 15 * time.Second

	// drawRoom bounds the pieces that a Mesh draws at a time, in bytes. It is
	// the room of one piece at least: piece.MaxLength.
	drawRoom = piece.MaxLength

	// later is how long finished pieces may wait to be reported with the next
	// lease. The tracker counts them as being drawn so long.
	later = 50 * time.Millisecond
)

// lease reports what was drawn and sends r, in this node's and swarm's name.
func (m *Mesh) lease(ctx context.Context, mb *member, r tracker.LeaseRequest) (tracker.Lease, error) {
	mb.mu.Lock()
	r.Done, r.Failed = mb.done, mb.failed
	mb.done, mb.failed = nil, nil
	mb.mu.Unlock()
	r.Node, r.Swarm = m.opts.Node, mb.id
	if m.opts.Engine != nil {
		r.Banned = m.opts.Engine.Banned()
		r.Banned = r.Banned[:min(len(r.Banned), tracker.MaxBanned)]
	}
	ctx, cancel := context.WithTimeout(ctx, trackerTimeout)
	defer cancel()
	ctx, ended := m.observe(ctx, Step{Kind: StepLease, Object: mb.object.Digest, First: r.Want, Count: r.Max})
	l, err := m.opts.Tracker.Lease(ctx, r)
	ended(Outcome{Count: l.Count, Err: err})
	if err != nil {
		mb.mu.Lock()
		defer mb.mu.Unlock()
		mb.done, mb.failed = append(mb.done, r.Done...), append(mb.failed, r.Failed...)
		mb.due = time.Now().Add(failing)
		return l, err
	}
	if l.Count < 0 || l.First < 0 || l.Count > mb.object.Pieces()-l.First || (l.Count > 0 && r.Want >= 0 && l.First != r.Want) {
		return tracker.Lease{}, fmt.Errorf("the tracker leased %d pieces from %d on, of %d, where piece %d was wanted",
			l.Count, l.First, mb.object.Pieces(), r.Want)
	}
	return l, nil
}

// claim claims piece i for one who means to draw it, unless this node draws it already.
func (mb *member) claim(i int) bool {
	mb.mu.Lock()
	defer mb.mu.Unlock()
	if mb.drawing[i] {
		return false
	}
	mb.drawing[i] = true
	return true
}

// take returns which of the leased pieces are to be drawn, as Lease has it, and
// claims them. Others this node has by now, from peers, or draws already. mine
// is a piece that the caller has claimed, or -1; take releases it where it is
// not to be drawn.
func (mb *member) take(l tracker.Lease, mine int) tracker.Lease {
	mb.mu.Lock()
	defer mb.mu.Unlock()
	if mine >= 0 {
		delete(mb.drawing, mine)
	}
	first, count := 0, 0
	for i := l.First; i < l.First+l.Count; i++ {
		switch {
		case mb.Has(i):
			mb.report(i, true)
		case mb.drawing[i]:
		case count == 0:
			first, count = i, 1
		case i == first+count:
			count++
		default:
			mb.report(i, false)
		}
	}
	for i := first; i < first+count; i++ {
		mb.drawing[i] = true
	}
	l.First, l.Count = first, count
	return l
}

// release takes claims back.
func (mb *member) release(first, count int) {
	mb.mu.Lock()
	defer mb.mu.Unlock()
	for i := first; i < first+count; i++ {
		delete(mb.drawing, i)
	}
}

// report notes for the next report to the tracker what became of a leased
// piece. What was not drawn is of use to others at once. mb.mu is held.
func (mb *member) report(i int, done bool) {
	if len(mb.done)+len(mb.failed) == 0 {
		mb.due = time.Now().Add(later)
	}
	if done {
		mb.done = append(mb.done, i)
		return
	}
	mb.failed = append(mb.failed, i)
	mb.returned.Add(1)
	mb.due = time.Now()
}

// fetch reads count claimed pieces from the origin with one request, verifies
// each as it is whole, puts it into the holding, and releases them. It waits
// while too much is being drawn.
func (m *Mesh) fetch(ctx context.Context, mb *member, first, count int) (err error) {
	next := first
	defer func() {
		mb.release(first, count)
		mb.mu.Lock()
		for i := first; i < first+count; i++ {
			mb.report(i, i < next)
		}
		mb.mu.Unlock()
		m.mu.Lock()
		m.stir()
		m.mu.Unlock()
	}()
	what := fmt.Sprintf("read pieces %d to %d of object %s from the origin", first, first+count-1, mb.object.Digest)

	_, largest := mb.object.Span(first) // only the object's last piece is shorter
	if err := m.room.Acquire(ctx, largest); err != nil {
		return fmt.Errorf("%s: %w", what, because(ctx, err))
	}
	defer m.room.Release(largest)
	for ; next < first+count && mb.Has(next); next++ { // it came from peers meanwhile
	}
	if next == first+count {
		return nil
	}
	begin := next
	ctx, ended := m.observe(ctx, Step{Kind: StepDraw, Object: mb.object.Digest, First: begin, Count: first + count - begin})
	defer func() { ended(Outcome{Count: next - begin, Bytes: mb.bytesOf(begin, next), Err: err}) }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(originIdle, func() {
		cancel(fmt.Errorf("it sent nothing for %v", originIdle))
	})
	defer idle.Stop()
	off, _ := mb.object.Span(next)
	lastOff, lastLen := mb.object.Span(first + count - 1)
	body, err := mb.origin.Range(ctx, off, lastOff+lastLen-off)
	if err != nil {
		return fmt.Errorf("%s: %w", what, because(ctx, err))
	}
	defer body.Close()
	alive := readerFunc(func(p []byte) (int, error) {
		n, err := body.Read(p)
		mb.originBytes.Add(int64(n))
		idle.Reset(originIdle)
		return n, err
	})
	buf := make([]byte, largest)
	for ; next < first+count; next++ {
		_, n := mb.object.Span(next)
		if _, err := io.ReadFull(alive, buf[:n]); err != nil {
			return fmt.Errorf("%s: %w", what, because(ctx, err))
		}
		v, err := mb.Tree().Verify(next, buf[:n])
		if err != nil {
			mb.originWrong.Add(1)
			if w, ok := errors.AsType[*piece.WrongBytesError](err); ok {
				w.From = "the origin"
			}
			return err
		}
		mb.drew(next)
		if err := mb.Put(v); err != nil {
			return fmt.Errorf("store piece %d of object %s: %w", next, mb.object.Digest, err)
		}
	}
	return nil
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// because returns why ctx ended, where that is what failed, and err otherwise.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
