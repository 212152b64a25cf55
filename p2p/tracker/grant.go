package tracker

import "time"

// How many pieces of a swarm are leased at a time, in order: atOnce, and what
// the origin gives within ahead. Fewer would not keep the origin busy; more
// would only make each piece take longer to be whole on a node that can pass it
// on, and every node waits for the last one.
const (
	atOnce = 8
	ahead  = 150 * time.Millisecond
)

const (
	// current is for how long what a node said last counts.
	current = 2 * time.Second

	// measured is over how long the origin's rate is measured.
	measured = time.Second

	// waiting is for how long a lease counts as one that a reader waits for, and
	// maxReads how many of them are kept in mind.
	waiting  = time.Second
	maxReads = 256

	// How soon a node whose turn it is not asks again.
	soonest = 50 * time.Millisecond
	latest  = time.Second
)

// A view is a swarm as one node sees it: without the peers that it has banned.
type view struct {
	*swarm
	banned  []*member
	readers bool // readers wait for pieces of this or other swarms
}

func (sw *swarm) seenBy(r LeaseRequest) view {
	v := view{swarm: sw}
	for _, name := range r.Banned {
		if m := sw.members[name]; m != nil && name != r.Node {
			v.banned = append(v.banned, m)
		}
	}
	return v
}

// held reports whether anybody holds piece i.
func (v view) held(i int) bool {
	n := int(v.holders[i])
	for _, m := range v.banned {
		if m.have.Has(i) {
			n--
		}
	}
	return n > 0
}

// count returns how many pieces nobody holds.
func (v view) count() int {
	if len(v.banned) == 0 {
		return v.open
	}
	open := 0
	for i := range v.pieces {
		if !v.held(i) {
			open++
		}
	}
	return open
}

// returned reports whether piece i was given back.
func (v view) returned(i int) bool {
	l, ok := v.leases[i]
	return ok && l.node == ""
}

func (v view) fresh(i int, now time.Time) bool {
	return !v.held(i) && !v.leases[i].live(now) && !v.returned(i)
}

// grant leases up to r.Max consecutive pieces and returns them, or when to ask again.
func (v view) grant(r LeaseRequest, now, until time.Time) (l Lease) {
	most, end := r.Max, v.pieces
	if r.Want >= 0 {
		if have := v.leases[r.Want]; have.live(now) && have.node != r.Node || v.held(r.Want) && !r.Unheld {
			return l
		}
		l.First = r.Want
	} else {
		var ok bool
		if l.First, end, ok = v.next(r.Among, now); !ok {
			return l
		}
		if most, l.Again = v.turn(r, now); most == 0 {
			l.First = 0
			return l
		}
	}
	for l.Count = 1; l.Count < most && l.First+l.Count < end && v.fresh(l.First+l.Count, now); l.Count++ {
	}
	for i := l.First; i < l.First+l.Count; i++ {
		v.leases[i] = lease{node: r.Node, until: until, read: i == r.Want || r.Read}
	}
	return l
}

// next returns the first piece among spans that is nobody's, and the end of its
// span. Of those given back it is the one that was so longest ago, so that one
// which nobody can draw does not keep the others.
func (v view) next(among []Span, now time.Time) (first, end int, ok bool) {
	if len(among) == 0 {
		among = []Span{v.unheld()}
	}
	for _, s := range among {
		for i := s.First; i < s.First+s.Count; i++ {
			if v.fresh(i, now) {
				return i, s.First + s.Count, true
			}
			if !v.held(i) && v.returned(i) && (!ok || v.leases[i].until.Before(v.leases[first].until)) {
				first, end, ok = i, s.First+s.Count, true
			}
		}
	}
	return first, end, ok
}

// unheld returns the swarm's pieces without those at its beginning that somebody holds.
func (v view) unheld() Span {
	sw := v.swarm
	for sw.next < sw.pieces && sw.holders[sw.next] > 0 {
		sw.next++
	}
	if len(v.banned) > 0 {
		return Span{0, v.pieces}
	}
	return Span{sw.next, v.pieces - sw.next}
}

// turn returns how many pieces the asking node may draw now, or, when others
// come first, none and when it asks again.
func (v view) turn(r LeaseRequest, now time.Time) (most int, again Seconds) {
	if elapsed := now.Sub(v.since); elapsed >= measured {
		v.rate = float64(v.drawn) / elapsed.Seconds() // of a new swarm 0: nothing is drawn yet
		v.drawn, v.since = 0, now
	}
	m := v.members[r.Node]
	m.backlog, m.asked = r.Backlog, now
	asking, backlogs := 0, 0
	for _, m := range v.members {
		if now.Sub(m.asked) < current {
			asking++
			backlogs += m.backlog
		}
	}
	yields := v.readers && !r.Read // the origin's link is the readers'
	room := atOnce + int(v.rate*ahead.Seconds())
	if yields {
		room = 1
	}
	for _, l := range v.leases {
		if l.live(now) && !(yields && l.read) {
			room--
		}
	}
	if room <= 0 || (r.Backlog-1)*asking > backlogs {
		turns := time.Duration(float64(asking) / max(v.rate, 1) * float64(time.Second)) // until everybody had one
		return 0, Seconds(min(max(turns/4, soonest), latest))
	}
	return min(r.Max, max(1, room/(asking+1))), 0 // another may be about to ask
}
