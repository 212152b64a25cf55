package p2p

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/spate-project/spate/p2p/tracker"
)

const (
	// given is how long to wait when every piece is given out, closed how long
	// when the origin is not needed at all.
	given  = 500 * time.Millisecond
	closed = 2 * time.Second

	// most is how many times Options.LeaseBytes is taken at a time of what a
	// reader comes to, where the tracker has so much to give: to few nodes, or of
	// a fast origin.
	most = 4

	// failing is how long to wait after a failure, twice as long after each further one, up to broken.
	failing = time.Second
	broken  = 30 * time.Second
)

// draw fills objects from the origin, one lease after the other: those first
// that readers are on their way in, and otherwise in the order in which they
// joined. It reports what nothing else reports.
func (m *Mesh) draw(ctx context.Context) error {
	for ctx.Err() == nil {
		m.mu.Lock()
		changed := m.changed
		m.mu.Unlock()
		m.enterNext()
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

// next returns the first object whose turn it is, or how long to wait for one.
func (m *Mesh) next(now time.Time) (due *member, wait time.Duration) {
	wait = time.Minute
	for _, mb := range m.list() {
		mb.mu.Lock()
		at, ok := mb.turn()
		read := len(mb.soon) > 0
		mb.mu.Unlock()
		switch {
		case !ok:
		case now.Before(at):
			wait = min(wait, at.Sub(now))
		case read:
			return mb, 0
		case due == nil:
			due = mb
		}
	}
	return due, wait
}

// turn returns when the object has business with the tracker again, if it has. mb.mu is held.
func (mb *member) turn() (at time.Time, ok bool) {
	reports := len(mb.done)+len(mb.failed) > 0
	switch fills := mb.fills(); {
	case fills && reports && mb.due.Before(mb.again):
		return mb.due, true
	case fills:
		return mb.again, true
	default:
		return mb.due, reports
	}
}

// fills reports whether the object is to be filled, or a part of it that readers
// are on their way to or plans want, and is not here. mb.mu is held.
func (mb *member) fills() bool {
	if !mb.fill {
		return mb.nears() || mb.plans()
	}
	for mb.first < mb.object.Pieces() && mb.Has(mb.first) {
		mb.first++
	}
	return mb.first < mb.object.Pieces()
}

// drawOnce takes one lease in order and draws it, or only reports where there is nothing to draw.
func (m *Mesh) drawOnce(ctx context.Context, mb *member) {
	ctx, cancel := mb.within(ctx)
	defer cancel()
	mb.mu.Lock()
	reportOnly := !mb.fills() || time.Now().Before(mb.again)
	among, read := mb.among()
	mb.mu.Unlock()
	if reportOnly {
		_, err := m.lease(ctx, mb, tracker.LeaseRequest{Want: -1}) // repeated later when it fails
		if errors.Is(err, tracker.ErrUnknown) {
			m.hurry()
		}
		return
	}

	pieces := m.leasePieces(mb)
	if read {
		pieces *= most
	} else if mb.rest() {
		return
	}
	l, err := m.lease(ctx, mb, tracker.LeaseRequest{Want: -1, Among: among, Read: read, Max: pieces, Backlog: mb.backlog()})
	if err == nil {
		l = mb.leaveToPeers(mb.take(l, -1))
	}
	switch {
	case l.Count > 0:
		mb.progressed()
	case !read: // a reader that comes to a piece insists on it itself
		if i, ok := m.neglected(mb); ok {
			if among != nil { // what is next to it is not planned
				pieces = 1
			}
			l, err = m.lease(ctx, mb, tracker.LeaseRequest{Want: i, Unheld: true, Max: pieces})
			if err != nil {
				// Nobody shares the origin out; the fill comes on all the same.
				l, err = tracker.Lease{First: i, Count: 1}, nil
			}
			l = mb.take(l, i)
		}
	}
	switch {
	case ctx.Err() != nil:
	case errors.Is(err, tracker.ErrUnknown):
		m.hurry()
		mb.pause(retry)
	case err != nil:
		m.log.Warn("no origin lease", "object", mb.object.Digest, "err", err)
		mb.pause(failing)
	case l.Count > 0:
		if err := m.enter(mb); err != nil { // what is drawn is shared, also ahead of the fill
			m.log.Error("an object gets everything from the origin", "err", err)
		}
		if !read {
			m.prefetch.take(mb.unpaid(l.First, l.First+l.Count))
		}
		err := m.fetch(ctx, mb, l.First, l.Count)
		if mb.failedDraw(err); err != nil && ctx.Err() == nil {
			m.log.Warn("draw from the origin", "object", mb.object.Digest, "err", err)
		}
	case l.Again > 0:
		mb.pause(time.Duration(l.Again))
	case l.Open > 0 || mb.isWary():
		mb.pause(given)
	default:
		mb.pause(closed)
	}
}

// leaveToPeers gives those pieces of a lease back that connected peers hold, as
// a tracker gives them that has restarted and not heard of them yet: peers send
// them as well, unless they failed to before. What is left are consecutive
// pieces, as in every lease.
func (mb *member) leaveToPeers(l tracker.Lease) tracker.Lease {
	if mb.isWary() {
		return l
	}
	first, count := l.First, 0
	for i := l.First; i < l.First+l.Count; i++ {
		switch {
		case mb.held(i):
		case count == 0:
			first, count = i, 1
		case i == first+count:
			count++
		}
	}
	mb.mu.Lock()
	defer mb.mu.Unlock()
	for i := l.First; i < l.First+l.Count; i++ {
		if i < first || i >= first+count {
			delete(mb.drawing, i)
			mb.report(i, false)
		}
	}
	l.First, l.Count = first, count
	return l
}

// backlog returns how many of the pieces that this node has drawn fewer than
// half of its peers hold yet.
func (mb *member) backlog() int {
	mb.mu.Lock()
	sw, fresh := mb.swarm, slices.Clone(mb.fresh)
	mb.mu.Unlock()
	spread := make(map[int]bool)
	for _, i := range fresh { // without the lock, which readers need: the engine has its own
		holders, peers := sw.Spread(i)
		spread[i] = 2*holders >= peers
	}
	mb.mu.Lock()
	defer mb.mu.Unlock()
	mb.fresh = slices.DeleteFunc(mb.fresh, func(i int) bool { return spread[i] })
	return len(mb.fresh)
}

func (mb *member) isWary() bool {
	mb.mu.Lock()
	defer mb.mu.Unlock()
	return mb.wary
}

// beWary notes that peers do not send what they are said to hold.
func (mb *member) beWary() {
	mb.mu.Lock()
	defer mb.mu.Unlock()
	mb.wary = true
}

// leasePieces is how many pieces of mb one lease asks for.
func (m *Mesh) leasePieces(mb *member) int {
	return int(max(1, m.opts.LeaseBytes/mb.object.PieceLength))
}

// pause makes the fill wait for d.
func (mb *member) pause(d time.Duration) {
	mb.mu.Lock()
	defer mb.mu.Unlock()
	mb.again = time.Now().Add(d)
}

// hasten makes the fill, which may be waiting, ask again soon. mb.mu is held.
func (mb *member) hasten() {
	if soon := time.Now().Add(retry); mb.again.After(soon) {
		mb.again = soon
	}
}

// failedDraw makes the fill wait after err, the longer the more draws failed in a row.
func (mb *member) failedDraw(err error) {
	mb.mu.Lock()
	defer mb.mu.Unlock()
	if err == nil {
		mb.failures = 0
		return
	}
	mb.again = time.Now().Add(min(broken, failing<<min(mb.failures, 10)))
	mb.failures++
}

// progressed notes that the fill draws from the origin by ordinary leases.
func (mb *member) progressed() {
	mb.mu.Lock()
	defer mb.mu.Unlock()
	mb.dry = time.Time{}
}

// patience is how long a fill waits for peers: less where no right piece came
// from any of them lately, as when a starter meets nodes that say they hold
// everything.
func (m *Mesh) patience(now time.Time) time.Duration {
	if now.Sub(time.Unix(0, m.heard.Load())) > m.opts.Patience {
		return m.opts.Patience / 5
	}
	return m.opts.Patience
}

// neglected claims an absent piece that the fill should draw from the origin
// although it got no lease: peers have sent nothing for too long, whatever they
// are said to hold. So neither a tracker that is gone nor a node that lies about
// what it holds ends a fill. Once peers kept it waiting for Options.Patience,
// the fill waits less for them: least for pieces that no peer of its own holds.
func (m *Mesh) neglected(mb *member) (i int, ok bool) {
	received, verified := int64(0), int64(0)
	if sw := mb.in(); sw != nil {
		st := sw.Stats()
		received, verified = st.Received, st.Verified
	}
	now := time.Now()
	mb.mu.Lock()
	if verified != mb.verified {
		mb.verified = verified
		m.heard.Store(now.UnixNano())
	}
	if mb.dry.IsZero() || received != mb.received {
		mb.dry, mb.received = now, received
	}
	silent := now.Sub(mb.dry)
	if silent >= m.patience(now) && !mb.wary {
		mb.wary = true
		m.log.Warn("peers send nothing; the fill turns to the origin, whatever they are said to hold", "object", mb.object.Digest)
	}
	hopeless := mb.wary && silent >= m.opts.Patience/32
	mb.mu.Unlock()
	if !hopeless {
		return 0, false
	}
	tried := 0
	for i := range mb.lacking() {
		if (silent >= m.opts.Patience/8 || !mb.held(i)) && mb.claim(i) {
			return i, true
		}
		if tried++; tried == 16 {
			break
		}
	}
	return 0, false
}
