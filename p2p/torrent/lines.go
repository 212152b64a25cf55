package torrent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/xtaci/smux"
	"golang.org/x/sync/singleflight"

	"github.com/spate-project/spate/p2p/tracker"
)

const (
	// frame is how much of a stream's bytes is sent at once, before another
	// stream's turn. With smux's 8 bytes it fills four records of TLS.
	frame = 4*16<<10 - 8

	// streamRoom is how much may have arrived on one stream that the engine has
	// not read, in bytes. lineRoom, for all of a line, is more than all streams on
	// which pieces are sent fill: once it is full the line is not read, new streams
	// wait, and with both sides so they wait for each other.
	streamRoom = 512 << 10
	lineRoom   = 64 * streamRoom

	// maxStreams is how many streams a peer's line may have: as many swarms as
	// two nodes might share, and more.
	maxStreams = 1 << 10

	// unused is for how long a line without streams stays.
	unused = 30 * time.Second
)

// A line is a connection to a peer. Each swarm that both are in has a stream of
// its own on it: models have many files, and what each pair of nodes sent over a
// connection for each of them would compete with itself, and shake hands each time.
type line struct {
	*smux.Session
	peer    peerAddr
	dialler string    // the name of the node that dialled
	expires time.Time // the peer's certificate
	idle    time.Time // since when it has had no stream; zero when it has some; the sweep's
}

// A stream is one swarm's connection to a peer.
type stream struct {
	*smux.Stream
	peer peerAddr
}

func (s stream) RemoteAddr() net.Addr { return s.peer }

// Close does not wait until the peer is told, which one that reads nothing would
// hold up: the engine closes streams with its client's lock held.
func (s stream) Close() error {
	go s.Stream.Close()
	return nil
}

// lines holds a node's lines: at most a few with each peer, of which one is
// used for new streams.
type lines struct {
	node  string
	log   *slog.Logger
	taken chan net.Conn // streams that peers opened
	dials singleflight.Group

	mu      sync.Mutex
	all     map[*line]bool
	to      map[peerAddr]*line // where streams to a peer are opened
	ended   bool
	closed  chan struct{} // closed when ended is set
	serving sync.WaitGroup
}

func newLines(node string, log *slog.Logger) *lines {
	return &lines{
		node: node, log: log, taken: make(chan net.Conn),
		all: make(map[*line]bool), to: make(map[peerAddr]*line), closed: make(chan struct{}),
	}
}

// dial opens a stream to a peer, over a line that connect makes where there is none.
func (ls *lines) dial(ctx context.Context, p tracker.Peer, connect func(context.Context, tracker.Peer) (*peerConn, error)) (net.Conn, error) {
	if c := ls.open(p.Node); c != nil {
		return c, nil
	}
	made := ls.dials.DoChan(p.Node, func() (any, error) {
		// For all who wait for it, and not for the first one only.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), handshakeTimeout)
		defer cancel()
		go func() {
			select {
			case <-ls.closed:
				cancel()
			case <-ctx.Done():
			}
		}()
		c, err := connect(ctx, p)
		if err != nil {
			return nil, err
		}
		return nil, ls.add(c, true)
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r := <-made:
		if r.Err != nil {
			return nil, r.Err
		}
	}
	if c := ls.open(p.Node); c != nil {
		return c, nil
	}
	return nil, errors.New("the connection was closed at once")
}

// open opens a stream over the line that there is to a peer; without one it returns nil.
func (ls *lines) open(peer string) net.Conn {
	ls.mu.Lock()
	l := ls.to[peerAddr(peer)]
	ls.mu.Unlock()
	if l == nil || time.Now().After(l.expires) {
		return nil
	}
	s, err := l.OpenStream()
	if err != nil {
		l.Close()
		return nil
	}
	return stream{s, l.peer}
}

// add makes a line of a connection that this node dialled, or a peer, and takes
// in the streams that the peer opens on it. It owns c from now on.
func (ls *lines) add(c *peerConn, dialled bool) error {
	over, dialler := smux.Server, string(c.peer)
	if dialled {
		over, dialler = smux.Client, ls.node
	}
	s, err := over(c, &smux.Config{
		Version: 2, KeepAliveInterval: 10 * time.Second, KeepAliveTimeout: 30 * time.Second,
		MaxFrameSize: frame, MaxStreamBuffer: streamRoom, MaxReceiveBuffer: lineRoom,
	})
	if err != nil {
		c.Close()
		return err
	}
	l := &line{Session: s, peer: c.peer, dialler: dialler, expires: c.expires}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.ended {
		l.Close()
		return net.ErrClosed
	}
	ls.all[l] = true
	// Where both dialled at once, both use the line of the one whose name comes first.
	if cur := ls.to[l.peer]; cur == nil || cur.IsClosed() || l.dialler <= cur.dialler {
		ls.to[l.peer] = l
	}
	ls.serving.Go(func() { ls.serve(l) })
	return nil
}

// serve takes in what the peer opens until the line ends.
func (ls *lines) serve(l *line) {
	defer ls.remove(l)
	for {
		s, err := l.AcceptStream()
		if err != nil {
			return
		}
		if l.NumStreams() > maxStreams {
			ls.log.Warn("closed the connection of a peer that opens streams without end", "peer", l.peer, "streams", maxStreams)
			return
		}
		select {
		case ls.taken <- stream{s, l.peer}:
		case <-l.CloseChan():
		case <-ls.closed:
		}
	}
}

// remove closes a line and forgets it.
func (ls *lines) remove(l *line) {
	l.Close()
	ls.mu.Lock()
	defer ls.mu.Unlock()
	delete(ls.all, l)
	if ls.to[l.peer] == l {
		delete(ls.to, l.peer)
	}
}

// sweep closes lines that are of no use: to peers that refused names, whose
// certificate ended, and those that have had no stream for a while.
func (ls *lines) sweep(now time.Time, refused func(peer string, now time.Time) bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for l := range ls.all {
		switch {
		case l.NumStreams() > 0:
			l.idle = time.Time{}
		case l.idle.IsZero():
			l.idle = now
		}
		if now.After(l.expires) || refused(string(l.peer), now) || !l.idle.IsZero() && now.Sub(l.idle) > unused {
			go l.Close() // it may wait for what is being written; serve forgets it
		}
	}
}

// close closes all lines and makes no more. It returns when nothing of them is left.
func (ls *lines) close() {
	ls.mu.Lock()
	if !ls.ended {
		ls.ended = true
		close(ls.closed)
	}
	for l := range ls.all {
		go l.Close()
	}
	ls.mu.Unlock()
	ls.serving.Wait()
}
