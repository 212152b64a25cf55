package p2p

import (
	"fmt"
	"slices"
	"time"

	"github.com/spate-project/spate/p2p/tracker"
)

// How many of the objects that are to be filled are in their swarms at a time:
// the first few that are not whole, in order. A swarm costs the engine memory
// for each piece that is absent and for each connection, and a model may have
// a million pieces in fifty files. Fewer swarms at a time would leave nothing to do
// where one ends; more share out connections too thinly.
const (
	windowBytes = 128 << 20
	windowLeast = 2
	windowMost  = 6
)

// refusal is how long an object that the engine would not take does without it.
const refusal = time.Minute

// enterNext enters the swarms that the fill comes to next.
func (m *Mesh) enterNext() {
	bytes, count := int64(0), 0
	for _, mb := range m.list() {
		if count == windowMost || count >= windowLeast && bytes >= windowBytes {
			return
		}
		mb.mu.Lock()
		fills := mb.fills()
		mb.mu.Unlock()
		if !fills {
			continue
		}
		count++
		bytes += mb.object.Size
		if err := m.enter(mb); err != nil {
			m.log.Error("an object gets everything from the origin", "err", err)
		}
	}
}

// enter joins the object's swarm unless it is in it. Whatever the node holds
// of an object is shared from then on; what it holds nothing of it need not share.
// After a failure enter does nothing for a while.
func (m *Mesh) enter(mb *member) error {
	if m.opts.Engine == nil || mb.in() != nil {
		return nil
	}
	mb.entry.Lock()
	defer mb.entry.Unlock()
	select {
	case <-mb.gone:
		return nil
	default:
	}
	if mb.in() != nil || time.Now().Before(mb.noEntry) {
		return nil
	}
	sw, err := m.opts.Engine.Join(mb.Holding)
	if err != nil {
		mb.noEntry = time.Now().Add(refusal)
		return fmt.Errorf("join the swarm of object %s: %w", mb.object.Digest, err)
	}
	mb.mu.Lock()
	mb.swarm = sw
	peers, fill, soon, plans := mb.peers, mb.fill, slices.Clone(mb.soon), mb.plans()
	mb.mu.Unlock()
	switch {
	case mb.prefetch.holds():
	case fill:
		sw.Want(0, mb.object.Pieces(), Fill)
	case plans:
		mb.wantAgain(0, mb.object.Pieces())
	}
	for _, s := range soon {
		sw.Want(s.First, s.First+s.Count, Ahead)
	}
	if len(peers) > 0 {
		sw.AddPeers(peers)
	}
	return nil
}

// exit leaves the object's swarm, for good: gone is closed.
func (mb *member) exit() {
	mb.entry.Lock()
	defer mb.entry.Unlock()
	if sw := mb.in(); sw != nil {
		sw.Leave()
	}
}

// in returns the object's swarm, or nil while it is in none.
func (mb *member) in() Swarm {
	mb.mu.Lock()
	defer mb.mu.Unlock()
	return mb.swarm
}

// meet makes peers known to the swarm, now or when it is entered.
func (mb *member) meet(peers []tracker.Peer) {
	mb.mu.Lock()
	mb.peers = peers
	sw := mb.swarm
	mb.mu.Unlock()
	if sw != nil && len(peers) > 0 {
		sw.AddPeers(peers)
	}
}

func (mb *member) holdsAny() bool {
	for i := range mb.object.Pieces() {
		if mb.Has(i) {
			return true
		}
	}
	return false
}
