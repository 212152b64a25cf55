package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/spate-project/spate/cache/piece"
)

const evictingEnv = "SPATE_CACHE_TEST_EVICTING"

// evictSize is the size of each object here: four pieces.
const evictSize = 4 * small

// evictObject returns the k-th object.
func evictObject(tb testing.TB, k int) ([]byte, *piece.Tree) {
	data := content(uint64(1000+k), evictSize)
	return data, treeOf(tb, data, small)
}

// holding puts the k-th object into s and leaves it in use.
func holding(tb testing.TB, s *Store, k int) *Object {
	tb.Helper()
	data, tree := evictObject(tb, k)
	o := openObject(tb, s, tree, nil)
	putAll(tb, o, data)
	return o
}

// held returns which of the first n objects lie in s, in whole or in part, in the order of their numbers.
func held(tb testing.TB, s *Store, n int) (ks []int) {
	tb.Helper()
	list := s.List()
	for k := range n {
		_, tree := evictObject(tb, k)
		if slices.ContainsFunc(list, func(h Held) bool { return h.Digest == tree.Object().Digest && h.Bytes > 0 }) {
			ks = append(ks, k)
		}
	}
	return ks
}

// checkUsed fails unless the store counts n bytes, now and after it was opened anew, which it returns.
func checkUsed(t *testing.T, s *Store, n int64) *Store {
	t.Helper()
	opts := s.opts
	opts.Quota = s.Stats().Quota
	for range 2 {
		if st := s.Stats(); st.Used != n {
			t.Errorf("%d bytes count, want %d", st.Used, n)
		}
		if left, err := os.ReadDir(filepath.Join(s.dir, incomingDir)); err != nil || len(left) > 0 {
			t.Errorf("what went, or is here, left %v: %v", left, err)
		}
		s.Close()
		s = openStore(t, s.dir, opts)
	}
	return s
}

func testEvict(t *testing.T, dir string) {
	evictions := 0
	s := openStore(t, dir, Options{Quota: 3 * evictSize, OnEvict: func() { evictions++ }})
	holding(t, s, 0).Close()
	holding(t, s, 1).Linger()
	used := holding(t, s, 2)
	reused := holding(t, s, 0)
	reused.Close()
	if st := s.Stats(); st.Used != 3*evictSize || st.Pinned != evictSize || st.Evicted != 0 || evictions != 0 {
		t.Errorf("%+v, and %d calls", st, evictions)
	}

	_, tree := evictObject(t, 1)
	lingering := openObject(t, s, tree, nil)
	lingering.Linger()
	holding(t, s, 0).Close() // now 1 was used before it
	o := holding(t, s, 3)
	if got := held(t, s, 5); !slices.Equal(got, []int{0, 2, 3}) {
		t.Errorf("left are %v", got)
	}
	if err := lingering.Err(); !errors.Is(err, ErrEvicted) || lingering.Reopen() {
		t.Errorf("what was evicted says %v", err)
	}
	if _, err := lingering.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrEvicted) {
		t.Errorf("a read of what was evicted: %v", err)
	}
	if st := s.Stats(); st.Evicted != 1 || st.EvictedBytes != evictSize || evictions != 1 {
		t.Errorf("%+v, and %d calls", st, evictions)
	}
	o.Linger()
	if !o.Reopen() || o.Err() != nil {
		t.Errorf("what lingers is not to be had: %v", o.Err())
	}
	o.Close()
	used.Close()
	s = checkUsed(t, s, 3*evictSize)

	// The order in which they were used last holds after a restart: 0, 3, 2.
	holding(t, s, 4).Close()
	if got := held(t, s, 5); !slices.Equal(got, []int{2, 3, 4}) {
		t.Errorf("left are %v", got)
	}
	if err := s.SetQuota(evictSize); err != nil {
		t.Fatal(err)
	}
	if got := held(t, s, 5); !slices.Equal(got, []int{4}) {
		t.Errorf("left are %v", got)
	}
	checkUsed(t, s, evictSize)
}

// testQuotaFull: what has no room fails at once and says so, and what is here stays.
func testQuotaFull(t *testing.T, dir string) {
	s := openStore(t, dir, Options{Quota: evictSize + 2*small})
	holding(t, s, 0)
	data, tree := evictObject(t, 1)
	src := &origin{data: data, block: small / 2}
	o := openObject(t, s, tree, src)
	src.into = o
	_, err := o.ReadContext(t.Context(), make([]byte, len(data)), 0)
	full, ok := errors.AsType[*QuotaError](err)
	if !ok || !errors.Is(err, syscall.ENOSPC) || full.Quota != evictSize+2*small || full.Pinned != full.Quota {
		t.Fatalf("%v", err)
	}
	put := func(i int) error { return putPiece(o, data, i) }
	for i := range o.object.Pieces() {
		if err := put(i); (err == nil) != o.Has(i) || err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("put piece %d: %v", i, err)
		}
	}
	if p := o.Progress(); p.Present != 2 {
		t.Errorf("%+v, want as many pieces as there is room for", p)
	}
	if _, err := s.Receive(piece.Digest{1}, small); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("receive: %v", err)
	}
	if err := s.SetQuota(evictSize); !errors.As(err, &full) || full.Quota != evictSize || full.Pinned != evictSize+2*small {
		t.Errorf("a quota of less than is in use: %v", err)
	}
	if st := s.Stats(); st.Quota != evictSize+2*small || st.Evicted != 0 {
		t.Errorf("%+v", st)
	}
	if err := s.SetQuota(0); err != nil {
		t.Fatal(err)
	}
	readAll(t, o, data)
	checkUsed(t, s, 2*evictSize)
}

func testPins(t *testing.T, dir string) {
	s := openStore(t, dir, Options{})
	var ds []piece.Digest
	for k := range 3 {
		o := holding(t, s, k)
		ds = append(ds, o.object.Digest)
		o.Close()
	}
	for _, err := range []error{s.Pin("a", ds[:1]), s.Pin("b", ds[:2]), s.Pin("none", nil)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s = checkUsed(t, s, 3*evictSize)
	if got := s.Pins(ds[0]); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("pinned by %v", got)
	}
	var full *QuotaError
	if err := s.SetQuota(evictSize); !errors.As(err, &full) || full.Pinned != 2*evictSize {
		t.Errorf("a quota of less than is pinned: %v", err)
	}
	s.Close()
	if _, err := Open(dir, Options{Quota: evictSize}); !errors.As(err, &full) || full.Pinned != 2*evictSize {
		t.Errorf("opened with a quota of less than is pinned: %v", err)
	}
	s = openStore(t, dir, Options{Quota: 2 * evictSize})
	if got := held(t, s, 3); !slices.Equal(got, []int{0, 1}) {
		t.Errorf("left are %v", got)
	}
	for name, want := range map[string]bool{"b": true, "c": false} {
		if was, err := s.Unpin(name); was != want || err != nil {
			t.Errorf("unpin %s: %v, %v", name, was, err)
		}
	}
	s = checkUsed(t, s, 2*evictSize)
	if err := s.SetQuota(evictSize); err != nil {
		t.Fatal(err)
	}
	if got := held(t, s, 3); !slices.Equal(got, []int{0}) {
		t.Errorf("left are %v", got)
	}
	s.Close()

	for _, broken := range []string{"", "null", `{"a":["sha256:`, `{"a":["md5:00"]}`, "\x00\x00"} {
		if err := os.WriteFile(filepath.Join(dir, pinsName), []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		s := openStore(t, dir, Options{})
		if got := s.Pins(ds[0]); len(got) > 0 {
			t.Errorf("%q pins by %v", broken, got)
		}
		if err := s.Pin("again", ds[:1]); err != nil {
			t.Errorf("%q: %v", broken, err)
		}
		s.Close()
	}
}

// testGC: what nobody can use goes, and nothing else.
func testGC(t *testing.T, dir string) {
	s := openStore(t, dir, Options{})
	holding(t, s, 0).Close()
	_, tree := evictObject(t, 1)
	openObject(t, s, tree, nil).Close()
	_, tree = evictObject(t, 2)
	openObject(t, s, tree, nil)
	data := content(7, evictSize)
	wrong := openObject(t, s, treeNamed(t, piece.Digest{7}, data, small), nil)
	putAll(t, wrong, data)
	runAudits(t, s, 1)
	wrong.Close()
	if n := len(s.List()); n != 3 {
		t.Errorf("%d objects are here, want 3", n)
	}
	if err := s.GC(); err != nil {
		t.Fatal(err)
	}
	if n := len(s.List()); n != 2 {
		t.Errorf("%d objects are left, want the open one and the one with pieces", n)
	}
	putAll(t, openObject(t, s, treeNamed(t, piece.Digest{7}, data, small), nil), data)
	checkUsed(t, s, 2*evictSize)
}

// testAccount: each way that bytes come and go counts, and a restart counts the same.
func testAccount(t *testing.T, dir string) {
	s := openStore(t, dir, Options{Quota: 3 * evictSize})
	data, tree := evictObject(t, 0)
	o := openObject(t, s, tree, nil)
	if err := o.WriteBlock(1, data[:small/2], 0); err != nil {
		t.Fatal(err)
	}
	put(t, o, data, 0)
	put(t, o, data, 0)
	if used := s.Stats().Used; used != 2*small {
		t.Errorf("one piece and one that was begun count %d bytes", used)
	}
	o.Close()
	s = checkUsed(t, s, small)

	in, err := s.Receive(tree.Object().Digest, evictSize)
	if err != nil {
		t.Fatal(err)
	}
	if used := s.Stats().Used; used != small+evictSize {
		t.Errorf("with an object on its way %d bytes count", used)
	}
	in.Write(data)
	if _, err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	s = checkUsed(t, s, evictSize)
	path := filepath.Join(s.objectPath(tree.Object().Digest), recordName)
	s.Close()
	if err := os.Truncate(path, 10); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, Options{Quota: 3 * evictSize})
	if used := s.Stats().Used; used < evictSize {
		t.Errorf("without its record the object counts %d bytes", used)
	}
	openObject(t, s, tree, nil).Linger()
	if used := s.Stats().Used; used != 0 {
		t.Errorf("begun anew it counts %d bytes", used)
	}
	if err := s.Remove(tree.Object().Digest); err != nil {
		t.Errorf("remove what lingers: %v", err)
	}
	checkUsed(t, s, 0)
}

// TestEvictRaces has many open, write, read and leave more objects than there is
// room for: each read is right or says why there is none.
// TestEvictKeep: what is to be kept goes when nothing else can, by its last use too.
func TestEvictKeep(t *testing.T) {
	keep := make(map[piece.Digest]bool)
	for k := range 2 {
		_, tree := evictObject(t, k)
		keep[tree.Object().Digest] = true
	}
	s := openStore(t, t.TempDir(), Options{Quota: 3 * evictSize, Keep: func(d piece.Digest) bool { return keep[d] }})
	for k := range 3 {
		holding(t, s, k).Close()
	}
	holding(t, s, 3).Close()
	if got := held(t, s, 5); !slices.Equal(got, []int{0, 1, 3}) {
		t.Errorf("left are %v", got)
	}
	used := holding(t, s, 3)
	holding(t, s, 4).Close()
	if got := held(t, s, 5); !slices.Equal(got, []int{1, 3, 4}) {
		t.Errorf("where only what is kept can go, left are %v", got)
	}
	used.Close()
}

func TestEvictRaces(t *testing.T) {
	const objects, workers, rounds = 8, 6, 150
	s := openStore(t, t.TempDir(), Options{Quota: 4 * evictSize})
	var datas [objects][]byte
	var trees [objects]*piece.Tree
	for k := range objects {
		datas[k], trees[k] = evictObject(t, k)
	}
	fine := func(err error) bool {
		return err == nil || errors.Is(err, syscall.ENOSPC) || errors.Is(err, fs.ErrClosed) || errors.Is(err, piece.ErrNotHere)
	}
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range rounds {
				k := rand.IntN(objects)
				o, err := s.Open(trees[k], nil)
				if err != nil {
					t.Error(err)
					return
				}
				for _, i := range rand.Perm(4) {
					if err := putPiece(o, datas[k], i); !fine(err) || errors.Is(err, fs.ErrClosed) {
						t.Errorf("put while it is in use: %v", err)
					}
				}
				if rand.IntN(2) == 0 {
					o.Close()
				} else {
					o.Linger()
				}
				got := make([]byte, evictSize) // nobody keeps it any more
				if _, err := o.ReadAt(got, 0); !fine(err) || err == nil && !bytes.Equal(got, datas[k]) {
					t.Errorf("read: %v", err)
				}
				if o.Reopen() {
					if err := o.Err(); err != nil {
						t.Errorf("what is in use says %v", err)
					}
					o.Close()
				}
			}
		})
	}
	wg.Wait()
	st := s.Stats()
	if st.Used > st.Quota || st.Evicted == 0 || st.Pinned != 0 {
		t.Errorf("%+v", st)
	}
	checkUsed(t, s, st.Used)
}

// evictUntilKilled fills objects over and over, says on standard output which is
// about to be evicted or is whole, and pins one of them now and then.
func evictUntilKilled(dir string) error {
	s, err := Open(dir, Options{Quota: 3 * evictSize})
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		data := content(uint64(1000+n%6), evictSize)
		tree, err := buildTree(sha256.Sum256(data), data, small)
		if err != nil {
			return err
		}
		src := &origin{data: data}
		if src.into, err = s.Open(tree, src); err != nil {
			return err
		}
		if err := src.into.Ensure(context.Background(), 0, evictSize); err != nil {
			return err
		}
		if err := s.Pin("last", []piece.Digest{tree.Object().Digest}); err != nil {
			return err
		}
		src.into.Linger()
		fmt.Println(n % 6)
	}
}

// TestEvictKill kills a process that evicts at random points: what it pinned last
// is whole, what else is there is read right, all of it is within the quota, and
// nothing is left of what went.
func TestEvictKill(t *testing.T) {
	for round := range 6 {
		dir := t.TempDir()
		cmd, lines := startChild(t, evictingEnv, dir)
		for until := 5 + 7*round + rand.IntN(20); lines.Scan(); until-- {
			if until == 0 {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()

		s := openStore(t, dir, Options{})
		if used := s.Stats().Used; used > 3*evictSize {
			t.Errorf("%d bytes are here, the quota was %d", used, 3*evictSize)
		}
		if left, _ := os.ReadDir(filepath.Join(dir, incomingDir)); len(left) > 0 {
			t.Errorf("left is %v", left)
		}
		pinned := 0
		for k := range 6 {
			data, tree := evictObject(t, k)
			whole := len(s.Pins(tree.Object().Digest)) > 0
			o := openObject(t, s, tree, nil)
			for i := range 4 {
				off, n := o.object.Span(i)
				got := make([]byte, n)
				_, err := o.ReadAt(got, off)
				if err == nil && !bytes.Equal(got, data[off:off+n]) || err != nil && (whole || !errors.Is(err, piece.ErrNotHere)) {
					t.Fatalf("object %d, pinned %v, piece %d: %v", k, whole, i, err)
				}
			}
			o.Close()
			if whole {
				pinned++
			}
		}
		if pinned != 1 {
			t.Errorf("%d objects are pinned, want the last one", pinned)
		}
		s.Close()
	}
}
