package cache

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/spate-project/spate/cache/piece"
)

// A ledger is an origin that writes down which pieces it was asked for. It
// brings what it is told of at once, unless it is idle.
type ledger struct {
	origin
	told []int
	idle bool

	mu    sync.Mutex // a read fetches its pieces side by side
	asked []int
}

func (s *ledger) Fetch(ctx context.Context, d piece.Digest, i int) error {
	s.mu.Lock()
	s.asked = append(s.asked, i)
	s.mu.Unlock()
	return s.origin.Fetch(ctx, d, i)
}

func (s *ledger) Ahead(d piece.Digest, first, last int) {
	for i := first; i < last; i++ {
		if s.into.Has(i) {
			continue
		}
		s.told = append(s.told, i)
		if !s.idle {
			s.origin.Fetch(context.Background(), d, i)
		}
	}
}

// pieces returns what was asked for and told of, in order.
func (s *ledger) pieces() []int { return slices.Sorted(slices.Values(slices.Concat(s.asked, s.told))) }

const (
	aheadPieces = 32 // that a reader is kept ahead of in these tests
	aheadLimit  = aheadPieces * small
)

// withLedger runs test with an object of so many pieces.
func withLedger(t *testing.T, pieces int, test func(t *testing.T, s *ledger, o *Object)) {
	t.Helper()
	s := &ledger{origin: origin{data: content(1, pieces*small-100)}}
	s.into = openObject(t, openStore(t, t.TempDir(), Options{}), treeOf(t, s.data, small), s)
	s.into.ReadAhead(aheadLimit)
	test(t, s, s.into)
}

func read(t *testing.T, o *Object, first, count int) {
	t.Helper()
	if err := o.Ensure(t.Context(), int64(first)*small, int64(count)*small); err != nil {
		t.Fatal(err)
	}
}

// upTo returns the pieces [first, last).
func upTo(first, last int) (pieces []int) {
	for i := first; i < last; i++ {
		pieces = append(pieces, i)
	}
	return pieces
}

// TestReadAhead: the window is eight times as long as the run, less a part of
// the limit, up to the limit, and ends with the object. Each piece is fetched once.
func TestReadAhead(t *testing.T) {
	const begin, step, total = 10, 2, 200
	withLedger(t, total, func(t *testing.T, s *ledger, o *Object) {
		for at := begin; at < total; at += step {
			read(t, o, at, step)
			end := at + step
			window := min(aheadPieces, max(0, 8*(end-begin-step-aheadPieces/16)))
			if want := upTo(begin, min(total, end+window)); !slices.Equal(s.pieces(), want) {
				t.Fatalf("after a read to %d: asked for %v, want %d to %d", end, s.pieces(), want[0], want[len(want)-1])
			}
		}
		if st := o.store.Stats(); st.Misses+st.Hits != total-begin || st.Stalls > 4 {
			t.Errorf("what is fetched ahead is counted as reads, or reads waited: %+v", st)
		}
	})
}

// TestReadAheadOfManyAtOnce has readers side by side, whose reads are shuffled a
// little, as the kernel sends them.
func TestReadAheadOfManyAtOnce(t *testing.T) {
	const readers, each = 12, 64
	withLedger(t, readers*each, func(t *testing.T, s *ledger, o *Object) {
		for at := 0; at < each; at += 4 {
			for _, k := range rand.Perm(readers) {
				for _, i := range []int{1, 0, 2, 3} {
					read(t, o, k*each+at+i, 1)
				}
			}
		}
		if n := o.store.Stats().Stalls; n > readers*each/4 {
			t.Errorf("%d of %d reads had to wait", n, readers*each)
		}
		if want := upTo(0, readers*each); !slices.Equal(s.pieces(), want) {
			t.Errorf("%d pieces were asked for %d times", len(want), len(s.pieces()))
		}
	})
}

// TestReadAheadNotOfRandomReads: a random reader gets what it reads, also where
// its reads come in parts, in any order, and after a table full of others.
func TestReadAheadNotOfRandomReads(t *testing.T) {
	const size, places = aheadLimit / 16, 40
	for name, parts := range map[string][]int64{"whole": {0}, "in parts": {0, 1, 2, 3}, "in parts, shuffled": {2, 0, 1, 3}} {
		t.Run(name, func(t *testing.T) {
			withLedger(t, places*3*size/small, func(t *testing.T, s *ledger, o *Object) {
				var want []int
				for _, place := range rand.Perm(places) {
					begin, part := int64(place)*3*size, int64(size/len(parts))
					for _, p := range parts {
						if err := o.Ensure(t.Context(), begin+p*part, part); err != nil {
							t.Fatal(err)
						}
					}
					want = append(want, upTo(int(begin/small), int((begin+size)/small))...)
				}
				if slices.Sort(want); !slices.Equal(s.pieces(), want) {
					t.Errorf("asked for %v, read %v", s.pieces(), want)
				}
				if n := len(o.ahead.streams); n != mostStreams {
					t.Errorf("%d streams", n)
				}
			})
		})
	}
}

// TestReadAheadOfSome: who reads only some of what it passes, or the same again, has no long run.
func TestReadAheadOfSome(t *testing.T) {
	withLedger(t, 400, func(t *testing.T, s *ledger, o *Object) {
		for range 50 {
			read(t, o, 300, 2)
		}
		for at := 0; at < 90; at += 3 {
			read(t, o, at, 1)
		}
		if n := len(s.pieces()); n != 2+30 {
			t.Errorf("asked for %v", s.pieces())
		}
	})
}

// TestReadAheadIsAsked: without ReadAhead, or after it was taken back, an object
// is left to whoever fills it.
func TestReadAheadIsAsked(t *testing.T) {
	withLedger(t, 200, func(t *testing.T, s *ledger, o *Object) {
		o.ReadAhead(0)
		for i := range 100 {
			read(t, o, i, 1)
		}
		if !slices.Equal(s.pieces(), upTo(0, 100)) {
			t.Errorf("asked for %v", s.pieces())
		}
	})
}

// TestReadAheadOfWhatComes: what is here, or on its way, is not asked for.
func TestReadAheadOfWhatComes(t *testing.T) {
	withLedger(t, 200, func(t *testing.T, s *ledger, o *Object) {
		for i := 20; i < 180; i++ {
			put(t, o, s.data, i) // a fill, which is faster than its reader
		}
		for i := range 200 {
			read(t, o, i, 1)
		}
		if want := slices.Concat(upTo(0, 20), upTo(180, 200)); !slices.Equal(s.pieces(), want) {
			t.Errorf("asked for %v", s.pieces())
		}
		if !o.Complete() {
			t.Error("not complete")
		}
	})
}

// TestReadAheadIsNoPromise: a source that brings nothing ahead of a reader is
// told of each piece once, no further than the limit, and asked for what is read.
func TestReadAheadIsNoPromise(t *testing.T) {
	withLedger(t, 400, func(t *testing.T, s *ledger, o *Object) {
		s.idle = true
		for i := range 100 {
			read(t, o, i, 1)
		}
		if !slices.Equal(s.asked, upTo(0, 100)) {
			t.Errorf("asked for %v", s.asked)
		}
		if want := upTo(4, 100+aheadPieces); !slices.Equal(s.told, want) {
			t.Errorf("told of %v, want %d to %d", s.told, want[0], want[len(want)-1])
		}
	})
}
