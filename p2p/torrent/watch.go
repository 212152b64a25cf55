package torrent

import (
	"context"
	"sync"
	"time"

	anacrolix "github.com/anacrolix/torrent"
	pp "github.com/anacrolix/torrent/peer_protocol"
)

// The engine asks one peer at a time for a block, and asks another only once
// that one has nothing else to do. So a peer that takes requests and does not
// answer them holds up the end of a fill, and a reader even in its middle. The
// watch looks at every connection once a tick and closes those, which frees
// what was asked of them.

// tick is how often connections are looked at.
const tick = time.Second

// A watch knows what is asked of which connection.
type watch struct {
	tick time.Duration

	mu    sync.Mutex
	asked map[*anacrolix.Peer]*asked
}

// An asked is one connection of which blocks were asked.
type asked struct {
	swarm  *swarm
	pieces map[int]int // how many blocks of which pieces are open
}

func newWatch() *watch { return &watch{tick: tick, asked: make(map[*anacrolix.Peer]*asked)} }

// overhear has the engine tell what it asks of peers, and what they say. The
// client's lock is held in all of these calls.
func (e *Engine) overhear(cb *anacrolix.Callbacks) {
	w := e.watch
	cb.ReceivedUsefulData = append(cb.ReceivedUsefulData, e.received)
	cb.SentRequest = append(cb.SentRequest, func(ev anacrolix.PeerRequestEvent) {
		v, ok := e.swarms.Load(ev.Peer.Torrent())
		if !ok {
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		a := w.asked[ev.Peer]
		if a == nil {
			a = &asked{v.(*swarm), make(map[int]int)}
			w.asked[ev.Peer] = a
		}
		a.pieces[int(ev.Index)]++
	})
	cb.DeletedRequest = append(cb.DeletedRequest, func(ev anacrolix.PeerRequestEvent) {
		w.mu.Lock()
		defer w.mu.Unlock()
		a := w.asked[ev.Peer]
		if a == nil {
			return
		}
		if a.pieces[int(ev.Index)]--; a.pieces[int(ev.Index)] <= 0 {
			delete(a.pieces, int(ev.Index))
		}
	})
	cb.PeerClosed = append(cb.PeerClosed, func(p *anacrolix.Peer) {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.asked, p)
	})
	cb.ReadMessage = e.screen
}

// screen keeps the hash messages of BEP 52 from the engine. Piece layers come
// with the index, so that no node has anything to ask or to tell; and the engine
// would queue up to 256 KiB for each request, without end. What is marked as a
// keepalive is passed over.
func (e *Engine) screen(c *anacrolix.PeerConn, m *pp.Message) {
	switch m.Type {
	case pp.HashRequest, pp.Hashes, pp.HashReject:
		m.Keepalive = true
		if v, ok := e.swarms.Load(c.Torrent()); ok {
			e.bans.add(nameAt(c.RemoteAddr), hashTalk, v.(*swarm).object.Digest, time.Now())
		}
	}
}

// watchPeers judges connections each tick, and closes those of peers that are
// banned at once, until ctx ends.
func (e *Engine) watchPeers(ctx context.Context) {
	ticker := time.NewTicker(e.watch.tick)
	defer ticker.Stop()
	j := newJudge(e.watch.tick)
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.bans.changed:
		case <-ticker.C:
			seen := e.look()
			for _, c := range j.judge(seen, e.opts.Link.Received()) {
				if c.offence != nil {
					e.bans.add(c.name, *c.offence, c.swarm.object.Digest, time.Now())
				} else {
					e.opts.Logger.Debug("closed a connection that holds up what was asked of it",
						"peer", c.name, "object", c.swarm.object.Digest)
				}
				c.peer.Close()
			}
			e.part()
		}
		e.evict(time.Now())
		e.lines.sweep(time.Now(), e.bans.has)
	}
}

// part closes the connections of nodes that have nothing to give each other any
// more. The engine does that only for a peer that has lost interest by the time
// it tells of its last piece; ours tell of the piece first.
func (e *Engine) part() {
	e.swarms.Range(func(_, v any) bool {
		s := v.(*swarm)
		if !s.torrent.Complete().Bool() {
			return true
		}
		for _, c := range s.torrent.PeerConns() {
			if c.PeerPieces().GetCardinality() == uint64(s.object.Pieces()) {
				c.Close()
			}
		}
		return true
	})
}

// look returns the connections of which blocks were ever asked, as they are now.
func (e *Engine) look() []seen {
	e.watch.mu.Lock()
	all := make([]seen, 0, len(e.watch.asked))
	for p, a := range e.watch.asked {
		s := seen{peer: p, swarm: a.swarm, name: nameAt(p.RemoteAddr), owes: len(a.pieces) > 0}
		for i := range a.pieces {
			s.urgent = s.urgent || a.swarm.isUrgent(i)
		}
		all = append(all, s)
	}
	e.watch.mu.Unlock() // the client's lock comes before it
	for k := range all {
		st := all[k].peer.Stats()
		all[k].bytes, all[k].data = st.BytesRead.Int64(), st.BytesReadData.Int64()
	}
	return all
}

// hurry notes whether readers wait for pieces [first, last).
func (s *swarm) hurry(first, last int, waits bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := first; i < last && (waits || len(s.urgent) > 0); i++ {
		if waits {
			s.urgent[i] = true
		} else {
			delete(s.urgent, i)
		}
	}
}

func (s *swarm) isUrgent(i int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.urgent[i]
}
