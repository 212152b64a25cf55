package agent

import (
	"testing"

	"github.com/spate-project/spate/cache"
	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/p2ptest"
)

// TestHolding holds the cache's objects to what the mesh expects of a holding.
func TestHolding(t *testing.T) {
	p2ptest.TestHolding(t, func(t *testing.T, tree *piece.Tree) p2p.Holding {
		store, err := cache.Open(t.TempDir(), cache.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { store.Close() })
		o, err := store.Open(tree, nil)
		if err != nil {
			t.Fatal(err)
		}
		return o
	})
}
