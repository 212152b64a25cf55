package tracker

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// Defaults of a Server.
const (
	DefaultInterval = 10 * time.Second
	DefaultLeaseTTL = 15 * time.Second
	DefaultMemory   = 256 << 20
)

// Options of a Server.
type Options struct {
	Interval time.Duration    // between a node's announces; a node silent for three of them is gone; DefaultInterval when 0
	LeaseTTL time.Duration    // how long one node may take to draw a lease; DefaultLeaseTTL when 0
	Memory   int64            // what all announces together may take, in bytes, about, and a quarter of it more for hints; DefaultMemory when 0
	Logger   *slog.Logger     // required
	Now      func() time.Time // the clock; time.Now when nil
}

// A Server is a tracker. It keeps everything in memory and starts nothing;
// what has expired is dropped while answering. It is safe for concurrent use.
type Server struct {
	opts   Options
	bodies *semaphore.Weighted // of bodyRoom

	mu     sync.Mutex
	nodes  map[string]*node
	swarms map[SwarmID]*swarm
	used   int64 // of Options.Memory
	hints  hints
	sweep  time.Time // when all swarms are next looked over
	reads  []read    // leased lately, oldest first
}

// A read is a piece that was leased for a reader.
type read struct {
	swarm *swarm
	piece int
	at    time.Time
}

// readers reports whether readers wait for pieces that they were leased lately.
func (s *Server) readers(now time.Time) bool {
	s.reads = slices.DeleteFunc(s.reads, func(r read) bool {
		return !r.swarm.leases[r.piece].read || now.Sub(r.at) > waiting
	})
	return len(s.reads) > 0
}

// A node is who announced, for as long as it is in a swarm.
type node struct {
	addr   string
	zone   string
	seen   time.Time
	swarms map[SwarmID]*swarm
}

// errFull says that Options.Memory is used up.
var errFull = errors.New("the tracker has no memory for more swarms, nodes or leases; some is free again when nodes leave")

// New returns a Server.
func New(opts Options) *Server {
	if opts.Interval == 0 {
		opts.Interval = DefaultInterval
	}
	if opts.LeaseTTL == 0 {
		opts.LeaseTTL = DefaultLeaseTTL
	}
	if opts.Memory == 0 {
		opts.Memory = DefaultMemory
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	return &Server{
		opts: opts, bodies: semaphore.NewWeighted(bodyRoom),
		nodes: make(map[string]*node), swarms: make(map[SwarmID]*swarm),
		hints: newHints(opts.Memory / 4),
	}
}

// Announce records what a node holds and returns its peers. An announce that
// is refused changes nothing. Announce keeps no reference to a.
func (s *Server) Announce(a Announce) (Peers, error) {
	if err := a.check(); err != nil {
		return Peers{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.opts.Now()
	s.expire(now)
	if err := s.room(a); err != nil {
		return Peers{}, err
	}

	n := s.nodes[a.Node]
	if n == nil {
		n = &node{swarms: make(map[SwarmID]*swarm)}
		s.nodes[a.Node] = n
	}
	n.addr, n.zone, n.seen = a.Addr, a.Zone, now
	left := maps.Clone(n.swarms)
	out := Peers{Interval: Seconds(s.opts.Interval), Swarms: make(map[SwarmID][]Peer, len(a.Swarms))}
	for _, h := range a.Swarms {
		sw := s.swarms[h.Swarm]
		if sw == nil {
			sw = newSwarm(h.Pieces)
			s.swarms[h.Swarm] = sw
			s.used += swarmCost(h.Pieces)
		}
		if n.swarms[h.Swarm] == nil {
			n.swarms[h.Swarm] = sw
			s.used += memberCost(h.Pieces)
		}
		s.charge(sw, func() { sw.hold(a.Node, h.Have) })
		sw.settle(a.Node, a.Zone, a.Addr != "")
		delete(left, h.Swarm)
		out.Swarms[h.Swarm] = s.peers(sw, a.Node)
		if s.isKeeper(h.Swarm, sw, a.Node) {
			out.Keeps = append(out.Keeps, h.Swarm)
		}
	}
	for id := range left {
		s.leave(id, a.Node)
	}
	if len(n.swarms) == 0 {
		delete(s.nodes, a.Node)
	}
	return out, nil
}

// peers returns whom node may exchange pieces of sw with, at most maxPeers of them.
func (s *Server) peers(sw *swarm, node string) []Peer {
	whole, zone := sw.members[node].held == sw.pieces, s.nodes[node].zone
	peers := []Peer{}
	add := func(name string) {
		n, m := s.nodes[name], sw.members[name]
		if len(peers) < maxPeers && name != node && n.addr != "" && !(whole && m.held == sw.pieces) {
			peers = append(peers, Peer{Node: name, Addr: n.addr})
		}
	}
	if sw.bridges[zone] == node {
		for _, bridge := range sw.bridges {
			if s.nodes[bridge].zone != zone {
				add(bridge)
			}
		}
	}
	for name := range sw.members { // in random order
		if s.nodes[name].zone == zone {
			add(name)
		}
	}
	return peers
}

// isKeeper reports whether node is the keeper of a swarm in its zone. Which one
// of those that hold everything it is follows from the swarm and their names, so
// that each node keeps about as much as the others.
func (s *Server) isKeeper(id SwarmID, sw *swarm, node string) bool {
	if sw.members[node].held < sw.pieces {
		return false
	}
	weight := func(name string) uint64 {
		h := fnv.New64a()
		h.Write(id[:])
		io.WriteString(h, name)
		return h.Sum64()
	}
	zone, mine := s.nodes[node].zone, weight(node)
	for name, m := range sw.members {
		if m.held == sw.pieces && s.nodes[name].zone == zone && name != node {
			if w := weight(name); w > mine || w == mine && name < node {
				return false
			}
		}
	}
	return true
}

// room reports whether a fits what the tracker knows and may keep.
func (s *Server) room(a Announce) error {
	more := int64(0)
	for _, h := range a.Swarms {
		sw := s.swarms[h.Swarm]
		switch {
		case sw == nil:
			more += swarmCost(h.Pieces) + memberCost(h.Pieces)
		case sw.pieces != h.Pieces:
			return fmt.Errorf("swarm %s has %d pieces, not %d", h.Swarm, sw.pieces, h.Pieces)
		case sw.members[a.Node] != nil:
		case len(sw.members) == math.MaxUint16:
			return fmt.Errorf("swarm %s: %w", h.Swarm, errFull)
		default:
			more += memberCost(h.Pieces)
		}
	}
	if more > 0 && s.used+more > s.opts.Memory {
		return errFull
	}
	return nil
}

// Lease records finished pieces and gives out new ones. The error is
// ErrUnknown when the node has to announce the swarm first.
func (s *Server) Lease(r LeaseRequest) (Lease, error) {
	if err := r.check(); err != nil {
		return Lease{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.opts.Now()
	s.expire(now)
	sw := s.swarms[r.Swarm]
	if sw == nil || sw.members[r.Node] == nil {
		return Lease{}, ErrUnknown
	}
	if err := sw.check(r); err != nil {
		return Lease{}, err
	}
	s.nodes[r.Node].seen = now
	s.charge(sw, func() { sw.report(r, now) })
	v := sw.seenBy(r)
	v.readers = s.readers(now)
	if r.Max == 0 {
		return Lease{Open: v.count()}, nil
	}
	r.Max = min(r.Max, maxLease)
	if s.used+int64(r.Max)*leaseCost > s.opts.Memory {
		return Lease{}, errFull
	}
	var l Lease
	s.charge(sw, func() { l = v.grant(r, now, now.Add(s.opts.LeaseTTL)) })
	if r.Want >= 0 && l.Count > 0 && len(s.reads) < maxReads {
		s.reads = append(s.reads, read{sw, r.Want, now})
	}
	l.Open = v.count()
	return l, nil
}

// charge calls f, which changes sw's leases, and keeps account of them.
func (s *Server) charge(sw *swarm, f func()) {
	before := len(sw.leases)
	f()
	s.used += leaseCost * int64(len(sw.leases)-before)
}

// leave takes a node out of a swarm, and with the last one the swarm and the node out of s.
func (s *Server) leave(id SwarmID, name string) {
	sw, n := s.swarms[id], s.nodes[name]
	s.charge(sw, func() { sw.leave(name) })
	s.used -= memberCost(sw.pieces)
	if len(sw.members) == 0 {
		delete(s.swarms, id)
		s.used -= swarmCost(sw.pieces) + leaseCost*int64(len(sw.leases))
	}
	if delete(n.swarms, id); len(n.swarms) == 0 {
		delete(s.nodes, name)
	}
}

// expire drops nodes that were silent for three intervals, and leases that are over.
func (s *Server) expire(now time.Time) {
	if now.Before(s.sweep) {
		return
	}
	s.sweep = now.Add(s.opts.Interval)
	for name, n := range s.nodes {
		if now.Sub(n.seen) > 3*s.opts.Interval {
			s.opts.Logger.Info("node is gone", "node", name)
			for id := range n.swarms {
				s.leave(id, name)
			}
		}
	}
	for _, sw := range s.swarms {
		s.charge(sw, func() { sw.expire(now) })
	}
}
