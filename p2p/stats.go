package p2p

import "github.com/spate-project/spate/cache/piece"

// Stats are one object's counts since it joined.
type Stats struct {
	SwarmStats
	OriginBytes  int64 // read from the origin
	OriginPieces int64 // read from the origin and verified
	OriginWrong  int64 // pieces that the origin sent wrong
	Drawing      int64 // pieces that this node draws from the origin now
	Returned     int64 // pieces that were leased and given back without being drawn
}

// Totals are the counts of all objects together, those that left included. What
// is of now (Peers, Drawing) is of those that are in the mesh.
type Totals struct {
	Stats
	Objects int // in the mesh
	Swarms  int // of them, in their swarm
}

// Stats returns the counts of one object; ok is false when it is not in the mesh.
func (m *Mesh) Stats(d piece.Digest) (s Stats, ok bool) {
	mb := m.member(d)
	if mb == nil {
		return Stats{}, false
	}
	return mb.stats(), true
}

// Totals returns the counts so far of everything that this mesh did.
func (m *Mesh) Totals() Totals {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := Totals{Stats: m.past, Objects: len(m.order)}
	for _, mb := range m.order {
		t.add(mb.stats())
		if mb.in() != nil {
			t.Swarms++
		}
	}
	return t
}

// retire keeps the counts of a member that leaves. The caller holds m.mu.
func (m *Mesh) retire(mb *member) {
	s := mb.stats()
	s.Peers, s.Drawing = 0, 0
	m.past.add(s)
}

func (mb *member) stats() Stats {
	s := Stats{
		OriginBytes: mb.originBytes.Load(), OriginPieces: mb.originPieces.Load(), OriginWrong: mb.originWrong.Load(),
		Returned: mb.returned.Load(),
	}
	if sw := mb.in(); sw != nil {
		s.SwarmStats = sw.Stats()
	}
	mb.mu.Lock()
	defer mb.mu.Unlock()
	s.Drawing = int64(len(mb.drawing))
	return s
}

func (s *Stats) add(x Stats) {
	s.Peers += x.Peers
	s.Received += x.Received
	s.Wasted += x.Wasted
	s.Sent += x.Sent
	s.Verified += x.Verified
	s.Refused += x.Refused
	s.OriginBytes += x.OriginBytes
	s.OriginPieces += x.OriginPieces
	s.OriginWrong += x.OriginWrong
	s.Drawing += x.Drawing
	s.Returned += x.Returned
}
