// Package torrent is the mesh's engine on anacrolix/torrent: BitTorrent v2
// (BEP 52) over mutual TLS.
//
// One torrent stands for one object. Its info dictionary follows from the
// object's proven tree, so that the info hash needs no .torrent file and no
// hash comes from a peer. The holding is the torrent's storage, and the only one
// that hashes what peers send. Trackers, DHT, PEX, uTP and web seeds are off: peers
// come from the mesh's own tracker, and the origin is not a peer.
package torrent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	g "github.com/anacrolix/generics"
	anacrolix "github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/bencode"
	"github.com/anacrolix/torrent/metainfo"
	pp "github.com/anacrolix/torrent/peer_protocol"
	infohash_v2 "github.com/anacrolix/torrent/types/infohash-v2"
	"golang.org/x/time/rate"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/identity"
	"github.com/spate-project/spate/p2p/link"
	"github.com/spate-project/spate/p2p/tracker"
)

const (
	// BlockSize is what one request asks for, in bytes; every node of a mesh uses the same
	// value. At 256 KiB a transfer costs as much CPU and a connection half a MiB
	// more memory, at 64 KiB a tenth more CPU.
	BlockSize = 128 << 10

	// queue is how many requests a peer may have open with this node: 1 MiB. A
	// deeper queue makes an urgent request wait longer, and binds blocks to one
	// peer that others could send sooner by then.
	queue = 8

	// readAhead is how much is held in memory to be sent to a peer next.
	readAhead = 2 * BlockSize

	// maxPeers bounds the connections of one swarm.
	maxPeers = 50
)

// Options of an Engine.
type Options struct {
	Identity *identity.Identity // who this node is; required
	Listener net.Listener       // where peers connect; the engine closes it
	Addr     string             // where peers reach the listener, host:port; its own address when empty
	Link     *link.Link         // the node's bandwidth limits; required
	Logger   *slog.Logger       // required

	// MaxConns bounds the connections of all swarms together, dialled and
	// accepted; 128 when 0. Swarms share them equally as far as each has use for
	// its share, whenever they were joined, but each may have 4 in any case. Those
	// whose handshake is not over do not count. A connection on which pieces are
	// sent takes about 0.8 MiB of memory, another 0.3 MiB.
	MaxConns int
}

// An Engine is a p2p.Engine. It is safe for concurrent use.
type Engine struct {
	opts   Options
	client *anacrolix.Client
	listen *listener
	dial   *dialer
	lines  *lines

	swarms sync.Map // *anacrolix.Torrent to *swarm
	bans   *bans
	watch  *watch
	budget *budget
	seed   maphash.Seed // of the sums of suspect blocks

	life  sync.RWMutex // held to read while a swarm is joined
	ended bool         // Run has returned, or is about to
}

var _ p2p.Engine = (*Engine)(nil)

// New returns an Engine. Peers are accepted from Run on, and only Run's end
// frees what the engine took, so that it must be called.
func New(opts Options) (*Engine, error) {
	e := &Engine{opts: opts, bans: newBans(opts.Logger), watch: newWatch(), seed: maphash.MakeSeed()}
	e.budget = newBudget(cmp.Or(opts.MaxConns, DefaultConns))
	refusals := newRefusals(opts.Logger)
	e.lines = newLines(opts.Identity.Name(), opts.Logger)
	e.dial = &dialer{
		id: opts.Identity, link: opts.Link, bans: e.bans, refusals: refusals,
		lines: e.lines, known: make(map[string]tracker.Peer),
	}

	name := sha256.Sum256([]byte(opts.Identity.Name()))
	cfg := anacrolix.NewDefaultClientConfig()
	cfg.PeerID = "-SP0100-" + string(name[:12])
	cfg.Slogger = slog.New(quiet{opts.Logger.Handler()})
	cfg.DisableTCP, cfg.DisableUTP, cfg.NoDHT, cfg.DisablePEX = true, true, true, true
	cfg.DisableTrackers, cfg.DisableWebtorrent, cfg.DisableWebseeds = true, true, true
	cfg.NoDefaultPortForwarding = true
	cfg.DialForPeerConns = false // only by our own dialer
	cfg.HeaderObfuscationPolicy = anacrolix.HeaderObfuscationPolicy{RequirePreferred: true}
	cfg.Seed = true
	// Pieces that nobody holds yet count as unverified too, and at the default
	// of 64 MiB no node would ask another for anything.
	cfg.MaxUnverifiedBytes = 0
	cfg.StealRequestGrace = 2 * time.Second
	cfg.MaxAllocPeerRequestDataPerConn = readAhead
	cfg.EstablishedConnsPerTorrent = maxPeers
	cfg.DropDuplicatePeerIds = true
	cfg.DialRateLimiter = rate.NewLimiter(200, 200)
	cfg.HandshakesTimeout = 20 * time.Second
	cfg.DefaultStorage = noStorage{} // or the engine opens a database in the working directory
	cfg.Callbacks.ReadExtendedHandshake = func(_ *anacrolix.PeerConn, m *pp.ExtendedHandshakeMessage) {
		m.Reqq = min(m.Reqq, queue)
	}
	e.overhear(&cfg.Callbacks)
	e.budget.keep(&cfg.Callbacks)

	if sc, ok := opts.Listener.(syscall.Conn); ok {
		raw, err := sc.SyscallConn()
		if err == nil {
			err = limitUnsent("", "", raw)
		}
		if err != nil {
			return nil, fmt.Errorf("start the mesh engine: %w", err)
		}
	}
	var err error
	if e.client, err = anacrolix.NewClient(cfg); err != nil {
		return nil, fmt.Errorf("start the mesh engine: %w", err)
	}
	e.listen = newListener(opts, e.bans, refusals, e.lines)
	e.client.AddDialer(e.dial)
	e.client.AddListener(e.listen)
	return e, nil
}

// Run accepts peers and watches them until ctx ends, then closes every connection and the
// listener. It returns the context's error, and ends early only when somebody
// else closes the listener.
func (e *Engine) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { e.watchPeers(ctx) })
	err := e.listen.run(ctx)
	cancel()
	watching.Wait()
	e.life.Lock()
	e.ended = true
	e.life.Unlock()
	e.swarms.Range(func(_, s any) bool {
		s.(*swarm).forget()
		return true
	})
	failed := e.client.Close()
	e.lines.close()
	return errors.Join(append(failed, err)...)
}

// Addr returns where peers reach this node.
func (e *Engine) Addr() string { return cmp.Or(e.opts.Addr, e.opts.Listener.Addr().String()) }

// Join enters the swarm of h's object. It fails after Run has returned.
func (e *Engine) Join(h p2p.Holding) (p2p.Swarm, error) {
	o := h.Tree().Object()
	info, err := infoOf(h.Tree())
	if err != nil {
		return nil, err
	}
	e.life.RLock()
	defer e.life.RUnlock()
	if e.ended {
		return nil, errors.New("the mesh engine has ended")
	}
	s := &swarm{engine: e, holding: h, object: o, senders: make(map[int][]string), own: make(map[int]bool),
		suspects: make(map[int][]sentBlock), urgent: make(map[int]bool)}
	opts := anacrolix.AddTorrentOpts{
		// Peers meet under the info dictionary's SHA-1. Under its SHA-256 the
		// engine would look for missing piece hashes before each message it
		// writes, piece by piece; here none is ever missing.
		InfoHash:   metainfo.HashBytes(info),
		InfoHashV2: g.Some(infohash_v2.HashBytes(info)), InfoBytes: info,
		Storage:   s,
		ChunkSize: pp.Integer(min(BlockSize, o.PieceLength)),
	}
	if layer := h.Tree().Layer(); layer != nil {
		opts.PieceLayers = map[string]string{string(o.Root[:]): string(layer)}
	}
	had := make([]bool, o.Pieces())
	for i := range had {
		had[i] = h.Has(i)
	}
	t, isNew := e.client.AddTorrentOpt(opts)
	s.torrent = t
	switch {
	case !isNew:
		return nil, fmt.Errorf("object %s is in its swarm already", o.Digest)
	case t.Info() == nil:
		t.Drop()
		return nil, fmt.Errorf("object %s: the engine refuses its info dictionary", o.Digest)
	}
	e.swarms.Store(t, s)
	t.SetOnWriteChunkError(s.writeFailed)
	h.OnPresent(s.present)
	for i := range had { // what came while the torrent was set up
		if !had[i] && h.Has(i) {
			s.present(i)
		}
	}
	return s, nil
}

// infoOf returns the bencoded info dictionary of t's object (BEP 52): a torrent
// of one file that is named by its digest. In form it is a hybrid, for the
// engine lets a storage vouch for its pieces only where there are hashes of
// version 1. These are the piece layer's, cut to their length.
func infoOf(t *piece.Tree) ([]byte, error) {
	o := t.Object()
	pieces := make([]byte, 0, o.Pieces()*metainfo.HashSize)
	for i := range o.Pieces() {
		short := shortHash(t, i)
		pieces = append(pieces, short[:]...)
	}
	info := metainfo.Info{
		Name:        o.Digest.Hex(),
		PieceLength: o.PieceLength,
		Length:      o.Size,
		Pieces:      pieces,
		MetaVersion: 2,
		FileTree: metainfo.FileTree{Dir: map[string]metainfo.FileTree{
			o.Digest.Hex(): {File: metainfo.FileTreeFile{Length: o.Size, PiecesRoot: string(o.Root[:])}},
		}},
	}
	// By pointer: the file tree's marshaller is a pointer method.
	b, err := bencode.Marshal(&info)
	if err != nil {
		return nil, fmt.Errorf("encode the info dictionary of object %s: %w", o.Digest, err)
	}
	return b, nil
}

// shortHash returns what the info dictionary has as the hash of piece i.
func shortHash(t *piece.Tree, i int) metainfo.Hash {
	h := t.Hash(i)
	return metainfo.Hash(h[:metainfo.HashSize])
}
