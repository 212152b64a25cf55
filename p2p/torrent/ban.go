package torrent

import (
	"cmp"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/spate-project/spate/cache/piece"
)

// A Ban says that the engine has no connection with a peer for a while.
type Ban struct {
	Peer   string    // its name in the mesh, as its certificate has it
	Reason string    // what it did, in words
	Until  time.Time // when it may connect again
}

// An offence is what a peer is banned for, and for how long the first time.
// Each further ban lasts at least twice as long as the last one, up to longestBan;
// who was not banned for that long after a ban has ended begins anew.
type offence struct {
	reason string
	term   time.Duration
}

const longestBan = 24 * time.Hour

var (
	wrongBytes = offence{"it sent wrong bytes", 10 * time.Minute}
	hashTalk   = offence{"it talks about piece hashes, which every node has from the index", 10 * time.Minute}
	silence    = offence{"it was asked for blocks and sent nothing", time.Minute}
	trickle    = offence{"it was asked for blocks and sent next to nothing", time.Minute}
)

// bans are the peers that are refused. The key is the certificate's name, so
// that a ban holds wherever the peer connects from, and for no one beside it.
type bans struct {
	log     *slog.Logger
	changed chan struct{} // has one element when somebody was banned

	mu   sync.Mutex
	list map[string]sentence // also of those that have ended lately
}

type sentence struct {
	Ban
	term time.Duration
}

func newBans(log *slog.Logger) *bans {
	return &bans{log: log, changed: make(chan struct{}, 1), list: make(map[string]sentence)}
}

// add bans a peer, unless it is banned already, for what it did in the swarm of object d.
func (b *bans) add(name string, o offence, d piece.Digest, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n, s := range b.list {
		if now.Sub(s.Until) > longestBan {
			delete(b.list, n)
		}
	}
	last := b.list[name]
	if now.Before(last.Until) {
		return
	}
	term := min(longestBan, max(o.term, 2*last.term))
	s := sentence{Ban{Peer: name, Reason: o.reason, Until: now.Add(term)}, term}
	b.list[name] = s
	b.log.Warn("banned a peer", "peer", name, "reason", s.Reason, "until", s.Until, "object", d)
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// has reports whether a peer is banned.
func (b *bans) has(name string, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return now.Before(b.list[name].Until)
}

// active returns the bans that hold, by name.
func (b *bans) active(now time.Time) []Ban {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []Ban
	for _, s := range b.list {
		if now.Before(s.Until) {
			all = append(all, s.Ban)
		}
	}
	slices.SortFunc(all, func(x, y Ban) int { return cmp.Compare(x.Peer, y.Peer) })
	return all
}

// Bans returns the peers that are refused now, sorted by name; the caller owns
// the slice. A ban ends by itself and is not kept over a restart. No ban rests on
// suspicion: wrong bytes count where their sender is certain, silence and
// trickle where the node's own link works meanwhile. It is safe for concurrent use.
func (e *Engine) Bans() []Ban { return e.bans.active(time.Now()) }

// Banned returns the names in Bans.
func (e *Engine) Banned() []string {
	var names []string
	for _, b := range e.Bans() {
		names = append(names, b.Peer)
	}
	return names
}

// evict closes the connections of banned peers, in all swarms.
func (e *Engine) evict(now time.Time) {
	if len(e.bans.active(now)) == 0 {
		return
	}
	e.swarms.Range(func(_, v any) bool {
		for _, c := range v.(*swarm).torrent.PeerConns() {
			if e.bans.has(nameAt(c.RemoteAddr), now) {
				c.Close()
			}
		}
		return true
	})
}
