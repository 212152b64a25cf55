package torrent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/spate-project/spate/p2p/identity"
	"github.com/spate-project/spate/p2p/link"
	"github.com/spate-project/spate/p2p/tracker"
)

const handshakeTimeout = 10 * time.Second

// A peerAddr is how the engine knows a peer: by its name in the mesh. A name is
// never an IP address, so that what the engine does by IP address, bans that do
// not end and a sum of every block for their sake, it does not do at all.
type peerAddr string

func (a peerAddr) Network() string { return "tcp" }

func (a peerAddr) String() string { return string(a) }

// nameAt returns the name of the peer that the engine knows as addr.
func nameAt(addr fmt.Stringer) string {
	if a, ok := addr.(peerAddr); ok {
		return string(a)
	}
	return addr.String()
}

// A peerConn is a connection to a peer whose certificate was checked.
type peerConn struct {
	net.Conn
	below   *gatherer
	peer    peerAddr
	expires time.Time // the peer's certificate
}

func (c *peerConn) Write(p []byte) (int, error) {
	if len(p) < gatherLeast {
		return c.Conn.Write(p)
	}
	c.below.hold()
	n, err := c.Conn.Write(p)
	if sent := c.below.send(); err == nil {
		err = sent
	}
	return n, err
}

// secure does the handshake, in the part of over. On an error raw is the caller's still.
func secure(ctx context.Context, raw net.Conn, over func(net.Conn, *tls.Config) *tls.Conn, cfg *tls.Config) (*peerConn, error) {
	below := &gatherer{Conn: raw}
	c := over(below, cfg)
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	state := c.ConnectionState()
	name, err := identity.PeerName(state)
	if err != nil {
		return nil, err
	}
	return &peerConn{c, below, peerAddr(name), state.PeerCertificates[0].NotAfter}, nil
}

// A refusals logs connections that TLS refused. Where certificates are wrong
// there are many: every swarm tries every peer at every announce.
type refusals struct {
	log       *slog.Logger
	sometimes rate.Sometimes
}

func newRefusals(log *slog.Logger) *refusals {
	return &refusals{log: log, sometimes: rate.Sometimes{First: 10, Interval: 10 * time.Second}}
}

func (r *refusals) warn(args ...any) {
	r.sometimes.Do(func() { r.log.Warn("refused a connection to the mesh", args...) })
}

// A dialer connects to peers by the name that they have in the mesh.
type dialer struct {
	id       *identity.Identity
	link     *link.Link
	bans     *bans
	refusals *refusals
	lines    *lines

	mu    sync.Mutex
	known map[string]tracker.Peer // by name
}

// maxKnown bounds the peers whose addresses are remembered; trackers tell them again.
const maxKnown = 1 << 16

// learn remembers where a peer is and returns the address by which Dial finds it.
func (d *dialer) learn(p tracker.Peer) peerAddr {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.known) == maxKnown {
		clear(d.known)
	}
	d.known[p.Node] = p
	return peerAddr(p.Node)
}

// Dial opens a stream to the peer of the name addr.
func (d *dialer) Dial(ctx context.Context, addr string) (net.Conn, error) {
	d.mu.Lock()
	p, ok := d.known[addr]
	d.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("dial peer %s: no such peer", addr)
	}
	if d.bans.has(addr, time.Now()) {
		return nil, fmt.Errorf("dial peer %s: it is banned", addr)
	}
	return d.lines.dial(ctx, p, d.connect)
}

// connect connects to a peer.
func (d *dialer) connect(ctx context.Context, p tracker.Peer) (*peerConn, error) {
	// Peers would only hang up: in TLS 1.3 the dialler is done before it is checked.
	if err := d.id.Check(time.Now()); err != nil {
		d.refusals.warn("peer", p.Node, "addr", p.Addr, "err", err)
		return nil, err
	}
	nd := net.Dialer{Control: limitUnsent}
	raw, err := d.link.Dial(nd.DialContext)(ctx, "tcp", p.Addr)
	if err != nil {
		return nil, err
	}
	c, err := secure(ctx, raw, tls.Client, d.id.Client(p.Node))
	if err == nil && c.peer != peerAddr(p.Node) {
		err = fmt.Errorf("it is named %s", c.peer)
	}
	if err != nil {
		raw.Close()
		if ctx.Err() == nil {
			d.refusals.warn("peer", p.Node, "addr", p.Addr, "err", err)
		}
		return nil, fmt.Errorf("dial peer %s at %s: %w", p.Node, p.Addr, err)
	}
	return c, nil
}

// DialerNetwork names the transport.
func (d *dialer) DialerNetwork() string { return "tcp" }

// A listener hands out the streams that peers open, whose names it knows: a slow
// or hostile handshake holds up no other.
type listener struct {
	net.Listener // behind the link
	tls          *tls.Config
	log          *slog.Logger
	bans         *bans
	refusals     *refusals
	lines        *lines
	once         sync.Once
	closed       chan struct{}
}

func newListener(opts Options, bans *bans, refusals *refusals, lines *lines) *listener {
	return &listener{
		Listener: opts.Link.Listener(opts.Listener),
		tls:      opts.Identity.Server(),
		log:      opts.Logger,
		bans:     bans,
		refusals: refusals,
		lines:    lines,
		closed:   make(chan struct{}),
	}
}

// run takes connections in until ctx ends, then closes the listener. The error is the context's, or
// that somebody else closed the listener.
func (l *listener) run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var shakes sync.WaitGroup
	defer shakes.Wait()
	for {
		raw, err := l.Listener.Accept()
		switch {
		case err == nil:
			shakes.Go(func() { l.shake(ctx, raw) })
			continue
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, net.ErrClosed):
			l.Close()
			return fmt.Errorf("accept peers: %w", err)
		}
		l.log.Error("accept a peer", "err", err) // out of file descriptors, most likely
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (l *listener) shake(ctx context.Context, raw net.Conn) {
	c, err := secure(ctx, raw, tls.Server, l.tls)
	if err != nil {
		if ctx.Err() == nil {
			l.refusals.warn("addr", raw.RemoteAddr(), "err", err)
		}
		raw.Close()
		return
	}
	if l.bans.has(string(c.peer), time.Now()) {
		raw.Close()
		return
	}
	if err := l.lines.add(c, false); err != nil && ctx.Err() == nil {
		l.log.Error("take a peer in", "peer", c.peer, "err", err)
	}
}

// Accept returns the next stream that a peer opened.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.lines.taken:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close stops accepting.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}
