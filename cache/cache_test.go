package cache

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"go.uber.org/goleak"

	"github.com/spate-project/spate/cache/piece"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := writeUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(evictingEnv); dir != "" {
		fmt.Fprintln(os.Stderr, evictUntilKilled(dir))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

const small = piece.LeafSize // the smallest piece length there is

// content returns n bytes that nothing compresses, the same for the same seed.
func content(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	copy(key[:], strconv.FormatUint(seed, 10))
	rand.NewChaCha8(key).Read(b)
	return b
}

// treeOf returns the tree of data.
func treeOf(tb testing.TB, data []byte, pieceLength int64) *piece.Tree {
	return treeNamed(tb, sha256.Sum256(data), data, pieceLength)
}

// treeNamed is treeOf with a digest of the caller's choice, which need not be true.
func treeNamed(tb testing.TB, d piece.Digest, data []byte, pieceLength int64) *piece.Tree {
	tb.Helper()
	t, err := buildTree(d, data, pieceLength)
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

// buildTree computes a tree in the plainest way, with any piece length.
func buildTree(d piece.Digest, data []byte, pieceLength int64) (*piece.Tree, error) {
	o := piece.Object{Digest: d, Size: int64(len(data)), PieceLength: pieceLength}
	width := int(pieceLength / piece.LeafSize)
	if o.Pieces() == 1 {
		width = 1 // as many leaves as there are, up to a power of two
	}
	var layer []piece.Hash
	for chunk := range slices.Chunk(data, int(pieceLength)) {
		var leaves []piece.Hash
		for leaf := range slices.Chunk(chunk, piece.LeafSize) {
			leaves = append(leaves, sha256.Sum256(leaf))
		}
		layer = append(layer, merkle(leaves, piece.Hash{}, width))
	}
	if len(layer) > 0 {
		o.Root = piece.Root(merkle(layer, merkle(nil, piece.Hash{}, width), 1))
	}
	var flat []byte
	if len(layer) > 1 {
		for _, h := range layer {
			flat = append(flat, h[:]...)
		}
	}
	return piece.NewTree(o, flat)
}

// merkle folds nodes, padded to a power of two that is at least width.
func merkle(nodes []piece.Hash, pad piece.Hash, width int) piece.Hash {
	for width < len(nodes) {
		width *= 2
	}
	nodes = slices.Clone(nodes)
	for len(nodes) < width {
		nodes = append(nodes, pad)
	}
	for len(nodes) > 1 {
		var up []piece.Hash
		for pair := range slices.Chunk(nodes, 2) {
			up = append(up, sha256.Sum256(append(slices.Clone(pair[0][:]), pair[1][:]...)))
		}
		nodes = up
	}
	return nodes[0]
}

func openStore(tb testing.TB, dir string, opts Options) *Store {
	tb.Helper()
	opts.AuditQuiet = cmp.Or(opts.AuditQuiet, 1) // or each test of an audit waits
	s, err := Open(dir, opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

func openObject(tb testing.TB, s *Store, t *piece.Tree, src Source) *Object {
	tb.Helper()
	o, err := s.Open(t, src)
	if err != nil {
		tb.Fatal(err)
	}
	return o
}

// put verifies and puts piece i of data.
func put(tb testing.TB, o *Object, data []byte, i int) {
	tb.Helper()
	if err := putPiece(o, data, i); err != nil {
		tb.Fatal(err)
	}
}

func putPiece(o *Object, data []byte, i int) error {
	off, n := o.object.Span(i)
	v, err := o.tree.Verify(i, data[off:off+n])
	if err != nil {
		return err
	}
	return o.Put(v)
}

func putAll(tb testing.TB, o *Object, data []byte) {
	tb.Helper()
	for _, i := range rand.Perm(o.object.Pieces()) {
		put(tb, o, data, i)
	}
}

// readAll reads o through all its doors and fails unless each gives data.
func readAll(tb testing.TB, o *Object, data []byte) {
	tb.Helper()
	fetching := readerAtFunc(func(p []byte, off int64) (int, error) { return o.ReadContext(tb.Context(), p, off) })
	for _, r := range []io.ReaderAt{fetching, o, o.File()} {
		got, err := io.ReadAll(io.NewSectionReader(r, 0, 1<<40))
		if err != nil {
			tb.Fatalf("read all by %T: %v", r, err)
		}
		if !bytes.Equal(got, data) {
			tb.Fatalf("%T gives other bytes", r)
		}
	}
}

type readerAtFunc func(p []byte, off int64) (int, error)

func (f readerAtFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

// TestStore runs the suite on a disk and in memory.
func TestStore(t *testing.T) {
	suite := map[string]func(t *testing.T, dir string){
		"sizes":           testSizes,
		"blocks":          testBlocks,
		"blocks and put":  testBlocksBesidePut,
		"rivals":          testRivals,
		"absent":          testAbsent,
		"refusals":        testRefusals,
		"wrong blocks":    testWrongBlocks,
		"open twice":      testOpenTwice,
		"another root":    testAnotherRoot,
		"remove":          testRemove,
		"reopen":          testReopen,
		"lock":            testLock,
		"closing":         testClosing,
		"arrivals":        testArrivals,
		"audit":           testAudit,
		"quarantine":      testQuarantine,
		"export":          testExport,
		"lazy":            testLazy,
		"incoming":        testIncoming,
		"stack":           testStack,
		"evict":           testEvict,
		"quota full":      testQuotaFull,
		"pins":            testPins,
		"gc":              testGC,
		"account":         testAccount,
		"cut short":       testCutShort,
		"every read once": testEveryReadOnce,
	}
	for place, dir := range map[string]string{"disk": os.TempDir(), "memory": "/dev/shm"} {
		t.Run(place, func(t *testing.T) {
			for name, test := range suite {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					d, err := os.MkdirTemp(dir, "spate-cache-test-*")
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { os.RemoveAll(d) })
					test(t, d)
				})
			}
		})
	}
}
