package tracker

// Stats are what a Server knows now.
type Stats struct {
	Nodes  int   `json:"nodes"`
	Swarms int   `json:"swarms"`
	Leases int   `json:"leases"` // pieces that a node may draw and nobody else
	Open   int   `json:"open"`   // pieces of all swarms that no node holds, leased ones included
	Hints  int   `json:"hints"`  // blobs that have a hint or are drawn
	Memory int64 `json:"memory"` // what all that takes, in bytes, about
}

// Stats returns what the tracker knows now. A node that fell silent counts until
// it is dropped; a lease that is over does not. It looks at every lease.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.opts.Now()
	s.expire(now)
	st := Stats{Nodes: len(s.nodes), Swarms: len(s.swarms), Hints: len(s.hints.byBlob), Memory: s.used + s.hints.used}
	for _, sw := range s.swarms {
		st.Open += sw.open
		for _, l := range sw.leases {
			if l.live(now) {
				st.Leases++
			}
		}
	}
	return st
}
