package cache

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/spate-project/spate/cache/piece"
)

// TestBlocks: the hashes of blocks stand for the file only where every leaf was
// written once, whole and well.
func TestBlocks(t *testing.T) {
	const leaf, size = piece.LeafSize, 4*piece.LeafSize - 100
	data := content(3, size)
	type block struct {
		from, to int64
		fails    bool
	}
	for name, test := range map[string]struct {
		blocks []block
		whole  bool
	}{
		"none":                 {nil, false},
		"one":                  {[]block{{0, size, false}}, true},
		"in order":             {[]block{{0, leaf, false}, {leaf, 3 * leaf, false}, {3 * leaf, size, false}}, true},
		"last first":           {[]block{{2 * leaf, size, false}, {0, 2 * leaf, false}}, true},
		"an empty one":         {[]block{{leaf, leaf, false}, {0, size, false}}, true},
		"one lacks":            {[]block{{0, leaf, false}, {2 * leaf, size, false}}, false},
		"one twice":            {[]block{{0, leaf, false}, {leaf, size, false}, {0, leaf, false}}, false},
		"overlap":              {[]block{{0, 2 * leaf, false}, {leaf, size, false}}, false},
		"begins within a leaf": {[]block{{0, leaf, false}, {leaf + 1, size, false}}, false},
		"ends within a leaf":   {[]block{{0, leaf - 1, false}, {leaf, size, false}}, false},
		"half leaves":          {[]block{{0, leaf / 2, false}, {leaf / 2, leaf, false}, {leaf, size, false}}, false},
		"a write failed":       {[]block{{0, size, true}}, false},
		"failed and came well": {[]block{{0, leaf, true}, {0, leaf, false}, {leaf, size, false}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var b blocks
			for _, k := range test.blocks {
				leaves := b.begin(k.from, k.to-k.from, size)
				if b.whole() != nil {
					t.Error("the piece is whole while a block is being written")
				}
				if leaves != nil && !k.fails {
					leaves = piece.AppendLeaves(leaves, data[k.from:k.to])
				}
				b.end(len(leaves), k.fails)
			}
			got := b.whole()
			if (got != nil) != test.whole || b.writers != 0 {
				t.Fatalf("whole is %v, want %v; %d writers", got != nil, test.whole, b.writers)
			}
			if test.whole && !slices.Equal(got, piece.AppendLeaves(nil, data)) {
				t.Error("the leaves have other hashes")
			}
		})
	}
}

// testRivals has two peers send the same blocks with different bytes. Whoever
// comes last, and when both write at once: what the file holds decides.
func testRivals(t *testing.T, dir string) {
	const size = 4 * small
	data := content(1, 40*size)
	o := openObject(t, openStore(t, dir, Options{}), treeOf(t, data, size), nil)
	lie := content(2, size)
	write := func(i int, p []byte) {
		for off := 0; off < size; off += 2 * small {
			if err := o.WriteBlock(i, p[off:off+2*small], int64(off)); err != nil {
				t.Error(err)
			}
		}
	}
	refused := func(i int) bool {
		err := o.Commit(i)
		wrong := (*piece.WrongBytesError)(nil)
		if err != nil && !errors.As(err, &wrong) {
			t.Fatal(err)
		}
		return err != nil
	}
	truth := func(i int) []byte { return data[i*size : (i+1)*size] }

	write(0, truth(0))
	write(0, lie)
	if !refused(0) {
		t.Fatal("the right hashes covered for wrong bytes")
	}
	write(0, lie)
	write(0, truth(0))
	if refused(0) {
		t.Error("right bytes were refused for wrong ones that they replaced")
	}
	for i := 1; i < o.object.Pieces(); i++ {
		for tries := 0; !o.Has(i); tries++ {
			var wg sync.WaitGroup
			for _, p := range [][]byte{lie, truth(i)} {
				wg.Go(func() { write(i, p) })
			}
			if tries%2 == 0 {
				wg.Wait()
			}
			accepted := !refused(i)
			got := make([]byte, size)
			if _, err := o.File().ReadAt(got, int64(i*size)); accepted && (err != nil || !bytes.Equal(got, truth(i))) {
				t.Fatalf("piece %d is present with wrong bytes: %v", i, err)
			}
			wg.Wait()
			if tries == 20 {
				put(t, o, data, i)
			}
		}
	}
	readAll(t, o, data)
}
