package orders

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/spate-project/spate/cache/piece"
)

// Bounds of what is kept of nodes' caches.
const (
	MaxHeld  = 2048    // objects in one report
	maxStock = 1 << 19 // objects of all nodes together; what is told beyond is left out
)

// A Stock is what a node's cache holds, and how much it may. Bytes are of verified pieces.
type Stock struct {
	Quota   int64  `json:"quotaBytes"` // 0 is none
	Used    int64  `json:"usedBytes"`
	Objects []Held `json:"objects"` // MaxHeld at most
}

// Held is an object that a node holds, whole or in part.
type Held struct {
	Digest piece.Digest `json:"digest"`
	Bytes  int64        `json:"haveBytes"`
	Size   int64        `json:"sizeBytes"`
}

func (s *Stock) check() error {
	if len(s.Objects) > MaxHeld {
		return fmt.Errorf("%d objects in a cache, at most %d are accepted", len(s.Objects), MaxHeld)
	}
	if s.Quota < 0 || s.Used < 0 {
		return fmt.Errorf("a cache with %d of %d bytes", s.Used, s.Quota)
	}
	for _, h := range s.Objects {
		if h.Bytes < 0 || h.Bytes > h.Size {
			return fmt.Errorf("object %s with %d of %d bytes", h.Digest, h.Bytes, h.Size)
		}
	}
	return nil
}

// stock is a Stock as a Board keeps it.
type stock struct {
	quota, used int64
	held        map[piece.Digest]Held
}

// restock keeps what a node told last. The caller holds b.mu.
func (b *Board) restock(n *node, told *Stock) {
	b.unstock(n)
	n.stock = stock{quota: told.Quota, used: told.Used, held: make(map[piece.Digest]Held)}
	for _, h := range told.Objects {
		if b.stocked == maxStock {
			break
		}
		if _, again := n.stock.held[h.Digest]; !again {
			b.stocked++
		}
		n.stock.held[h.Digest] = h
	}
}

// unstock forgets what a node holds. The caller holds b.mu.
func (b *Board) unstock(n *node) {
	b.stocked -= len(n.stock.held)
	n.stock = stock{}
}

// An Object is one of those that a reference has.
type Object struct {
	Digest piece.Digest
	Size   int64 // about, in bytes; what a node says that holds some of it counts more
}

// A Place is how suitable a node is for what needs some objects.
type Place struct {
	Node  string  `json:"node"`
	Zone  string  `json:"zone,omitempty"`
	Have  int64   `json:"haveBytes"` // of the objects, verified
	Total int64   `json:"totalBytes"`
	Share float64 `json:"share"`     // Have / Total
	Free  int64   `json:"freeBytes"` // of the cache's quota; -1 without one
}

// Places ranks the nodes of a pool that are connected by the share that they
// hold of the objects, each counted once; among equals those of zone come first,
// then those with more room in their caches, then by name.
func (b *Board) Places(objects []Object, pool, zone string) []Place {
	b.mu.Lock()
	defer b.mu.Unlock()
	sizes := make(map[piece.Digest]int64)
	for _, o := range objects {
		sizes[o.Digest] = max(0, o.Size)
	}
	for _, n := range b.nodes {
		for d := range sizes {
			if h, ok := n.stock.held[d]; ok {
				sizes[d] = h.Size // the same on every node: the digest says it
			}
		}
	}
	var total int64
	for _, size := range sizes {
		total += size
	}
	places := []Place{}
	for name, n := range b.nodes {
		if !isIn(pool, n.labels) || !b.connected(n) {
			continue
		}
		p := Place{Node: name, Zone: n.zone, Total: total, Free: -1}
		for d, size := range sizes {
			p.Have += min(n.stock.held[d].Bytes, size)
		}
		if total > 0 {
			p.Share = float64(p.Have) / float64(total)
		}
		if n.stock.quota > 0 {
			p.Free = max(0, n.stock.quota-n.stock.used)
		}
		places = append(places, p)
	}
	near := func(p Place) int {
		if zone != "" && p.Zone == zone {
			return 0
		}
		return 1
	}
	slices.SortFunc(places, func(x, y Place) int {
		return cmp.Or(cmp.Compare(y.Share, x.Share), cmp.Compare(near(x), near(y)), cmp.Compare(uint64(y.Free), uint64(x.Free)), cmp.Compare(x.Node, y.Node))
	})
	return places
}
