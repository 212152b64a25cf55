package main

import (
	"testing"

	"github.com/spate-project/spate/prefetch/orders"
)

// TestPrefetchIntoMemory: a node is ready when what it fetched is in its page
// cache too; that it really is there cache.TestPopulate sees. An order that does not ask for it
// is another one.
func TestPrefetchIntoMemory(t *testing.T) {
	s := newSite(t, []string{"a", "b"})
	ref := s.pushModel("qwen", 8_000_000, "--sign-key", s.keys.Sign())
	s.newPool([]string{"a", "b"})
	plain, _ := s.prefetch(ref, "--ready", "2").ends(0)
	for _, n := range plain.Nodes {
		if n.Memory != 0 {
			t.Errorf("%s read %d bytes into memory without being asked to", n.Node, n.Memory)
		}
	}
	warm, _ := s.prefetch(ref, "--ready", "2", "--into-memory").ends(0)
	if warm.ID == plain.ID || warm.State != orders.Done || len(warm.Nodes) != 2 {
		t.Fatalf("the order is %+v", warm)
	}
	for _, n := range warm.Nodes {
		if n.Total == 0 || n.Memory != n.Total {
			t.Errorf("%s has %d of %d bytes in memory", n.Node, n.Memory, n.Total)
		}
	}
}
