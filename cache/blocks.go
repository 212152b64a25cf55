package cache

import "github.com/spate-project/spate/cache/piece"

// blocks is what came so far of a piece that is not present. Blocks are hashed
// as they come, so that Commit need not read the file again: as long as each
// leaf was written once and whole, by one writer, the file holds what was
// hashed. A second write to a leaf, a block that holds part of one, and a write
// that failed leave the file the only witness; then Commit reads it. Either way
// no writer is at the piece when Commit compares, and none gets to it
// afterwards. Its fields are guarded by Object.mu, but a claimed leaf's hash
// belongs to who claimed it until that write ends.
type blocks struct {
	writers int
	leaves  []piece.Hash
	claimed []bool // by leaf: it is hashed, or being written
	hashed  int    // how many leaves
	mixed   bool   // leaves do not tell what the file holds
}

// leafCount returns how many leaves n bytes have.
func leafCount(n int64) int { return int((n + piece.LeafSize - 1) / piece.LeafSize) }

// begin counts a writer of n bytes at off of a piece of size bytes. It returns
// where the hashes of the block's leaves go, or nil when they are of no use.
func (b *blocks) begin(off, n, size int64) []piece.Hash {
	b.writers++
	if b.leaves == nil {
		b.leaves = make([]piece.Hash, leafCount(size))
		b.claimed = make([]bool, len(b.leaves))
	}
	if off%piece.LeafSize != 0 || n%piece.LeafSize != 0 && off+n != size {
		b.mixed = true
	}
	first, last := int(off/piece.LeafSize), leafCount(off+n)
	for _, taken := range b.claimed[first:last] {
		b.mixed = b.mixed || taken
	}
	if b.mixed {
		return nil
	}
	for i := first; i < last; i++ {
		b.claimed[i] = true
	}
	return b.leaves[first:first:last]
}

// end is called when the writer is done that begin counted.
func (b *blocks) end(hashed int, failed bool) {
	b.writers--
	b.hashed += hashed
	b.mixed = b.mixed || failed
}

// whole returns the hashes of all the piece's leaves, or nil when the file has
// to be read for them.
func (b *blocks) whole() []piece.Hash {
	if b == nil || b.mixed || b.hashed < len(b.leaves) {
		return nil
	}
	return b.leaves
}
