package tracker

import (
	"fmt"
	"maps"
	"time"
)

// What things take of Options.Memory, in bytes, with their share of the maps that hold them.
const (
	leaseCost  = 128
	nodeCost   = 1024 // a node in a swarm, without its bitmaps
	holderCost = 2    // a piece
)

func swarmCost(pieces int) int64  { return 1024 + holderCost*int64(pieces) }
func memberCost(pieces int) int64 { return nodeCost + 2*int64(bitmapLen(pieces)) }

// A swarm is what the tracker knows of one object.
type swarm struct {
	pieces  int
	members map[string]*member
	holders []uint16 // how many members hold each piece
	open    int      // pieces that nobody holds
	next    int      // no piece below it is open
	leases  map[int]lease
}

type member struct {
	have Bitmap
	held int    // bits set in have
	done Bitmap // reported since the last announce, and so perhaps not known to the next one
}

// A lease of the node "" was given back: the origin may be unable to give the
// piece, so it is the last to be offered.
type lease struct {
	node  string
	until time.Time // when it passes to another asker, or when it was given back
}

func newSwarm(pieces int) *swarm {
	return &swarm{
		pieces: pieces, open: pieces,
		members: make(map[string]*member),
		holders: make([]uint16, pieces),
		leases:  make(map[int]lease),
	}
}

// hold replaces what node holds by have.
func (sw *swarm) hold(node string, have Bitmap) {
	m := sw.members[node]
	if m == nil {
		m = &member{have: NewBitmap(sw.pieces)}
		sw.members[node] = m
	}
	is := NewBitmap(sw.pieces)
	copy(is, have)
	for at := range m.done {
		is[at] |= m.done[at]
	}
	m.done = nil
	for at := range is {
		if is[at] == m.have[at] {
			continue
		}
		for i := 8 * at; i < min(8*at+8, sw.pieces); i++ {
			switch {
			case is.Has(i):
				sw.add(m, i)
			case m.have.Has(i):
				sw.remove(m, i)
			}
		}
	}
}

// add records that m holds piece i.
func (sw *swarm) add(m *member, i int) {
	if m.have.Has(i) {
		return
	}
	m.have.Set(i)
	m.held++
	delete(sw.leases, i)
	if sw.holders[i]++; sw.holders[i] == 1 {
		sw.open--
	}
}

// remove records that m holds piece i no more.
func (sw *swarm) remove(m *member, i int) {
	m.have.clear(i)
	m.held--
	if sw.holders[i]--; sw.holders[i] == 0 {
		sw.open++
		sw.next = min(sw.next, i)
	}
}

// leave takes node out, with what it held and had leased.
func (sw *swarm) leave(node string) {
	m := sw.members[node]
	for i := range sw.pieces {
		if m.have.Has(i) {
			sw.remove(m, i)
		}
	}
	delete(sw.members, node)
	maps.DeleteFunc(sw.leases, func(_ int, l lease) bool { return l.node == node })
}

// expire drops leases that are over.
func (sw *swarm) expire(now time.Time) {
	maps.DeleteFunc(sw.leases, func(_ int, l lease) bool { return l.node != "" && !now.Before(l.until) })
}

// check reports whether r names pieces of this swarm.
func (sw *swarm) check(r LeaseRequest) error {
	if r.Want >= sw.pieces {
		return fmt.Errorf("piece %d of %d is wanted", r.Want, sw.pieces)
	}
	for _, reported := range [][]int{r.Done, r.Failed} {
		for _, i := range reported {
			if i < 0 || i >= sw.pieces {
				return fmt.Errorf("piece %d of %d is reported", i, sw.pieces)
			}
		}
	}
	return nil
}

// report records what became of r's earlier leases.
func (sw *swarm) report(r LeaseRequest, now time.Time) {
	m := sw.members[r.Node]
	for _, i := range r.Done {
		if !m.have.Has(i) {
			sw.add(m, i)
			if m.done == nil {
				m.done = NewBitmap(sw.pieces)
			}
			m.done.Set(i)
		}
		delete(sw.leases, i)
	}
	for _, i := range r.Failed {
		if sw.leases[i].node == r.Node {
			sw.leases[i] = lease{until: now}
		}
	}
}

// grant leases up to r.Max consecutive pieces and returns them.
func (sw *swarm) grant(r LeaseRequest, now, until time.Time) (first, count int) {
	live := func(i int) bool {
		l := sw.leases[i]
		return l.node != "" && now.Before(l.until)
	}
	returned := func(i int) bool {
		l, ok := sw.leases[i]
		return ok && l.node == ""
	}
	fresh := func(i int) bool { return sw.holders[i] == 0 && !live(i) && !returned(i) }

	if first = r.Want; first >= 0 {
		if (live(first) && sw.leases[first].node != r.Node) || (sw.holders[first] > 0 && !r.Unheld) {
			return 0, 0
		}
	} else {
		for sw.next < sw.pieces && sw.holders[sw.next] > 0 {
			sw.next++
		}
		first = sw.pieces
		for i := sw.next; i < sw.pieces; i++ {
			if fresh(i) {
				first = i
				break
			}
			// Of those given back the one that was so longest ago, so that
			// one which nobody can draw does not keep the others.
			if sw.holders[i] == 0 && returned(i) && (first == sw.pieces || sw.leases[i].until.Before(sw.leases[first].until)) {
				first = i
			}
		}
		if first == sw.pieces {
			return 0, 0
		}
	}
	for count = 1; count < r.Max && first+count < sw.pieces && fresh(first+count); count++ {
	}
	for i := first; i < first+count; i++ {
		sw.leases[i] = lease{node: r.Node, until: until}
	}
	return first, count
}
