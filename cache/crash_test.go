package cache

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/spate-project/spate/cache/piece"
)

const childEnv = "SPATE_CACHE_TEST_CHILD"

// The objects that the process to be killed writes, in this order.
const (
	crashObjects = 200
	crashPieces  = 24
)

func crashObject(k int) ([]byte, *piece.Tree) {
	data := content(uint64(k), crashPieces*4*small-k)
	t, err := buildTree(sha256.Sum256(data), data, 4*small)
	if err != nil {
		panic(err)
	}
	return data, t
}

// writeUntilKilled fills objects from two goroutines, one with whole pieces and
// one with blocks, and says on standard output which pieces it recorded.
func writeUntilKilled(dir string) error {
	s, err := Open(dir, Options{})
	if err != nil {
		return err
	}
	for k := range crashObjects {
		data, tree := crashObject(k)
		o, err := s.Open(tree, nil)
		if err != nil {
			return err
		}
		var g errgroup.Group
		for half, block := range []int{0, 9000} {
			src := &origin{into: o, data: data, block: block}
			g.Go(func() error {
				for _, i := range rand.Perm(crashPieces) {
					if i%2 != half {
						continue
					}
					if err := src.Fetch(context.Background(), o.object.Digest, i); err != nil {
						return err
					}
					fmt.Printf("%d %d\n", k, i)
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// startChild starts this program with role set to dir, and returns what it says, line by line.
func startChild(t *testing.T, role, dir string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^$")
	cmd.Env = append(os.Environ(), role+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out)
}

// TestKill kills a writing process at random points: what it said is recorded
// is there and right, and nothing else can be read but right bytes.
func TestKill(t *testing.T) {
	for round := range 10 {
		dir := t.TempDir()
		cmd, lines := startChild(t, childEnv, dir)
		said := map[[2]int]bool{}
		for until := 1 + rand.IntN(40*(round+1)); lines.Scan(); {
			var k, i int
			if _, err := fmt.Sscan(lines.Text(), &k, &i); err != nil {
				t.Fatalf("%q: %v", lines.Text(), err)
			}
			said[[2]int{k, i}] = true
			if len(said) == until {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()

		s := openStore(t, dir, Options{})
		found := 0
		for k := range crashObjects {
			data, tree := crashObject(k)
			if _, err := os.Stat(s.objectPath(tree.Object().Digest)); err != nil {
				break
			}
			o := openObject(t, s, tree, nil)
			for i := range crashPieces {
				off, n := o.object.Span(i)
				got := make([]byte, n)
				switch _, err := o.ReadAt(got, off); {
				case err == nil && !bytes.Equal(got, data[off:off+n]):
					t.Fatalf("object %d piece %d: wrong bytes were read", k, i)
				case err == nil:
					found++
				case !errors.Is(err, piece.ErrNotHere):
					t.Fatal(err)
				case said[[2]int{k, i}]:
					t.Fatalf("object %d piece %d was recorded and is gone", k, i)
				}
			}
			putAll(t, o, data) // life goes on
			readAll(t, o, data)
			o.Close()
		}
		if found < len(said) {
			t.Fatalf("%d pieces were recorded, %d found", len(said), found)
		}
		if bad := s.Stats().BadClaims; bad != 0 {
			t.Errorf("%d claims were broken although only the process died", bad)
		}
		s.Close()
	}
}

// TestFlip alters each byte of the record, and bytes of the data, in turn: no
// altered byte is ever read, and a source makes all well again.
func TestFlip(t *testing.T) {
	data := content(1, 3*small-11)
	tree := treeOf(t, data, small)
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	o := openObject(t, s, tree, nil)
	putAll(t, o, data)
	runAudits(t, s, 1)
	home := s.objectPath(o.object.Digest)
	s.Close()

	for name, step := range map[string]int{recordName: 1, dataName: 211} {
		path := filepath.Join(home, name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(whole); at += step {
			broken := bytes.Clone(whole)
			broken[at] ^= byte(1 + rand.IntN(255))
			if err := os.WriteFile(path, broken, 0o600); err != nil {
				t.Fatal(err)
			}
			s := openStore(t, dir, Options{})
			src := &origin{data: data}
			src.into = openObject(t, s, tree, src)
			for i := range tree.Object().Pieces() {
				off, n := tree.Object().Span(i)
				got := make([]byte, n)
				if _, err := src.into.ReadAt(got, off); err == nil && !bytes.Equal(got, data[off:off+n]) {
					t.Fatalf("%s: flipping byte %d reached a reader", name, at)
				}
			}
			if p := src.into.Progress(); name == dataName && p.Present != 2 {
				t.Fatalf("flipping byte %d of the data left %d of 3 pieces", at, p.Present)
			}
			readAll(t, src.into, data)
			s.Close()
		}
	}
}

// TestSealed has writers of garbage race with Put and Commit: from the moment
// that a piece is present its bytes in the file stay.
func TestSealed(t *testing.T) {
	data := content(1, 40*4*small)
	o := openObject(t, openStore(t, t.TempDir(), Options{}), treeOf(t, data, 4*small), nil)
	garbage := content(2, 4*small)
	for i := range o.object.Pieces() {
		off, n := o.object.Span(i)
		var stop atomic.Bool
		var wg sync.WaitGroup
		for w := range 3 {
			wg.Go(func() {
				for !stop.Load() {
					src, at := garbage, rand.Int64N(n)
					if rand.IntN(2) == w%2 {
						src, at = data[off:], 0
					}
					if err := o.WriteBlock(i, src[:n-at], at); err != nil {
						t.Error(err)
					}
				}
			})
		}
		for tries := 0; !o.Has(i); tries++ {
			if i%2 == 0 || tries > 50 {
				put(t, o, data, i)
			} else if err := o.Commit(i); err != nil {
				if wrong := (*piece.WrongBytesError)(nil); !errors.As(err, &wrong) {
					t.Fatal(err)
				}
			}
		}
		for range 20 {
			got := make([]byte, n)
			if _, err := o.File().ReadAt(got, off); err != nil || !bytes.Equal(got, data[off:off+n]) {
				t.Fatalf("piece %d changed after it was present: %v", i, err)
			}
		}
		stop.Store(true)
		wg.Wait()
	}
	readAll(t, o, data)
}

func TestBuffersAreBounded(t *testing.T) {
	b := newBuffers(100)
	var lent, most atomic.Int64
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for _, n := range []int64{60, 30, 10, 250} {
				p := b.get(n)
				now := lent.Add(n)
				for {
					m := most.Load()
					if now <= m || most.CompareAndSwap(m, now) {
						break
					}
				}
				if n == 250 && now != 250 {
					t.Errorf("a buffer beyond the limit was lent beside %d bytes of others", now-n)
				}
				lent.Add(-n)
				b.put(p)
			}
		})
	}
	wg.Wait()
	if most.Load() > 250 {
		t.Errorf("%d bytes were lent at a time", most.Load())
	}
}

func FuzzRecord(f *testing.F) {
	for _, size := range []int{0, 1, small, 3 * small} {
		t := treeOf(f, content(1, size), small)
		header := encodeHeader(t)
		f.Add(append(header, make([]byte, (t.Object().Pieces()+1)*slotSize)...))
		f.Add(header)
	}
	f.Add([]byte(strings.Repeat(recordMagic, 40)))
	f.Fuzz(func(t *testing.T, b []byte) {
		tree, slots, err := parseRecord(b)
		if err != nil {
			return
		}
		// A record has one encoding.
		if again := append(encodeHeader(tree), slots...); !bytes.Equal(again, b) {
			t.Fatal("the record is not what its tree encodes to")
		}
		for i := range tree.Object().Pieces() {
			claims(tree, slots, i)
		}
	})
}

// TestCrashStates opens what a crash between any two steps leaves behind.
func TestCrashStates(t *testing.T) {
	data := content(1, 3*small)
	tree := treeOf(t, data, small)
	header := encodeHeader(tree)
	hash := tree.Hash(1)
	slots := make([]byte, 4*slotSize)
	copy(slots[slotSize:], hash[:])
	whole := bytes.Clone(data)
	clear(whole[:small]) // a hole
	for name, test := range map[string]struct {
		data, record []byte // nil: no file
		present      int
	}{
		"directory only":         {nil, nil, 0},
		"data not sized":         {[]byte{}, nil, 0},
		"no record":              {whole, nil, 0},
		"empty record":           {whole, []byte{}, 0},
		"torn header":            {whole, header[:len(header)/2], 0},
		"header without slots":   {whole, header, 0},
		"torn slots":             {whole, append(bytes.Clone(header), slots[:20]...), 0},
		"more than a record":     {whole, append(append(bytes.Clone(header), slots...), 0), 0},
		"bytes without the slot": {whole, append(bytes.Clone(header), make([]byte, 4*slotSize)...), 0},
		"slot without its bytes": {make([]byte, 3*small), append(bytes.Clone(header), slots...), 0},
		"slot, data cut":         {whole[:small+1], append(bytes.Clone(header), slots...), 0},
		"slot and bytes":         {whole, append(bytes.Clone(header), slots...), 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, t.TempDir(), Options{})
			home := s.objectPath(tree.Object().Digest)
			if err := os.MkdirAll(home, 0o700); err != nil {
				t.Fatal(err)
			}
			for file, b := range map[string][]byte{dataName: test.data, recordName: test.record} {
				if b == nil {
					continue
				}
				if err := os.WriteFile(filepath.Join(home, file), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			src := &origin{data: data}
			src.into = openObject(t, s, tree, src)
			if err := src.into.Recheck(t.Context()); err != nil {
				t.Fatal(err)
			}
			if p := src.into.Progress(); p != (Progress{Present: test.present, Total: 3}) {
				t.Errorf("%+v", p)
			}
			readAll(t, src.into, data)
			if n := src.asked.Load(); n != int64(3-test.present) {
				t.Errorf("%d pieces were fetched", n)
			}
		})
	}
}
