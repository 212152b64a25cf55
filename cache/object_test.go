package cache

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/spate-project/spate/cache/piece"
)

func testSizes(t *testing.T, dir string) {
	s := openStore(t, dir, Options{})
	for seed, size := range []int{0, 1, small - 1, small, small + 1, 2 * small, 4*small - 1, 4 * small, 4*small + 1, 37*small + 5} {
		for _, length := range []int64{small, 4 * small} {
			data := content(uint64(seed), size)
			o := openObject(t, s, treeNamed(t, sha256.Sum256(fmt.Append(data, length)), data, length), nil)
			if o.Complete() != (size == 0) || o.Size() != int64(size) {
				t.Errorf("%d bytes: complete is %v before the first piece", size, o.Complete())
			}
			putAll(t, o, data)
			if !o.Complete() || len(o.Missing()) != 0 {
				t.Errorf("%d bytes: not complete, missing %v", size, o.Missing())
			}
			readAll(t, o, data)
			o.Close()
		}
	}
}

func testBlocks(t *testing.T, dir string) {
	data := content(1, 5*4*small-1000)
	o := openObject(t, openStore(t, dir, Options{}), treeOf(t, data, 4*small), nil)
	for i := range o.object.Pieces() {
		off, n := o.object.Span(i)
		const block = 10_000
		var starts []int64
		for at := int64(0); at < n; at += block {
			starts = append(starts, at, at) // each twice
		}
		rand.Shuffle(len(starts), func(a, b int) { starts[a], starts[b] = starts[b], starts[a] })
		for _, at := range starts {
			end := min(at+block, n)
			if err := o.WriteBlock(i, data[off+at:off+end], at); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := o.ReadAt(make([]byte, 1), off); !errors.Is(err, piece.ErrNotHere) {
			t.Fatalf("piece %d is readable before Commit: %v", i, err)
		}
		if err := o.Commit(i); err != nil {
			t.Fatal(err)
		}
		if err := o.WriteBlock(i, make([]byte, n), 0); err != nil {
			t.Fatal("a late block:", err)
		}
		if err := o.Commit(i); err != nil {
			t.Fatal("a second Commit:", err)
		}
	}
	readAll(t, o, data)
}

// testBlocksBesidePut writes blocks while somebody takes the piece again and
// again and gives it back absent, as a Put on a full disk does.
func testBlocksBesidePut(t *testing.T, dir string) {
	data := content(1, small)
	o := openObject(t, openStore(t, dir, Options{}), treeOf(t, data, small), nil)
	stop := make(chan struct{})
	var puts sync.WaitGroup
	puts.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := o.seal(0, false); err != nil {
				t.Error(err)
				return
			}
			o.release(0, absent)
		}
	})
	got := make([]byte, 1)
	for n := range 20_000 {
		want := []byte{byte(n)}
		if err := o.WriteBlock(0, want, 5); err != nil {
			t.Fatal(err)
		}
		if _, err := o.data.ReadAt(got, 5); err != nil || got[0] != want[0] {
			t.Errorf("block %d was dropped although the piece is absent: %v", n, err)
			break
		}
	}
	close(stop)
	puts.Wait()
}

func testAbsent(t *testing.T, dir string) {
	data := content(1, 3*small)
	o := openObject(t, openStore(t, dir, Options{}), treeOf(t, data, small), nil)
	put(t, o, data, 1)
	for _, r := range [][2]int{{0, 1}, {small - 1, 2}, {2*small - 1, 2}, {0, 3 * small}} {
		if n, err := o.ReadAt(make([]byte, r[1]), int64(r[0])); n != 0 || !errors.Is(err, piece.ErrNotHere) {
			t.Errorf("ReadAt(%v) = %d, %v", r, n, err)
		}
		if err := o.Ensure(t.Context(), int64(r[0]), int64(r[1])); !errors.Is(err, piece.ErrNotHere) {
			t.Errorf("Ensure(%v) without a source: %v", r, err)
		}
	}
	if n, err := o.ReadAt(make([]byte, 10), 3*small); n != 0 || err != io.EOF {
		t.Errorf("read at the end: %d, %v", n, err)
	}
	if n, err := o.ReadAt(make([]byte, 10), 9*small); n != 0 || err != io.EOF {
		t.Errorf("read beyond the end: %d, %v", n, err)
	}
	if _, err := o.ReadAt(make([]byte, 10), -1); err == nil || err == io.EOF {
		t.Errorf("read before the start: %v", err)
	}
	got := make([]byte, small)
	if n, err := o.ReadAt(got, small); n != small || err != nil || !bytes.Equal(got, data[small:2*small]) {
		t.Errorf("the present piece: %d, %v", n, err)
	}
	if got := o.Missing(); !slices.Equal(got, []int{0, 2}) {
		t.Errorf("missing %v", got)
	}
}

func testRefusals(t *testing.T, dir string) {
	s := openStore(t, dir, Options{})
	data, other := content(1, 2*small), content(2, 2*small)
	o := openObject(t, s, treeOf(t, data, small), nil)
	foreign, err := treeOf(t, other, small).Verify(0, other[:small])
	if err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"zero value":        o.Put(piece.Verified{}),
		"another object's":  o.Put(foreign),
		"block of no piece": o.WriteBlock(2, data[:1], 0),
		"block before":      o.WriteBlock(0, data[:1], -1),
		"block beyond":      o.WriteBlock(0, data[:2], small-1),
		"commit of none":    o.Commit(-1),
		"wait for none":     o.Wait(t.Context(), 2),
	} {
		if err == nil {
			t.Errorf("%s was taken", name)
		} else if !strings.Contains(err.Error(), o.object.Digest.String()) {
			t.Errorf("%s: the error does not name the object: %v", name, err)
		}
	}
	if p := o.Progress(); p.Present != 0 {
		t.Errorf("%d pieces present after nothing but refusals", p.Present)
	}
}

func testWrongBlocks(t *testing.T, dir string) {
	s := openStore(t, dir, Options{})
	data := content(1, 2*small)
	o := openObject(t, s, treeOf(t, data, small), nil)
	for range 2 {
		if err := o.WriteBlock(1, content(9, small), 0); err != nil {
			t.Fatal(err)
		}
		wrong := (*piece.WrongBytesError)(nil)
		if err := o.Commit(1); !errors.As(err, &wrong) || wrong.Piece != 1 || wrong.Object != o.object.Digest {
			t.Fatalf("Commit of wrong bytes: %v", err)
		}
		if o.Has(1) {
			t.Fatal("wrong bytes are present")
		}
	}
	if err := o.WriteBlock(1, data[small:], 0); err != nil {
		t.Fatal(err)
	}
	if err := o.Commit(1); err != nil {
		t.Fatal("the right bytes after the wrong ones:", err)
	}
	if got := s.Stats(); got.WrongBytes != 2 || got.Fetched != 1 {
		t.Errorf("stats %+v", got)
	}
}

func testArrivals(t *testing.T, dir string) {
	data := content(1, 20*small)
	o := openObject(t, openStore(t, dir, Options{}), treeOf(t, data, small), nil)
	var mu sync.Mutex
	seen := map[int]int{}
	o.OnPresent(func(i int) {
		if !o.Has(i) { // also: no lock is held
			t.Errorf("piece %d was announced and is not here", i)
		}
		mu.Lock()
		defer mu.Unlock()
		seen[i]++
	})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { putAll(t, o, data) })
	}
	for i := range 20 {
		if err := o.Wait(t.Context(), i); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	for i := range 20 {
		if seen[i] != 1 {
			t.Errorf("piece %d was announced %d times", i, seen[i])
		}
	}
}

func testLazy(t *testing.T, dir string) {
	s := openStore(t, dir, Options{Flights: 3})
	data := content(1, 40*small)
	src := &origin{data: data}
	src.into = openObject(t, s, treeOf(t, data, small), src)
	got := make([]byte, 2*small)
	if n, err := src.into.ReadContext(t.Context(), got, 5*small+1); n != len(got) || err != nil || !bytes.Equal(got, data[5*small+1:][:2*small]) {
		t.Fatalf("read %d, %v", n, err)
	}
	if p := src.into.Progress(); p.Present != 3 || src.asked.Load() != 3 {
		t.Errorf("a read of 3 pieces fetched %d", p.Present)
	}
	readAll(t, src.into, data)
	if src.asked.Load() != 40 {
		t.Errorf("40 pieces were asked for %d times", src.asked.Load())
	}
	if got := s.Stats(); got.Misses != 40 || got.Fetched != 40 || got.Hits == 0 {
		t.Errorf("stats %+v", got)
	}
}

// testStack reads through a cache whose source is a cache whose source is the origin.
func testStack(t *testing.T, dir string) {
	data := content(1, 10*4*small-5)
	bottom := &origin{data: data, block: 5000}
	var src Source = bottom
	var top *Object
	for level := range 3 {
		s := openStore(t, filepath.Join(dir, strconv.Itoa(level)), Options{})
		o := openObject(t, s, treeOf(t, data, 4*small), src)
		if level == 0 {
			bottom.into = o
		} else {
			src.(*below).into = o
		}
		top, src = o, &below{from: o}
	}
	readAll(t, top, data)
}

func testCutShort(t *testing.T, dir string) {
	s := openStore(t, dir, Options{})
	data := content(1, 3*small)
	o := openObject(t, s, treeOf(t, data, small), nil)
	putAll(t, o, data)
	if err := os.Truncate(o.File().Name(), small); err != nil {
		t.Fatal(err)
	}
	if _, err := o.ReadAt(make([]byte, 2*small), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a read of a file that was cut: %v", err)
	}
	s.Close()
	s = openStore(t, dir, Options{})
	o = openObject(t, s, o.tree, nil)
	if err := o.Recheck(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p := o.Progress(); p.Present != 1 || s.Stats().BadClaims != 2 {
		t.Errorf("after a restart: %+v, stats %+v", p, s.Stats())
	}
}

// testEveryReadOnce has many readers read everything at once: each piece is fetched once.
func testEveryReadOnce(t *testing.T, dir string) {
	data := content(1, 64*small)
	src := &origin{data: data}
	src.into = openObject(t, openStore(t, dir, Options{VerifyMemory: 2 * small}), treeOf(t, data, small), src)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			got := make([]byte, len(data))
			if _, err := src.into.ReadContext(t.Context(), got, 0); err != nil || !bytes.Equal(got, data) {
				t.Errorf("read: %v", err)
			}
		})
	}
	wg.Wait()
	if src.asked.Load() != 64 {
		t.Errorf("64 pieces were asked for %d times", src.asked.Load())
	}
}
