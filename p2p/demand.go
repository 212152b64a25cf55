package p2p

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p/tracker"
)

const (
	// grace is how long peers that hold a piece have before a reader looks elsewhere.
	grace = 300 * time.Millisecond

	// retry is how long to wait for a lease, twice as long after each further refusal.
	retry = 50 * time.Millisecond

	// patience is after how many refused leases a reader insists on a piece
	// that no peer of its own holds, about 2 s, and endurance after how many on
	// any piece, about 4 s.
	patience  = 5
	endurance = 7

	// vain is how often the origin may send wrong bytes, or say that it has
	// none, where there is no other source. Peers may be connecting meanwhile.
	vain = 2
)

var errLeft = errors.New("the object left the mesh")

// Fetch brings piece i of object d into its holding, before everything else
// that the mesh does. It returns nil once the piece is present. While sources
// fail it keeps trying until ctx ends, and then returns the last failure. It
// returns earlier only
//   - with piece.ErrNotHere when the object is not in the mesh, or leaves it,
//   - with piece.ErrNotTrusted when the origin's error is of that class,
//   - with piece.ErrNotHere or a *piece.WrongBytesError when the origin has
//     answered with such an error, or with such bytes, twice and no connected
//     peer holds the piece,
//   - with the holding's error when it can wait no more or its disk is full.
func (m *Mesh) Fetch(ctx context.Context, d piece.Digest, i int) error {
	mb := m.member(d)
	if mb == nil {
		return fmt.Errorf("object %s is not in the mesh: %w", d, piece.ErrNotHere)
	}
	if i < 0 || i >= mb.object.Pieces() {
		return fmt.Errorf("object %s has no piece %d", d, i)
	}
	if err := m.enter(mb); err != nil {
		m.log.Error("a reader gets everything from the origin", "err", err)
	}
	ctx, ended := m.observe(ctx, Step{Kind: StepFetch, Object: d, First: i, Count: 1})
	ctx, cancel := mb.within(ctx)
	defer cancel()
	err := m.await(ctx, mb, i)
	ended(mb.brought(i, err))
	if err != nil {
		if context.Cause(ctx) == errLeft {
			err = fmt.Errorf("%w: %w", errLeft, piece.ErrNotHere)
		}
		return fmt.Errorf("fetch piece %d of object %s: %w", i, d, err)
	}
	return nil
}

// await returns when piece i is present.
func (m *Mesh) await(ctx context.Context, mb *member, i int) error {
	if here, err := m.pay(ctx, mb, i); here || err != nil {
		return err
	}
	defer mb.awaits(i)()
	if here, err := m.follow(ctx, mb, i); here || err != nil {
		return err
	}
	m.demand(mb, i)
	defer mb.calm(i)
	mb.readers.Add(1)
	defer mb.readers.Add(-1)
	wait := time.Duration(0)
	if mb.held(i) {
		wait = grace
	}
	var last error
	hopeless := 0 // answers of the origin that another try is unlikely to change
	for refused := 0; ; {
		here, err := mb.waitFor(ctx, i, wait)
		switch {
		case here:
			return nil
		case err != nil:
			return err
		case ctx.Err() != nil && last != nil:
			return last
		case ctx.Err() != nil:
			return fmt.Errorf("no peer sent it and the origin was not free: %w", ctx.Err())
		}
		mb.want(i, i+1, Now) // another reader of it may have taken that back
		l, err := m.leaseDemanded(ctx, mb, i, refused)
		switch {
		case errors.Is(err, errDrawn):
			wait = grace
			continue
		case errors.Is(err, tracker.ErrUnknown):
			m.hurry()
			refused++
			wait = min(time.Second, settle<<refused)
			continue
		case err != nil, l.Count == 0:
			refused++
			wait = min(time.Second, retry<<min(refused, 10))
			continue
		}
		m.payAhead(mb, l.First+1, l.First+l.Count) // which come with it
		err = m.drawDemanded(ctx, mb, l)
		if last == nil || ctx.Err() == nil {
			last = err // and not the context's, where there was a better reason
		}
		if errors.Is(last, syscall.ENOSPC) || errors.Is(last, piece.ErrNotTrusted) {
			return last
		}
		if _, wrong := errors.AsType[*piece.WrongBytesError](err); wrong || errors.Is(err, piece.ErrNotHere) {
			if hopeless++; hopeless >= vain && !mb.held(i) {
				return err
			}
		}
		wait = min(4*time.Second, max(grace, 2*wait))
	}
}

// drawDemanded draws a lease for the reader of its first piece, and returns when
// that is here, or with why it is not to be had. The pieces that come with it are
// drawn to the end without the reader, unless it goes before its own is here.
func (m *Mesh) drawDemanded(ctx context.Context, mb *member, l tracker.Lease) error {
	drawing, cancel := mb.within(context.WithoutCancel(ctx))
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	drawn := make(chan error, 1)
	if !m.beside(cancel, func() {
		drawn <- m.fetch(drawing, mb, l.First, l.Count)
		cancel()
		stop()
	}) {
		cancel()
		return m.fetch(ctx, mb, l.First, l.Count)
	}
	if mb.Wait(waiting, l.First) == nil {
		return nil
	}
	cancel() // unless it has ended
	err := <-drawn
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = fmt.Errorf("draw piece %d of object %s: %w", l.First, mb.object.Digest, context.Cause(ctx))
	}
	return err
}

// beside runs f in a goroutine that Run waits for at its end, when it calls
// cancel. It reports false, and does nothing, after that.
func (m *Mesh) beside(cancel, f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.life.Err() != nil {
		return false
	}
	unbind := context.AfterFunc(m.life, cancel)
	m.draws.Go(func() {
		defer unbind()
		f()
	})
	return true
}

// errDrawn says that this node draws the piece already.
var errDrawn = errors.New("drawn already")

// leaseDemanded asks for the lease of piece i, refused times before in vain. What it leases is claimed.
func (m *Mesh) leaseDemanded(ctx context.Context, mb *member, i, refused int) (tracker.Lease, error) {
	if !mb.claim(i) {
		return tracker.Lease{}, errDrawn
	}
	held := mb.held(i)
	insist := !held && (refused >= patience || refused > 0 && mb.isWary()) || refused >= endurance
	l, err := m.lease(ctx, mb, tracker.LeaseRequest{Want: i, Unheld: insist, Max: m.leasePieces(mb)})
	if err != nil && (insist || !held && !errors.Is(err, tracker.ErrUnknown)) {
		// Without a tracker nobody shares the origin out; a waiting reader still gets its piece.
		l, err = tracker.Lease{First: i, Count: 1}, nil
	}
	if err != nil {
		mb.release(i, 1)
		return l, err
	}
	if insist && l.Count > 0 {
		mb.beWary()
	}
	return mb.take(l, i), nil
}

// within returns a context that ends with ctx and when the object leaves the mesh.
func (mb *member) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-mb.gone:
			cancel(errLeft)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// demand makes piece i the most urgent and, where the object is filled, a window after it urgent.
func (m *Mesh) demand(mb *member, i int) {
	mb.want(i, i+1, Now)
	window := m.readahead(mb)
	mb.mu.Lock()
	if !mb.fill {
		mb.mu.Unlock()
		return
	}
	first, last := max(i+1, mb.ahead), min(i+1+window, mb.object.Pieces())
	if i+1 < mb.ahead-2*window { // the reader jumped back
		first = i + 1
	}
	if last-first < window/2 && last < mb.object.Pieces() {
		last = first // enough is wanted already
	}
	if last > first {
		mb.ahead, mb.behind = last, i
	}
	mb.mu.Unlock()
	if last > first {
		m.payAhead(mb, first, last)
		mb.want(first, last, Ahead)
	}
}

// calm takes back the urgency of a piece that its reader stopped waiting for.
func (mb *member) calm(i int) {
	if mb.Has(i) {
		return
	}
	mb.mu.Lock()
	u := mb.filled(i)
	mb.mu.Unlock()
	mb.want(i, i+1, u)
}

// held reports whether a connected peer holds piece i.
func (mb *member) held(i int) bool {
	sw := mb.in()
	return sw != nil && sw.Held(i)
}

// waitFor reports whether piece i became present within d; 0 only looks. The
// error is the holding's, when waiting on is of no use.
func (mb *member) waitFor(ctx context.Context, i int, d time.Duration) (bool, error) {
	if d == 0 || mb.Has(i) {
		return mb.Has(i), nil
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	err := mb.Wait(ctx, i)
	if err != nil && ctx.Err() != nil {
		return false, nil
	}
	return err == nil, err
}
