package p2ptest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p"
)

// patience is how long what must happen may take, on however slow a machine.
const patience = 30 * time.Second

// TestHolding runs the suite that every p2p.Holding passes. open returns a new
// holding of tree's object that holds nothing; the test that it is given cleans it up.
func TestHolding(t *testing.T, open func(t *testing.T, tree *piece.Tree) p2p.Holding) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, c holdingCase)
	}{
		{"empty", testEmpty},
		{"put", testPut},
		{"put refuses", testPutRefuses},
		{"blocks", testBlocks},
		{"wrong blocks", testWrongBlocks},
		{"late blocks", testLateBlocks},
		{"block bounds", testBlockBounds},
		{"read", testRead},
		{"wait", testWait},
		{"watchers", testWatchers},
		{"concurrent", testConcurrent},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, size := range []int64{1, piece.MinLength, 3*piece.MinLength + 12345} {
				t.Run(fmt.Sprint(size), func(t *testing.T) {
					data := Bytes(size, 7)
					tree := Tree(data)
					test.run(t, holdingCase{h: open(t, tree), tree: tree, object: tree.Object(), data: data})
				})
			}
		})
	}
}

// A holdingCase is an empty holding and the bytes that belong into it.
type holdingCase struct {
	h      p2p.Holding
	tree   *piece.Tree
	object piece.Object
	data   []byte
}

// bytes returns what piece i is.
func (c holdingCase) bytes(i int) []byte {
	off, n := c.object.Span(i)
	return c.data[off : off+n]
}

func (c holdingCase) verified(t *testing.T, i int) piece.Verified {
	t.Helper()
	v, err := c.tree.Verify(i, c.bytes(i))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// blocks writes piece i of data in blocks of two leaves, the last one first.
func (c holdingCase) blocks(i int, data []byte) error {
	const block = 2 * piece.LeafSize
	for off := (len(data) - 1) / block * block; off >= 0; off -= block {
		if err := c.h.WriteBlock(i, data[off:min(off+block, len(data))], int64(off)); err != nil {
			return err
		}
	}
	return nil
}

// has fails the test unless the holding holds exactly the given pieces, with the right bytes.
func (c holdingCase) has(t *testing.T, pieces ...int) {
	t.Helper()
	want := make(map[int]bool)
	for _, i := range pieces {
		want[i] = true
	}
	for i := range c.object.Pieces() {
		if got := c.h.Has(i); got != want[i] {
			t.Errorf("Has(%d) = %v, want %v", i, got, want[i])
		}
		off, n := c.object.Span(i)
		got := make([]byte, n)
		_, err := c.h.ReadAt(got, off)
		switch {
		case want[i] && err != nil:
			t.Errorf("read piece %d: %v", i, err)
		case want[i] && !bytes.Equal(got, c.bytes(i)):
			t.Errorf("piece %d reads as other bytes", i)
		case !want[i] && !errors.Is(err, piece.ErrNotHere):
			t.Errorf("read absent piece %d: %v, want piece.ErrNotHere", i, err)
		}
	}
}

func testEmpty(t *testing.T, c holdingCase) {
	if got := c.h.Tree().Object(); got != c.object {
		t.Errorf("the tree is of %v, want %v", got, c.object)
	}
	c.has(t)
	for _, i := range []int{-1, c.object.Pieces()} {
		if c.h.Has(i) {
			t.Errorf("Has(%d) of %d pieces", i, c.object.Pieces())
		}
	}
}

func testPut(t *testing.T, c holdingCase) {
	var all []int
	for i := c.object.Pieces() - 1; i >= 0; i-- {
		for range 2 { // the second time it is there already
			if err := c.h.Put(c.verified(t, i)); err != nil {
				t.Fatalf("put piece %d: %v", i, err)
			}
		}
		all = append(all, i)
		c.has(t, all...)
	}
}

func testPutRefuses(t *testing.T, c holdingCase) {
	if err := c.h.Put(piece.Verified{}); err == nil {
		t.Error("put accepted the zero Verified")
	}
	other := bytes.Clone(c.data)
	other[0] ^= 1
	v, err := Tree(other).Verify(0, other[:len(c.bytes(0))])
	if err != nil {
		t.Fatal(err)
	}
	if err := c.h.Put(v); err == nil {
		t.Error("put accepted a piece of another object")
	}
	c.has(t)
}

func testBlocks(t *testing.T, c holdingCase) {
	for i := range c.object.Pieces() {
		for range 2 { // blocks may come twice
			if err := c.blocks(i, c.bytes(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.has(t) // nothing before its commit
	var all []int
	for i := range c.object.Pieces() {
		for range 2 {
			if err := c.h.Commit(i); err != nil {
				t.Fatalf("commit piece %d: %v", i, err)
			}
		}
		all = append(all, i)
		c.has(t, all...)
	}
}

func testWrongBlocks(t *testing.T, c holdingCase) {
	last := c.object.Pieces() - 1
	wrong := bytes.Clone(c.bytes(last))
	wrong[len(wrong)-1] ^= 0x80
	for _, data := range [][]byte{wrong, nil} { // nil: not a single block came
		if err := c.blocks(last, data); err != nil {
			t.Fatal(err)
		}
		err := c.h.Commit(last)
		w, ok := errors.AsType[*piece.WrongBytesError](err)
		if !ok || w.Object != c.object.Digest || w.Piece != last || w.From != "" {
			t.Fatalf("commit wrong bytes: %v, want a *piece.WrongBytesError of piece %d without a sender", err, last)
		}
		c.has(t)
	}
	// The piece starts anew, by blocks here and whole in the next test.
	if err := c.blocks(last, c.bytes(last)); err != nil {
		t.Fatal(err)
	}
	if err := c.h.Commit(last); err != nil {
		t.Fatalf("commit the right bytes after wrong ones: %v", err)
	}
	c.has(t, last)
}

func testLateBlocks(t *testing.T, c holdingCase) {
	last := c.object.Pieces() - 1
	wrong := bytes.Clone(c.bytes(0))
	wrong[0] ^= 1
	if err := c.blocks(0, wrong); err != nil {
		t.Fatal(err)
	}
	if err := c.h.Put(c.verified(t, 0)); err != nil {
		t.Fatalf("put over blocks that are wrong: %v", err)
	}
	if err := c.blocks(last, c.bytes(last)); err != nil {
		t.Fatal(err)
	}
	if err := c.h.Commit(last); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, last} {
		wrong := bytes.Repeat([]byte{0xff}, len(c.bytes(i)))
		if err := c.blocks(i, wrong); err != nil {
			t.Errorf("a block that came too late for piece %d: %v", i, err)
		}
		if err := c.h.Commit(i); err != nil {
			t.Errorf("commit piece %d, which is present: %v", i, err)
		}
	}
	c.has(t, 0, last)
}

func testBlockBounds(t *testing.T, c holdingCase) {
	last := c.object.Pieces() - 1
	n := int64(len(c.bytes(last)))
	for _, b := range []struct {
		i   int
		p   []byte
		off int64
	}{
		{-1, []byte{1}, 0},
		{last + 1, []byte{1}, 0},
		{last, []byte{1}, -1},
		{last, []byte{1}, n},
		{last, []byte{1, 2}, n - 1},
		{last, []byte{1}, 1<<63 - 1},
		{last, make([]byte, n+1), 0},
	} {
		if err := c.h.WriteBlock(b.i, b.p, b.off); err == nil {
			t.Errorf("WriteBlock took %d bytes at %d of piece %d", len(b.p), b.off, b.i)
		}
	}
	for _, i := range []int{-1, last + 1} {
		if err := c.h.Commit(i); err == nil {
			t.Errorf("Commit(%d) of %d pieces", i, last+1)
		}
		if err := c.h.Wait(t.Context(), i); err == nil {
			t.Errorf("Wait(%d) of %d pieces", i, last+1)
		}
	}
	c.has(t)
}

func testRead(t *testing.T, c holdingCase) {
	present := 0
	for ; present < min(2, c.object.Pieces()); present++ {
		if err := c.h.Put(c.verified(t, present)); err != nil {
			t.Fatal(err)
		}
	}
	end := int64(0) // of what is present
	if present > 0 {
		off, n := c.object.Span(present - 1)
		end = off + n
	}
	for _, r := range []struct{ off, n int64 }{
		{0, 1}, {0, end}, {end - 1, 1}, {end / 2, end - end/2}, {end / 3, end / 3},
	} {
		got := make([]byte, r.n)
		if n, err := c.h.ReadAt(got, r.off); int64(n) != r.n || (err != nil && err != io.EOF) {
			t.Errorf("read %d bytes at %d: %d, %v", r.n, r.off, n, err)
		}
		if !bytes.Equal(got, c.data[r.off:r.off+r.n]) {
			t.Errorf("%d bytes at %d are other ones", r.n, r.off)
		}
	}
	if end < c.object.Size {
		got := make([]byte, 2)
		if n, err := c.h.ReadAt(got, end-1); n != 0 || !errors.Is(err, piece.ErrNotHere) {
			t.Errorf("read into an absent piece: %d bytes, %v; want none and piece.ErrNotHere", n, err)
		}
		return
	}
	if n, err := c.h.ReadAt(make([]byte, 2), end-1); n != 1 || err != io.EOF {
		t.Errorf("read over the end: %d bytes, %v; want 1 and EOF", n, err)
	}
	if n, err := c.h.ReadAt(make([]byte, 2), end); n != 0 || err != io.EOF {
		t.Errorf("read at the end: %d bytes, %v; want none and EOF", n, err)
	}
}

func testWait(t *testing.T, c holdingCase) {
	last := c.object.Pieces() - 1
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.h.Wait(gone, last); !errors.Is(err, context.Canceled) {
		t.Errorf("wait with a context that has ended: %v, want context.Canceled", err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	waiting := make(chan error, 2)
	for range cap(waiting) {
		go func() { waiting <- c.h.Wait(ctx, last) }()
	}
	if last > 0 {
		if err := c.h.Put(c.verified(t, 0)); err != nil { // another piece wakes nobody for good
			t.Fatal(err)
		}
	}
	if err := c.blocks(last, c.bytes(last)); err != nil {
		t.Fatal(err)
	}
	if err := c.h.Commit(last); err != nil {
		t.Fatal(err)
	}
	for range cap(waiting) {
		if err := <-waiting; err != nil {
			t.Errorf("wait for a piece that came: %v", err)
		}
	}
	if err := c.h.Wait(ctx, last); err != nil {
		t.Errorf("wait for a piece that is there: %v", err)
	}
}

func testWatchers(t *testing.T, c holdingCase) {
	var mu sync.Mutex
	calls := make(map[int]int)
	for range 2 {
		c.h.OnPresent(func(i int) {
			// A watcher may use the holding, from another goroutine too: no lock is held.
			used := make(chan struct{})
			go func() {
				defer close(used)
				if !c.h.Has(i) {
					t.Errorf("piece %d is announced but not present", i)
				}
				if _, err := c.h.ReadAt(make([]byte, 1), int64(i)*c.object.PieceLength); err != nil {
					t.Errorf("read piece %d when it is announced: %v", i, err)
				}
				c.h.OnPresent(func(int) {})
				c.h.Put(c.verified(t, i))
			}()
			select {
			case <-used:
			case <-time.After(patience):
				t.Error("the holding is locked while it calls a watcher")
			}
			mu.Lock()
			defer mu.Unlock()
			calls[i]++
		})
	}
	for i := range c.object.Pieces() {
		wrong := bytes.Repeat([]byte{0xff}, len(c.bytes(i)))
		if err := c.blocks(i, wrong); err != nil {
			t.Fatal(err)
		}
		c.h.Commit(i) // fails, and is not announced
		for range 2 {
			if i%2 == 0 {
				if err := c.h.Put(c.verified(t, i)); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if err := c.blocks(i, c.bytes(i)); err != nil {
				t.Fatal(err)
			}
			if err := c.h.Commit(i); err != nil {
				t.Fatal(err)
			}
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for i := range c.object.Pieces() {
		if calls[i] != 2 {
			t.Errorf("piece %d was announced %d times to 2 watchers", i, calls[i])
		}
	}
}

// testConcurrent has peers that send right and wrong blocks, commits and an
// origin race for the same pieces: what becomes present is right, is announced
// once, and stays.
func testConcurrent(t *testing.T, c holdingCase) {
	var mu sync.Mutex
	calls := make(map[int]int)
	c.h.OnPresent(func(i int) {
		mu.Lock()
		defer mu.Unlock()
		calls[i]++
	})
	var wg sync.WaitGroup
	for i := range c.object.Pieces() {
		wrong := bytes.Repeat([]byte{0xff}, len(c.bytes(i)))
		for _, data := range [][]byte{c.bytes(i), wrong} {
			wg.Go(func() {
				for range 8 {
					if err := c.blocks(i, data); err != nil {
						t.Errorf("write piece %d: %v", i, err)
					}
					err := c.h.Commit(i)
					if _, ok := errors.AsType[*piece.WrongBytesError](err); err != nil && !ok {
						t.Errorf("commit piece %d: %v", i, err)
					}
				}
			})
		}
		wg.Go(func() {
			got := make([]byte, len(c.bytes(i)))
			for range 8 {
				_, err := c.h.ReadAt(got, int64(i)*c.object.PieceLength)
				switch {
				case err != nil && !errors.Is(err, piece.ErrNotHere):
					t.Errorf("read piece %d: %v", i, err)
				case err == nil && !bytes.Equal(got, c.bytes(i)):
					t.Errorf("piece %d was read as other bytes", i)
				}
			}
		})
		wg.Go(func() {
			if err := c.h.Put(c.verified(t, i)); err != nil {
				t.Errorf("put piece %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	var all []int
	for i := range c.object.Pieces() {
		all = append(all, i)
		if calls[i] != 1 {
			t.Errorf("piece %d was announced %d times", i, calls[i])
		}
	}
	c.has(t, all...)
}
