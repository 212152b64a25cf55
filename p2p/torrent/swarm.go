package torrent

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	anacrolix "github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/types"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/tracker"
)

// writePause is how long an object's download rests after a block could not be stored.
const writePause = 5 * time.Second

// A swarm is the torrent of one object and, in storage.go, that torrent's storage.
type swarm struct {
	engine  *Engine
	holding p2p.Holding
	object  piece.Object
	torrent *anacrolix.Torrent

	verified, refused atomic.Int64
	resting           atomic.Bool

	mu      sync.Mutex
	senders map[int][]string // who sent blocks of a piece that is not whole yet
	own     map[int]bool     // pieces that this swarm is committing

	suspects map[int][]sentBlock // of pieces that failed, with blocks of several senders
	urgent   map[int]bool        // pieces that a reader waits for

	life sync.RWMutex // held to read while the torrent is told something
	left bool
}

var priorities = [...]types.PiecePriority{
	p2p.None:  types.PiecePriorityNone,
	p2p.Fill:  types.PiecePriorityNormal,
	p2p.Ahead: types.PiecePriorityHigh, // PiecePriorityReadahead is in the order of pieces: nodes that read the same would have nothing to exchange
	p2p.Now:   types.PiecePriorityNow,
}

func (s *swarm) Want(first, last int, u p2p.Urgency) {
	if first == 0 && last == s.object.Pieces() && u == p2p.Fill {
		s.torrent.DownloadAll() // raises only: what is urgent stays so
		return
	}
	s.hurry(first, last, u == p2p.Now)
	for i := first; i < last; i++ {
		if !s.holding.Has(i) {
			s.torrent.Piece(i).SetPriority(priorities[u])
		}
	}
}

func (s *swarm) AddPeers(peers []tracker.Peer) {
	now := time.Now()
	connected := make(map[string]bool)
	for _, c := range s.torrent.PeerConns() {
		connected[nameAt(c.RemoteAddr)] = true
	}
	infos := make([]anacrolix.PeerInfo, 0, len(peers))
	for _, p := range peers {
		if p.Node != s.engine.opts.Identity.Name() && !connected[p.Node] && !s.engine.bans.has(p.Node, now) {
			infos = append(infos, anacrolix.PeerInfo{Addr: s.engine.dial.learn(p), Source: anacrolix.PeerSourceTracker})
		}
	}
	// Each would take another's place where there is no room.
	rand.Shuffle(len(infos), func(i, j int) { infos[i], infos[j] = infos[j], infos[i] })
	s.torrent.AddPeers(infos[:min(len(infos), s.engine.budget.room(s.torrent))])
}

func (s *swarm) Held(i int) bool {
	return slices.ContainsFunc(s.torrent.PeerConns(), func(c *anacrolix.PeerConn) bool {
		return c.PeerPieces().ContainsInt(i)
	})
}

func (s *swarm) Spread(i int) (holders, peers int) {
	for _, c := range s.torrent.PeerConns() {
		peers++
		if c.PeerPieces().ContainsInt(i) {
			holders++
		}
	}
	return holders, peers
}

func (s *swarm) Stats() p2p.SwarmStats {
	st := s.torrent.Stats()
	return p2p.SwarmStats{
		Peers:    st.ActivePeers,
		Received: st.BytesReadUsefulData.Int64(),
		Wasted:   st.ChunksReadWasted.Int64(),
		Sent:     st.BytesWrittenData.Int64(),
		Verified: s.verified.Load(),
		Refused:  s.refused.Load(),
	}
}

func (s *swarm) Leave() {
	s.forget()
	s.engine.swarms.Delete(s.torrent)
	s.torrent.Drop()
}

// forget ends what the holding tells the torrent. The holding keeps its
// watchers, and may be in another swarm by the next time it calls them: in the
// middle of a commit, say, where the engine's lock must not be asked for.
func (s *swarm) forget() {
	s.life.Lock()
	defer s.life.Unlock()
	s.left = true
}

// present tells peers of a piece that came into the holding from elsewhere.
func (s *swarm) present(i int) {
	s.mu.Lock()
	own := s.own[i]
	if !own {
		delete(s.senders, i)
	}
	delete(s.urgent, i)
	s.mu.Unlock()
	s.convict(i)
	if !own {
		s.alive(s.torrent.Piece(i).UpdateCompletion)
	}
}

// alive calls f unless the swarm was left.
func (s *swarm) alive(f func()) {
	s.life.RLock()
	defer s.life.RUnlock()
	if !s.left {
		f()
	}
}

// writeFailed is told when a block or a piece could not be stored, as on a full
// disk. The object's download rests; what the node holds stays shared.
func (s *swarm) writeFailed(err error) {
	if s.resting.Swap(true) {
		return
	}
	s.engine.opts.Logger.Error("store what a peer sent; the object's download rests",
		"object", s.object.Digest, "rest", writePause, "err", err)
	s.alive(s.torrent.DisallowDataDownload)
	time.AfterFunc(writePause, func() {
		s.resting.Store(false)
		s.alive(s.torrent.AllowDataDownload)
	})
}
