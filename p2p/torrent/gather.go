package torrent

import (
	"net"
	"sync"
)

const (
	// gatherLeast is the size from which on a write is gathered.
	gatherLeast = 32 << 10

	// gatherRoom holds four records of TLS.
	gatherRoom = 4 * (16<<10 + 256)
)

// A gatherer is below TLS, which writes each record of 16 KiB by itself. It
// sends the records of one large write by a few calls: that costs both sides
// less. It is safe for concurrent use.
type gatherer struct {
	net.Conn

	mu      sync.Mutex
	room    []byte // made by the first large write
	holding bool
}

// hold begins a large write.
func (g *gatherer) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.room == nil {
		g.room = make([]byte, 0, gatherRoom)
	}
	g.holding = true
}

// Write sends p, or keeps a copy of it while a large write is under way. Then
// the error may be of what was kept before.
func (g *gatherer) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.holding {
		return g.Conn.Write(p)
	}
	if len(g.room)+len(p) > cap(g.room) {
		if err := g.flush(); err != nil {
			return 0, err
		}
	}
	g.room = append(g.room, p...)
	return len(p), nil
}

// send ends a large write.
func (g *gatherer) send() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holding = false
	return g.flush()
}

func (g *gatherer) flush() error {
	if len(g.room) == 0 {
		return nil
	}
	_, err := g.Conn.Write(g.room)
	g.room = g.room[:0]
	return err
}
