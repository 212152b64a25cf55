// Package p2ptest holds what tests of the mesh share: a holding in memory and
// the suite that every p2p.Holding passes.
package p2ptest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"

	"github.com/spate-project/spate/cache/piece"
)

// Bytes returns n bytes that follow from seed and do not compress.
func Bytes(n int64, seed uint64) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b)
	return b
}

// Tree returns the tree of data.
func Tree(data []byte) *piece.Tree {
	h := piece.NewHasher(int64(len(data)))
	h.Write(data)
	t, err := h.Sum()
	if err != nil {
		panic(err) // the size is right by construction
	}
	return t
}

// A Holding is a p2p.Holding in memory.
type Holding struct {
	tree *piece.Tree

	mu       sync.Mutex
	data     []byte
	has      []bool
	count    int
	changed  chan struct{} // closed and replaced when a piece becomes present
	watchers []func(int)
}

// NewHolding returns a Holding of tree's object that holds nothing.
func NewHolding(tree *piece.Tree) *Holding {
	o := tree.Object()
	return &Holding{
		tree: tree, data: make([]byte, o.Size), has: make([]bool, o.Pieces()),
		changed: make(chan struct{}),
	}
}

// Full returns a Holding that holds all of data.
func Full(data []byte) *Holding {
	h := NewHolding(Tree(data))
	copy(h.data, data)
	for i := range h.has {
		h.has[i] = true
	}
	h.count = len(h.has)
	return h
}

// Corrupt flips one bit of what the holding gives out, at offset off.
func (h *Holding) Corrupt(off int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.data[off] ^= 1
}

// Bytes returns a copy of the object's bytes; absent pieces read as they were last written.
func (h *Holding) Bytes() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]byte(nil), h.data...)
}

// Count returns how many pieces are present.
func (h *Holding) Count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.count
}

// Tree returns the object's tree.
func (h *Holding) Tree() *piece.Tree { return h.tree }

// Has reports whether piece i is present.
func (h *Holding) Has(i int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return i >= 0 && i < len(h.has) && h.has[i]
}

// Wait returns when piece i is present.
func (h *Holding) Wait(ctx context.Context, i int) error {
	if err := h.check(i); err != nil {
		return err
	}
	for {
		h.mu.Lock()
		has, changed := h.has[i], h.changed
		h.mu.Unlock()
		if has {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// WaitAll returns when every piece is present.
func (h *Holding) WaitAll(ctx context.Context) error {
	for i := range h.has {
		if err := h.Wait(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// ReadAt reads present pieces, as io.ReaderAt has it.
func (h *Holding) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d", off)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	first, last := h.tree.Object().Range(off, int64(len(p)))
	for i := first; i < last; i++ {
		if !h.has[i] {
			return 0, fmt.Errorf("piece %d: %w", i, piece.ErrNotHere)
		}
	}
	n := copy(p, h.data[min(off, int64(len(h.data))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Put stores a whole piece.
func (h *Holding) Put(v piece.Verified) error {
	if !v.Valid() || v.Object() != h.tree.Object() {
		return errors.New("put: not a verified piece of this object")
	}
	return h.enter(v.Index(), func(at []byte) error {
		copy(at, v.Bytes())
		return nil
	})
}

// WriteBlock stores part of a piece that is not present.
func (h *Holding) WriteBlock(i int, p []byte, off int64) error {
	if err := h.check(i); err != nil {
		return err
	}
	at, n := h.tree.Object().Span(i)
	if off < 0 || off > n || int64(len(p)) > n-off {
		return fmt.Errorf("write %d bytes at %d of a piece of %d", len(p), off, n)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.has[i] {
		copy(h.data[at+off:], p)
	}
	return nil
}

// Commit verifies piece i and makes it present.
func (h *Holding) Commit(i int) error {
	if err := h.check(i); err != nil {
		return err
	}
	return h.enter(i, func(at []byte) error {
		_, err := h.tree.Verify(i, at)
		return err
	})
}

// OnPresent registers f.
func (h *Holding) OnPresent(f func(int)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watchers = append(h.watchers, f)
}

func (h *Holding) check(i int) error {
	if i < 0 || i >= len(h.has) {
		return fmt.Errorf("piece %d of %d", i, len(h.has))
	}
	return nil
}

// enter makes piece i present once fill, given its place, has put or found the right bytes there.
func (h *Holding) enter(i int, fill func(at []byte) error) error {
	off, n := h.tree.Object().Span(i)
	h.mu.Lock()
	if h.has[i] {
		h.mu.Unlock()
		return nil
	}
	if err := fill(h.data[off : off+n]); err != nil {
		h.mu.Unlock()
		return err
	}
	h.has[i] = true
	h.count++
	close(h.changed)
	h.changed = make(chan struct{})
	watchers := h.watchers
	h.mu.Unlock()
	for _, f := range watchers {
		f(i)
	}
	return nil
}
