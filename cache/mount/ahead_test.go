package mount

import (
	"context"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/spate-project/spate/cache/piece"
)

// TestFetchAhead reads through the kernel from an object that fetches ahead: a
// random reader has what it reads fetched and no more, a sequential one what
// lies beyond the kernel's own readahead too, as far as it may.
func TestFetchAhead(t *testing.T) {
	const size, step, kernel, limit = 48 << 20, 512 << 10, 1 << 20, 8 << 20
	data := content(1, size)
	open := func(t *testing.T) (*origin, *os.File) {
		src := &origin{data: data, begun: make(chan int, 10_000)}
		src.open(t, patient).into.ReadAhead(limit)
		m := mountAt(t, Options{ReadAhead: kernel}, Entry{Path: "f", File: src.into})
		f, err := os.Open(m.path("f"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return src, f
	}
	read := func(t *testing.T, f *os.File, off int64) {
		t.Helper()
		got := make([]byte, step)
		if _, err := f.ReadAt(got, off); err != nil {
			t.Fatal(err)
		}
	}
	asked := make(map[int]int) // by piece
	take := func(src *origin) {
		clear(asked)
		for len(src.begun) > 0 {
			asked[<-src.begun]++
		}
	}

	t.Run("random", func(t *testing.T) {
		src, f := open(t)
		want := make(map[int]int)
		for _, place := range rand.Perm(size / step / 4) { // not at 0, where the kernel expects a sequential reader
			off := int64(place)*4*step + step
			read(t, f, off)
			first, last := src.into.Tree().Object().Range(off, step)
			for i := first; i < last; i++ {
				want[i] = 1
			}
		}
		if take(src); !maps.Equal(asked, want) {
			t.Errorf("asked for %v, want %v", asked, want)
		}
	})
	t.Run("sequential", func(t *testing.T) {
		const some, most = 20 << 20, 20<<20 + 2*kernel + limit
		src, f := open(t)
		for off := int64(0); off < some; off += step {
			read(t, f, off)
		}
		// Pieces come in the background: those that the reader has passed, and the window.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for i := range (some + limit) / piece.MinLength {
			if err := src.into.Wait(ctx, i); err != nil {
				t.Fatal(err)
			}
		}
		take(src)
		if last := slices.Max(slices.Collect(maps.Keys(asked))); (last+1)*piece.MinLength > most {
			t.Errorf("a reader of %d MiB had pieces fetched up to %d", some>>20, last)
		}
		for i, n := range asked {
			if n != 1 {
				t.Errorf("piece %d was asked for %d times", i, n)
			}
		}
	})
}
