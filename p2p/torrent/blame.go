package torrent

import (
	"hash/maphash"
	"slices"
	"time"

	anacrolix "github.com/anacrolix/torrent"
)

// Where all blocks of a piece that failed came from one peer, it is certain who
// sent wrong bytes. Where they came from several, the piece is suspect: from then
// on each of its blocks is remembered by sender and sum until the right bytes are
// here, from whomever, and tell which sums were wrong. Nobody is banned in
// between. As long as no piece fails, nothing is summed.

// A sentBlock is a block of a suspect piece.
type sentBlock struct {
	name   string
	off, n int64 // within the piece
	sum    uint64
}

// maxSent bounds the blocks that are remembered of a piece.
const maxSent = 1 << 10

// received notes who sent a block, before it is written. The client's lock is held.
func (e *Engine) received(ev anacrolix.ReceivedUsefulDataEvent) {
	v, ok := e.swarms.Load(ev.Peer.Torrent())
	if !ok {
		return
	}
	m := ev.Message
	v.(*swarm).sent(int(m.Index), nameAt(ev.Peer.RemoteAddr), int64(m.Begin), m.Piece)
}

// sent notes that a peer sent a block of piece i, at off within it.
func (s *swarm) sent(i int, name string, off int64, block []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.senders[i], name) {
		s.senders[i] = append(s.senders[i], name)
	}
	if sent, suspect := s.suspects[i]; suspect && len(sent) < maxSent {
		s.suspects[i] = append(sent, sentBlock{name, off, int64(len(block)), maphash.Bytes(s.engine.seed, block)})
	}
}

// accuse is told who sent the blocks of a piece that did not match.
func (s *swarm) accuse(i int, senders []string) {
	if len(senders) == 1 {
		s.engine.bans.add(senders[0], wrongBytes, s.object.Digest, time.Now())
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, suspect := s.suspects[i]; !suspect {
		s.suspects[i] = nil
	}
}

// convict is told that piece i is present, and bans who sent other bytes of it before.
func (s *swarm) convict(i int) {
	s.mu.Lock()
	sent := s.suspects[i]
	delete(s.suspects, i)
	s.mu.Unlock()
	at, _ := s.object.Span(i)
	for _, b := range sent {
		right := make([]byte, b.n)
		if _, err := s.holding.ReadAt(right, at+b.off); err != nil {
			return // nobody is convicted without evidence
		}
		if maphash.Bytes(s.engine.seed, right) != b.sum {
			s.engine.bans.add(b.name, wrongBytes, s.object.Digest, time.Now())
		}
	}
}
