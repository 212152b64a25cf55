package tracker

import "fmt"

// Audit counts everything anew and reports what the server has counted wrong.
func (s *Server) Audit() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	used := int64(0)
	for name, n := range s.nodes {
		if len(n.swarms) == 0 {
			return fmt.Errorf("%s is in no swarm", name)
		}
		for id, sw := range n.swarms {
			if s.swarms[id] != sw || sw.members[name] == nil {
				return fmt.Errorf("%s is said to be in swarm %s", name, id)
			}
		}
	}
	for id, sw := range s.swarms {
		if len(sw.members) == 0 {
			return fmt.Errorf("swarm %s has no member", id)
		}
		used += swarmCost(sw.pieces) + int64(len(sw.members))*memberCost(sw.pieces) + int64(len(sw.leases))*leaseCost
		open := sw.pieces
		holders := make([]uint16, sw.pieces)
		for name, m := range sw.members {
			if n := s.nodes[name]; n == nil || n.swarms[id] != sw {
				return fmt.Errorf("%s is not known to be in swarm %s", name, id)
			}
			held := 0
			for i := range sw.pieces {
				if !m.have.Has(i) {
					continue
				}
				held++
				if holders[i]++; holders[i] == 1 {
					open--
				}
			}
			if held != m.held {
				return fmt.Errorf("%s holds %d pieces, counted as %d", name, held, m.held)
			}
		}
		for i := range sw.pieces {
			if holders[i] != sw.holders[i] {
				return fmt.Errorf("piece %d has %d holders, counted as %d", i, holders[i], sw.holders[i])
			}
			if i < sw.next && holders[i] == 0 {
				return fmt.Errorf("piece %d is open, but the next open one is said to be %d", i, sw.next)
			}
		}
		if open != sw.open {
			return fmt.Errorf("%d pieces are open, counted as %d", open, sw.open)
		}
		for zone, bridge := range sw.bridges {
			if sw.members[bridge] == nil || s.nodes[bridge].zone != zone || s.nodes[bridge].addr == "" {
				return fmt.Errorf("%s is said to be the bridge of zone %q", bridge, zone)
			}
		}
		for i := range sw.leases {
			if i < 0 || i >= sw.pieces {
				return fmt.Errorf("piece %d of %d is leased", i, sw.pieces)
			}
		}
	}
	if used != s.used || used > s.opts.Memory {
		return fmt.Errorf("%d bytes are used, counted as %d, of %d", used, s.used, s.opts.Memory)
	}
	return s.hints.audit()
}

// audit is Audit of the hints.
func (h *hints) audit() error {
	used := int64(0)
	for e := h.recent.Front(); e != nil; e = e.Next() {
		b := e.Value.(*blob)
		if h.byBlob[b.digest] != e {
			return fmt.Errorf("blob %s is not found", b.digest)
		}
		used += hintCost + layerCost(b.hint)
	}
	if used != h.used || len(h.byBlob) != h.recent.Len() || used > h.limit && h.recent.Len() > 1 {
		return fmt.Errorf("%d blobs take %d bytes of hints, counted as %d and %d, of %d", h.recent.Len(), used, len(h.byBlob), h.used, h.limit)
	}
	return nil
}

// BodyRoom is bodyRoom.
const BodyRoom = bodyRoom
