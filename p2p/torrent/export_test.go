package torrent

import (
	"context"
	"net"
	"time"

	"github.com/spate-project/spate/cache/piece"
)

// Refuses reports whether the engine refuses the peer of the given name.
func (e *Engine) Refuses(name string) bool { return e.bans.has(name, time.Now()) }

// Ban bans a peer as one that sent wrong bytes.
func (e *Engine) Ban(name string) {
	e.bans.add(name, wrongBytes, piece.Digest{}, time.Now())
}

// Forgive ends a ban as time does.
func (e *Engine) Forgive(name string) {
	e.bans.mu.Lock()
	defer e.bans.mu.Unlock()
	s := e.bans.list[name]
	s.Until = time.Now()
	e.bans.list[name] = s
}

// InfoOf is what peers meet under.
func InfoOf(t *piece.Tree) ([]byte, error) { return infoOf(t) }

// Hasten makes a tick as short as d, before Run. What is counted in ticks comes sooner.
func (e *Engine) Hasten(d time.Duration) { e.watch.tick = d }

// DialPeer connects to a peer that the engine has learned of, as its swarms do.
func (e *Engine) DialPeer(ctx context.Context, name string) (net.Conn, error) {
	return e.dial.Dial(ctx, name)
}

// Few is how many connections each swarm may have.
const Few = few
