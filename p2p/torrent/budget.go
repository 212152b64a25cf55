package torrent

import (
	"slices"
	"sync"

	anacrolix "github.com/anacrolix/torrent"
)

// DefaultConns keeps connections to about 100 MiB: one on which blocks are sent
// has two buffers of two blocks each and some more, 0.8 MiB in all.
const DefaultConns = 128

// few connections a swarm may have in any case: with fewer, its nodes would not
// all be joined to each other by way of others.
const few = 4

// A budget bounds the connections of all swarms together, and shares them out:
// beyond the bound, a swarm that has its few gets another connection only from
// one that has more, which loses its newest. So each swarm comes to have its
// share, however early others came. Within a swarm that has its share, who
// connects to this node takes the place of who has been there the longest: it
// would not have come if it had its share, and it may have no one else.
type budget struct {
	most int

	mu     sync.Mutex
	total  int
	swarms map[*anacrolix.Torrent][]*anacrolix.PeerConn // in the order that they came
}

func newBudget(most int) *budget {
	return &budget{most: most, swarms: make(map[*anacrolix.Torrent][]*anacrolix.PeerConn)}
}

// keep has the engine tell of connections, dialled and accepted ones. The
// client's lock is held in these calls, and closing a connection takes it.
func (b *budget) keep(cb *anacrolix.Callbacks) {
	cb.PeerConnAdded = append(cb.PeerConnAdded, func(c *anacrolix.PeerConn) {
		if c := b.add(c.Torrent(), c, c.Discovery == anacrolix.PeerSourceIncoming); c != nil {
			go c.Close()
		}
	})
	cb.PeerClosed = append(cb.PeerClosed, func(p *anacrolix.Peer) {
		if c, ok := p.TryAsPeerConn(); ok {
			b.remove(p.Torrent(), c)
		}
	})
}

// add counts a connection of swarm t, and returns the one that has to be closed
// for it, or nil. It may be c itself. What is to be closed does not count any more.
func (b *budget) add(t *anacrolix.Torrent, c *anacrolix.PeerConn, incoming bool) *anacrolix.PeerConn {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.swarms[t] = append(b.swarms[t], c)
	b.total++
	if b.total <= b.most {
		return nil
	}
	from := b.larger(t, len(b.swarms[t]))
	if from == nil && len(b.swarms[t]) <= few {
		return nil
	}
	if from == nil {
		from = t
	}
	i := len(b.swarms[from]) - 1
	if from == t && incoming {
		i = 0
	}
	goes := b.swarms[from][i]
	b.drop(from, i)
	return goes
}

// remove counts a connection no more.
func (b *budget) remove(t *anacrolix.Torrent, c *anacrolix.PeerConn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.swarms[t], c); i >= 0 {
		b.drop(t, i)
	}
}

// room returns how many more connections swarm t may have.
func (b *budget) room(t *anacrolix.Torrent) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.swarms[t])
	room := max(0, b.most-b.total, few-n)
	if room == 0 && b.larger(t, n+1) != nil {
		return 1
	}
	return room
}

// larger returns the swarm other than t with the most connections, if these are
// more than n and more than few; nil if there is none. b.mu is held.
func (b *budget) larger(t *anacrolix.Torrent, n int) *anacrolix.Torrent {
	var largest *anacrolix.Torrent
	n = max(n, few)
	for s, conns := range b.swarms {
		if s != t && len(conns) > n {
			largest, n = s, len(conns)
		}
	}
	return largest
}

// drop forgets connection i of swarm t. b.mu is held.
func (b *budget) drop(t *anacrolix.Torrent, i int) {
	b.total--
	if b.swarms[t] = slices.Delete(b.swarms[t], i, i+1); len(b.swarms[t]) == 0 {
		delete(b.swarms, t)
	}
}
