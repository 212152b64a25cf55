package cache

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spate-project/spate/cache/piece"
)

// A ledger is an origin that writes down which pieces it was asked for.
type ledger struct {
	origin
	mu    sync.Mutex
	asked []int
	now   int           // fetches under way
	most  int           // of them at a time
	fails error         // when not nil: what each ends with
	took  time.Duration // how long each fetch takes
}

func (s *ledger) Fetch(ctx context.Context, d piece.Digest, i int) error {
	s.mu.Lock()
	s.asked = append(s.asked, i)
	s.now++
	s.most = max(s.most, s.now)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.now--
		s.mu.Unlock()
	}()
	if s.fails != nil {
		return s.fails
	}
	select {
	case <-time.After(s.took):
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.origin.Fetch(ctx, d, i)
}

// pieces returns what was asked for, in order.
func (s *ledger) pieces() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(slices.Values(s.asked))
}

const (
	aheadPieces = 32 // that are fetched ahead at most in these tests
	aheadLimit  = aheadPieces * small
)

// withLedger runs test with an object of so many pieces, and a clock of its own.
func withLedger(t *testing.T, pieces int, test func(t *testing.T, s *ledger, o *Object)) {
	dir := t.TempDir()
	data := content(1, pieces*small-100)
	tree := treeOf(t, data, small)
	synctest.Test(t, func(t *testing.T) {
		s := &ledger{origin: origin{data: data}}
		s.into = openObject(t, openStore(t, dir, Options{}), tree, s)
		s.into.ReadAhead(aheadLimit)
		test(t, s, s.into)
	})
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

// TestReadAhead: the window is as long as the run, less an eighth of the limit,
// up to the limit, and ends with the object. Each piece is fetched once.
func TestReadAhead(t *testing.T) {
	const begin, step, total = 10, 2, 200
	withLedger(t, total, func(t *testing.T, s *ledger, o *Object) {
		for at := begin; at < total; at += step {
			read(t, o, at, step)
			synctest.Wait()
			end := at + step
			window := min(aheadPieces, max(0, end-begin-step-aheadPieces/8))
			if want := upTo(begin, min(total, end+window)); !slices.Equal(s.pieces(), want) {
				t.Fatalf("after a read to %d: asked for %v, want %d to %d", end, s.pieces(), want[0], want[len(want)-1])
			}
		}
		if st := o.store.Stats(); st.Misses+st.Hits != total-begin || st.Stalls > 6 {
			t.Errorf("what is fetched ahead is counted as reads, or reads waited: %+v", st)
		}
	})
}

// TestReadAheadOfManyAtOnce has readers side by side, whose reads are shuffled a
// little, as the kernel sends them. The limit is for all of them together.
func TestReadAheadOfManyAtOnce(t *testing.T) {
	const readers, each = 12, 64
	withLedger(t, readers*each, func(t *testing.T, s *ledger, o *Object) {
		s.took = time.Millisecond
		for at := 0; at < each; at += 4 {
			for _, k := range rand.Perm(readers) {
				for _, i := range []int{1, 0, 2, 3} {
					read(t, o, k*each+at+i, 1)
				}
			}
			time.Sleep(time.Second)
		}
		if n := o.store.Stats().Stalls; n > readers*each/4 {
			t.Errorf("%d of %d reads had to wait", n, readers*each)
		}
		if want := upTo(0, readers*each); !slices.Equal(s.pieces(), want) {
			t.Errorf("%d pieces were asked for %d times", len(want), len(s.pieces()))
		}
		if s.most > 1+aheadPieces { // that one is being read
			t.Errorf("%d fetches at a time", s.most)
		}
	})
}

// TestReadAheadNotOfRandomReads: a random reader gets what it reads, also where
// its reads come in parts, in any order, and after a table full of others.
func TestReadAheadNotOfRandomReads(t *testing.T) {
	const size, places = aheadPieces / 8, 40
	for name, parts := range map[string][]int{"whole": {0}, "in parts": {0, 1, 2, 3}, "in parts, shuffled": {2, 0, 1, 3}} {
		t.Run(name, func(t *testing.T) {
			withLedger(t, places*3*size, func(t *testing.T, s *ledger, o *Object) {
				var want []int
				for _, place := range rand.Perm(places) {
					first := place * 3 * size
					for _, part := range parts {
						read(t, o, first+part*size/len(parts), size/len(parts))
					}
					want = append(want, upTo(first, first+size)...)
				}
				synctest.Wait()
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
		for at := 0; at < 3*aheadPieces/8; at += 3 {
			read(t, o, at, 1)
		}
		synctest.Wait()
		if n := len(s.pieces()); n != 2+aheadPieces/8 {
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
		synctest.Wait()
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

// TestReadAheadKeepsNobody: reads of what is here go on while nothing comes
// ahead of them, no more than the limit is on its way, and the last Close ends it.
func TestReadAheadKeepsNobody(t *testing.T) {
	withLedger(t, 400, func(t *testing.T, s *ledger, o *Object) {
		for i := range 100 {
			put(t, o, s.data, i)
			put(t, o, s.data, 200+i)
		}
		s.took = time.Hour
		waits := make(chan error, 1)
		go func() { waits <- o.Ensure(t.Context(), 105*small, 1) }()
		synctest.Wait()
		begin := time.Now()
		for i := range 100 {
			read(t, o, i, 1)
			read(t, o, 200+i, 1)
		}
		synctest.Wait()
		if took := time.Since(begin); took != 0 || s.now != 1+aheadPieces {
			t.Errorf("reads of what is here took %v, %d pieces are on their way", took, s.now)
		}
		if asked := s.pieces(); len(slices.Compact(asked)) != s.now {
			t.Errorf("asked for %v", asked)
		}
		if err := o.Close(); err != nil {
			t.Error(err)
		}
		if s.now != 0 {
			t.Errorf("%d pieces are on their way after Close", s.now)
		}
		if err := <-waits; !errors.Is(err, fs.ErrClosed) {
			t.Errorf("a reader that waited: %v", err)
		}
		if err := o.Ensure(t.Context(), 100*small, 1); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("a read after Close: %v", err)
		}
	})
}

// TestReadAheadFails: an error ahead of a reader is not the reader's, who meets its own.
func TestReadAheadFails(t *testing.T) {
	withLedger(t, 100, func(t *testing.T, s *ledger, o *Object) {
		for i := range 20 {
			put(t, o, s.data, i)
		}
		s.fails = piece.ErrNotTrusted
		for i := range 20 {
			read(t, o, i, 1)
		}
		synctest.Wait()
		if len(s.pieces()) == 0 || s.now != 0 || o.ahead.flying != 0 {
			t.Fatalf("asked for %v, %d still", s.pieces(), o.ahead.flying)
		}
		if err := o.Ensure(t.Context(), 20*small, 1); !errors.Is(err, piece.ErrNotTrusted) {
			t.Errorf("the reader who comes there: %v", err)
		}
		synctest.Wait()
		s.fails = nil
		read(t, o, 20, 80)
	})
}

// TestReadAheadLeavesTheReaderItsTime: who comes to a piece that is on its way
// has all of FetchTimeout for it, however long ago that began; the next one has not.
func TestReadAheadLeavesTheReaderItsTime(t *testing.T) {
	withLedger(t, 100, func(t *testing.T, s *ledger, o *Object) {
		for i := range 20 {
			put(t, o, s.data, i)
		}
		s.fails = errors.New("the registry is down")
		for i := range 20 {
			read(t, o, i, 1)
		}
		const timeout = 2 * time.Minute
		time.Sleep(timeout - time.Second)
		begin := time.Now()
		second := make(chan time.Duration)
		go func() {
			time.Sleep(time.Minute)
			o.Ensure(t.Context(), 20*small, 1)
			second <- time.Since(begin)
		}()
		if err := o.Ensure(t.Context(), 20*small, 1); err == nil || time.Since(begin) != timeout {
			t.Errorf("the reader waited %v: %v", time.Since(begin), err)
		}
		if took := <-second; took != timeout {
			t.Errorf("the second reader waited until %v", took)
		}
		synctest.Wait()
		if s.now != 0 || o.ahead.flying != 0 {
			t.Errorf("%d fetches go on", s.now)
		}
		s.fails = nil
		read(t, o, 20, 80) // and the registry is back
	})
}
