package tracker

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// Defaults of a Server.
const (
	DefaultInterval = 10 * time.Second
	DefaultLeaseTTL = 15 * time.Second
)

// Options of a Server. The zero value is ready for use.
type Options struct {
	Interval time.Duration    // between a node's announces; a node silent for three of them is gone
	LeaseTTL time.Duration    // how long one node may take to draw a lease
	Logger   *slog.Logger     // required
	Now      func() time.Time // the clock; time.Now when nil
}

// A Server is a tracker. It keeps everything in memory and starts nothing;
// what has expired is dropped while answering. It is safe for concurrent use.
type Server struct {
	opts Options

	mu     sync.Mutex
	swarms map[SwarmID]*swarm
	sweep  time.Time // when all swarms are next looked over
}

// A swarm is what the tracker knows of one object.
type swarm struct {
	pieces  int
	members map[string]*member
	holders []uint16 // how many members hold each piece
	open    int      // pieces that nobody holds
	next    int      // no piece below it is open
	leases  map[int]lease
}

type member struct {
	addr string
	seen time.Time
	have Bitmap
}

type lease struct {
	node  string
	until time.Time
}

// New returns a Server.
func New(opts Options) *Server {
	if opts.Interval == 0 {
		opts.Interval = DefaultInterval
	}
	if opts.LeaseTTL == 0 {
		opts.LeaseTTL = DefaultLeaseTTL
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	return &Server{opts: opts, swarms: make(map[SwarmID]*swarm)}
}

// Announce records what a node holds and returns its peers.
func (s *Server) Announce(a Announce) (Peers, error) {
	if err := a.check(); err != nil {
		return Peers{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.opts.Now()
	s.expire(now)

	in := make(map[SwarmID]bool, len(a.Swarms))
	out := Peers{Interval: Seconds(s.opts.Interval), Swarms: make(map[SwarmID][]Peer, len(a.Swarms))}
	for _, h := range a.Swarms {
		sw := s.swarms[h.Swarm]
		if sw == nil {
			sw = &swarm{
				pieces: h.Pieces, open: h.Pieces,
				members: make(map[string]*member), holders: make([]uint16, h.Pieces), leases: make(map[int]lease),
			}
			s.swarms[h.Swarm] = sw
		}
		if sw.pieces != h.Pieces {
			return Peers{}, fmt.Errorf("swarm %s has %d pieces, not %d", h.Swarm, sw.pieces, h.Pieces)
		}
		in[h.Swarm] = true
		sw.hold(a.Node, a.Addr, h.Have, now)
		peers := []Peer{}
		for name, m := range sw.members {
			if name != a.Node && m.addr != "" {
				peers = append(peers, Peer{Node: name, Addr: m.addr})
			}
		}
		out.Swarms[h.Swarm] = peers
	}
	for id, sw := range s.swarms {
		if sw.members[a.Node] != nil && !in[id] {
			s.leave(id, sw, a.Node)
		}
	}
	return out, nil
}

// Lease records finished pieces and gives out new ones.
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
	m := sw.members[r.Node]
	m.seen = now
	for _, i := range r.Done {
		if i < 0 || i >= sw.pieces {
			return Lease{}, fmt.Errorf("piece %d of %d", i, sw.pieces)
		}
		if !m.have.Has(i) {
			m.have.Set(i)
			sw.add(i)
		}
		delete(sw.leases, i)
	}
	for _, i := range r.Failed {
		if sw.leases[i].node == r.Node {
			delete(sw.leases, i)
		}
	}
	l := Lease{TTL: Seconds(s.opts.LeaseTTL)}
	if r.Max > 0 {
		l.First, l.Count = sw.grant(r, now, now.Add(s.opts.LeaseTTL))
	}
	l.Open = sw.open
	return l, nil
}

// grant leases up to r.Max consecutive pieces and returns them.
func (sw *swarm) grant(r LeaseRequest, now, until time.Time) (first, count int) {
	free := func(i int) bool {
		l, leased := sw.leases[i]
		return (sw.holders[i] == 0 || r.Unheld) && (!leased || !now.Before(l.until))
	}
	switch {
	case r.Want >= sw.pieces:
		return 0, 0
	case r.Want >= 0:
		first = r.Want
		l, leased := sw.leases[first]
		taken := leased && now.Before(l.until) && l.node != r.Node
		if taken || (sw.holders[first] > 0 && !r.Unheld) {
			return 0, 0
		}
	default:
		for sw.next < sw.pieces && sw.holders[sw.next] > 0 {
			sw.next++
		}
		for first = sw.next; first < sw.pieces && !free(first); first++ {
		}
		if first == sw.pieces {
			return 0, 0
		}
	}
	for count = 1; count < r.Max && first+count < sw.pieces && free(first+count); count++ {
	}
	for i := first; i < first+count; i++ {
		sw.leases[i] = lease{node: r.Node, until: until}
	}
	return first, count
}

// hold replaces what node holds by have.
func (sw *swarm) hold(node, addr string, have Bitmap, now time.Time) {
	m := sw.members[node]
	if m == nil {
		m = &member{have: NewBitmap(sw.pieces)}
		sw.members[node] = m
	}
	m.addr, m.seen = addr, now
	for i := range sw.pieces {
		switch had, has := m.have.Has(i), have.Has(i); {
		case has && !had:
			sw.add(i)
		case had && !has:
			sw.remove(i)
		}
	}
	clear(m.have)
	copy(m.have, have)
}

func (sw *swarm) add(i int) {
	if sw.holders[i]++; sw.holders[i] == 1 {
		sw.open--
	}
}

func (sw *swarm) remove(i int) {
	if sw.holders[i]--; sw.holders[i] == 0 {
		sw.open++
		sw.next = min(sw.next, i)
	}
}

// leave takes node out of the swarm, and the swarm out of s when it was the last.
func (s *Server) leave(id SwarmID, sw *swarm, node string) {
	m := sw.members[node]
	for i := range sw.pieces {
		if m.have.Has(i) {
			sw.remove(i)
		}
	}
	delete(sw.members, node)
	for i, l := range sw.leases {
		if l.node == node {
			delete(sw.leases, i)
		}
	}
	if len(sw.members) == 0 {
		delete(s.swarms, id)
	}
}

// expire drops nodes that were silent for three intervals.
func (s *Server) expire(now time.Time) {
	if now.Before(s.sweep) {
		return
	}
	s.sweep = now.Add(s.opts.Interval)
	for id, sw := range s.swarms {
		for node, m := range sw.members {
			if now.Sub(m.seen) > 3*s.opts.Interval {
				s.opts.Logger.Info("node is gone", "node", node, "swarm", id)
				s.leave(id, sw, node)
			}
		}
	}
}

// ServeHTTP serves AnnouncePath and LeasePath.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case AnnouncePath:
		serve(w, r, s.Announce)
	case LeasePath:
		serve(w, r, s.Lease)
	default:
		http.NotFound(w, r)
	}
}

func serve[Req, Resp any](w http.ResponseWriter, r *http.Request, do func(Req) (Resp, error)) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "use POST", http.StatusMethodNotAllowed)
		return
	}
	var req Req
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, MaxBody)).Decode(&req); err != nil {
		http.Error(w, "read the request: "+err.Error(), http.StatusBadRequest)
		return
	}
	resp, err := do(req)
	switch {
	case errors.Is(err, ErrUnknown):
		http.Error(w, err.Error(), http.StatusConflict)
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	default:
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(resp)
	}
}
