package p2p

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"
)

// A limit is a rate that what it limits may be taken at, and may change at any
// time. Whoever takes does not wait for what it takes but for what was taken
// before, so that one piece may be more than a second's worth: rate.Limiter
// gives no more than its burst.
type limit struct {
	mu      sync.Mutex
	rate    int64         // bytes a second; 0 is none
	free    time.Time     // when all that was taken is paid for
	changed chan struct{} // closed when another rate holds; nil until somebody asks
}

// set makes rate the limit, 0 or less for none, and forgives what was taken
// before. It reports whether there was another one.
func (l *limit) set(rate int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	rate = max(0, rate)
	if rate == l.rate {
		return false
	}
	l.rate, l.free = rate, time.Time{}
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
	return true
}

// take takes n bytes, or gives them back where n is negative. It returns the
// rate, how long it takes until all that was taken before is paid for, and what
// is closed when another rate holds.
func (l *limit) take(n int64) (rate int64, debt time.Duration, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	rate, debt, changed = l.rate, max(0, time.Until(l.free)), l.changed
	if rate > 0 {
		l.free = time.Now().Add(debt + time.Duration(float64(n)/float64(rate)*float64(time.Second)))
	}
	return rate, debt, changed
}

// get is take of nothing.
func (l *limit) get() (rate int64, debt time.Duration, changed <-chan struct{}) { return l.take(0) }

// holds reports whether there is a limit.
func (l *limit) holds() bool {
	rate, _, _ := l.get()
	return rate > 0
}

// Limits returns what SetLimits set.
func (m *Mesh) Limits() (prefetch, demand int64) {
	prefetch, _, _ = m.prefetch.get()
	demand, _, _ = m.demanded.get()
	return prefetch, demand
}

// SetLimits limits what is fetched from peers and from the origin, together, to
// so many bytes a second: prefetch for fills, demand for Fetches and what they
// read ahead. 0 or less is no limit, as at first. A limit holds at once, also
// for what waits; only what was asked for already still comes. A Fetch never
// waits for the limit of fills.
func (m *Mesh) SetLimits(prefetch, demand int64) {
	m.demanded.set(demand)
	if !m.prefetch.set(prefetch) {
		return
	}
	for _, mb := range m.list() {
		mb.ration()
		mb.pause(0)
	}
	m.mu.Lock()
	m.stir()
	m.mu.Unlock()
}

// ration makes the swarm want for the fill what the limit lets it: everything
// or, until pace grants it, nothing.
func (mb *member) ration() {
	mb.entry.Lock()
	defer mb.entry.Unlock()
	mb.mu.Lock()
	sw, fill, plans := mb.swarm, mb.fill, mb.plans()
	clear(mb.granted)
	mb.mu.Unlock()
	switch {
	case sw == nil || !fill && !plans:
	case fill && !mb.prefetch.holds():
		sw.Want(0, mb.object.Pieces(), Fill)
	default:
		mb.wantAgain(0, mb.object.Pieces())
	}
}

// wantAll makes the swarm want the whole object, unless that is limited.
func (mb *member) wantAll() {
	mb.entry.Lock()
	defer mb.entry.Unlock()
	if !mb.prefetch.holds() {
		mb.want(0, mb.object.Pieces(), Fill)
	}
}

// urgent reports whether a reader waits for piece i or comes its way.
func (mb *member) urgent(i int) bool {
	mb.mu.Lock()
	defer mb.mu.Unlock()
	return mb.awaited[i] > 0 || i < mb.ahead && i >= mb.behind || mb.near(i)
}

// awaits notes that a reader waits for piece i, until the function that it returns is called.
func (mb *member) awaits(i int) (done func()) {
	add := func(n int) {
		mb.mu.Lock()
		defer mb.mu.Unlock()
		if mb.awaited[i] += n; mb.awaited[i] == 0 {
			delete(mb.awaited, i)
			close(mb.moved)
			mb.moved = make(chan struct{})
		}
	}
	add(1)
	return func() { add(-1) }
}

// pay waits until the limit of readers lets piece i be demanded; with a limit
// it reports whether the piece is here by then.
func (m *Mesh) pay(ctx context.Context, mb *member, i int) (here bool, err error) {
	for m.demanded.holds() {
		if mb.Has(i) {
			return true, nil
		}
		cost := mb.unpaid(i, i+1)
		_, wait, changed := m.demanded.take(cost)
		if wait == 0 {
			return false, nil
		}
		here, err := mb.waitUnless(ctx, i, wait, changed)
		switch {
		case isClosed(changed): // what it took is forgiven
			continue
		case !here && err == nil && ctx.Err() == nil:
			return false, nil
		case !here && err == nil:
			err = fmt.Errorf("the limit of what readers wait for left no room for it: %w", ctx.Err())
		}
		m.demanded.take(-cost)
		return here, err
	}
	return false, nil
}

// waitUnless is waitFor that ends when stop is closed, too.
func (mb *member) waitUnless(ctx context.Context, i int, d time.Duration, stop <-chan struct{}) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	return mb.waitFor(ctx, i, d)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// readahead is how many pieces after a waiting reader are urgent too: under a
// limit a quarter of a second's worth, so that the next reader need not wait
// long for what this one has taken, but what a lease brings in any case.
func (m *Mesh) readahead(mb *member) int {
	bytes := m.opts.Readahead
	if rate, _, _ := m.demanded.get(); rate > 0 {
		bytes = min(bytes, max(rate/4, m.opts.LeaseBytes-mb.object.PieceLength))
	}
	return int(max(1, bytes/mb.object.PieceLength))
}

// payAhead pays for pieces [first, last), which are to be here before their reader.
func (m *Mesh) payAhead(mb *member, first, last int) {
	if !m.demanded.holds() {
		return
	}
	m.demanded.take(mb.unpaid(first, last))
	mb.mu.Lock()
	defer mb.mu.Unlock()
	maps.DeleteFunc(mb.paid, func(i int, _ bool) bool { return mb.Has(i) })
	for i := first; i < last; i++ {
		mb.paid[i] = true
	}
}

// unpaid returns the bytes of those of pieces [first, last) that are absent and
// not paid for: neither by a reader nor by the fill, to have them from peers.
func (mb *member) unpaid(first, last int) (bytes int64) {
	mb.mu.Lock()
	defer mb.mu.Unlock()
	for i := first; i < last; i++ {
		if !mb.Has(i) && !mb.granted[i] && !mb.paid[i] && mb.awaited[i] == 0 {
			_, n := mb.object.Span(i)
			bytes += n
		}
	}
	return bytes
}

// rest reports whether the fill has to wait for its limit, and makes it.
func (mb *member) rest() bool {
	_, debt, _ := mb.prefetch.get()
	if debt == 0 {
		return false
	}
	if mb.owed() == 0 { // it is not peers who keep it waiting
		mb.progressed()
	}
	mb.pause(debt)
	return true
}

// owed returns the bytes of pieces that were granted and have not come yet.
func (mb *member) owed() (bytes int64) {
	mb.mu.Lock()
	defer mb.mu.Unlock()
	for i := range mb.granted {
		if mb.Has(i) {
			delete(mb.granted, i)
			continue
		}
		_, n := mb.object.Span(i)
		bytes += n
	}
	return bytes
}

// pace grants pieces to fills, where these are limited, until ctx ends: what is
// granted the swarm wants. Without a limit it wants everything at once.
func (m *Mesh) pace(ctx context.Context) error {
	for ctx.Err() == nil {
		m.mu.Lock()
		joined := m.changed
		m.mu.Unlock()
		rate, wait, changed := m.prefetch.get()
		switch {
		case rate == 0:
			joined, wait = nil, time.Hour
		case wait == 0:
			if wait = m.grant(rate); wait == 0 {
				continue
			}
		default:
			joined = nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-joined:
		case <-timer.C:
		}
		timer.Stop()
	}
	return ctx.Err()
}

// grant grants one piece of the first object that is in need, and returns how
// long to wait where there is none. No more than a second's worth may be on its
// way, so that a limit is soon felt; two pieces are always.
func (m *Mesh) grant(rate int64) (wait time.Duration) {
	members, owed := m.list(), int64(0)
	for _, mb := range members {
		owed += mb.owed()
	}
	wait = time.Minute
	for _, mb := range members {
		mb.mu.Lock()
		sw, fills := mb.swarm, mb.fills()
		mb.mu.Unlock()
		if !fills {
			continue
		}
		wait = retry
		if sw == nil || owed >= max(rate, 2*mb.object.PieceLength) {
			continue
		}
		if i, ok := mb.grantable(sw); ok && mb.granting(sw, i) {
			return 0
		}
	}
	return wait
}

// granting takes piece i's tokens and has the swarm want it, if there is a limit still.
func (mb *member) granting(sw Swarm, i int) bool {
	mb.entry.Lock()
	defer mb.entry.Unlock()
	if !mb.prefetch.holds() {
		return false
	}
	_, n := mb.object.Span(i)
	mb.prefetch.take(n)
	mb.mu.Lock()
	mb.granted[i] = true
	mb.mu.Unlock()
	sw.Want(i, i+1, Fill)
	return true
}

// grantable returns an absent piece that a connected peer holds and nobody has
// asked for yet: a random one, so that equal nodes do not all want the same. Where
// none is on its way it returns one that no peer holds rather than none, since
// a swarm that wants nothing looks for no peers.
func (mb *member) grantable(sw Swarm) (i int, ok bool) {
	mb.mu.Lock()
	idle := len(mb.granted) == 0
	mb.mu.Unlock()
	tried := 0
	for next := range mb.lacking() {
		if mb.urgent(next) || mb.asked(next) {
			continue
		}
		if i = next; sw.Held(i) {
			return i, true
		}
		ok = idle
		if tried++; tried == 16 {
			break
		}
	}
	return i, ok
}

// asked reports whether the fill has asked for piece i.
func (mb *member) asked(i int) bool {
	mb.mu.Lock()
	defer mb.mu.Unlock()
	return mb.granted[i] || mb.drawing[i]
}

// filled returns how urgent piece i is when no reader waits for it. mb.mu is held.
func (mb *member) filled(i int) Urgency {
	switch {
	case mb.near(i):
		return Ahead
	case (mb.fill || mb.planned[i] > 0) && (mb.granted[i] || !mb.prefetch.holds()):
		return Fill
	}
	return None
}
