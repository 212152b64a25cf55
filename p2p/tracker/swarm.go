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
	bridges map[string]string // by zone, the node that exchanges with other zones

	drawn int       // pieces, since the time below
	since time.Time // when rate was measured last
	rate  float64   // pieces drawn a second, lately
}

type member struct {
	have Bitmap
	held int    // bits set in have
	done Bitmap // reported since the last announce, and so perhaps not known to the next one

	backlog int       // as it last said
	asked   time.Time // when it last asked for pieces in order
}

// A lease of the node "" was given back: the origin may be unable to give the
// piece, so it is the last to be offered.
type lease struct {
	node  string
	until time.Time // when it passes to another asker, or when it was given back
	read  bool      // a reader waits for it
}

// live reports whether a node may draw the piece, and nobody else.
func (l lease) live(now time.Time) bool { return l.node != "" && now.Before(l.until) }

func newSwarm(pieces int) *swarm {
	return &swarm{
		pieces: pieces, open: pieces,
		members: make(map[string]*member),
		holders: make([]uint16, pieces),
		leases:  make(map[int]lease),
		bridges: make(map[string]string),
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
	maps.DeleteFunc(sw.bridges, func(_, bridge string) bool { return bridge == node })
	maps.DeleteFunc(sw.leases, func(_ int, l lease) bool { return l.node == node })
}

// expire drops leases that are over.
func (sw *swarm) expire(now time.Time) {
	maps.DeleteFunc(sw.leases, func(_ int, l lease) bool { return l.node != "" && !l.live(now) })
}

// check reports whether r names pieces of this swarm.
func (sw *swarm) check(r LeaseRequest) error {
	if r.Want >= sw.pieces {
		return fmt.Errorf("piece %d of %d is wanted", r.Want, sw.pieces)
	}
	for _, s := range r.Among {
		if s.Count > sw.pieces-s.First {
			return fmt.Errorf("pieces %d to %d of %d are wanted", s.First, s.First+s.Count-1, sw.pieces)
		}
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
		if sw.leases[i].node == r.Node {
			sw.drawn++
		}
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

// settle makes node its zone's bridge where there is none and peers can reach
// it, and takes back what it was before: it may have moved.
func (sw *swarm) settle(node, zone string, reachable bool) {
	maps.DeleteFunc(sw.bridges, func(z, bridge string) bool { return bridge == node && (z != zone || !reachable) })
	if _, ok := sw.bridges[zone]; !ok && reachable {
		sw.bridges[zone] = node
	}
}
