package piece

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func content(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

// reference computes BEP 52's root and piece layer from the whole tree: all
// leaf hashes, padded with zeros to a power of two, folded level by level. The
// piece layer is the level whose nodes span one piece.
func reference(data []byte, pieceLength int64) (Root, []Hash) {
	var level []Hash
	for leaf := range slices.Chunk(data, LeafSize) {
		level = append(level, sha256.Sum256(leaf))
	}
	if len(level) == 0 {
		return Root{}, nil
	}
	pieces := (len(data) + int(pieceLength) - 1) / int(pieceLength)
	width := 1
	for width < len(level) || pieces > 1 && width < int(pieceLength/LeafSize) {
		width *= 2
	}
	for len(level) < width {
		level = append(level, Hash{})
	}
	var layer []Hash
	for span := int64(LeafSize); ; span *= 2 {
		if span == pieceLength {
			layer = slices.Clone(level[:pieces])
		}
		if len(level) == 1 {
			break
		}
		up := make([]Hash, len(level)/2)
		for i := range up {
			up[i] = sha256.Sum256(append(slices.Clone(level[2*i][:]), level[2*i+1][:]...))
		}
		level = up
	}
	return Root(level[0]), layer
}

func flatten(layer []Hash) []byte {
	var b []byte
	for _, h := range layer {
		b = append(b, h[:]...)
	}
	return b
}

func refTree(tb testing.TB, data []byte, pieceLength int64) (*Tree, Object, []Hash) {
	tb.Helper()
	root, layer := reference(data, pieceLength)
	o := Object{Digest: sha256.Sum256(data), Size: int64(len(data)), PieceLength: pieceLength, Root: root}
	var flat []byte
	if o.Pieces() > 1 {
		flat = flatten(layer)
	}
	t, err := NewTree(o, flat)
	if err != nil {
		tb.Fatalf("%d bytes in pieces of %d: %v", len(data), pieceLength, err)
	}
	return t, o, layer
}

// sizes are those around which a tree changes its shape.
func sizes(pieceLength int) []int {
	sizes := []int{0, 1, LeafSize - 1, LeafSize, LeafSize + 1, 2*LeafSize + 1, 3 * LeafSize}
	for _, pieces := range []int{1, 2, 3, 4, 5, 8, 11} {
		for _, more := range []int{-LeafSize, -1, 0, 1, LeafSize} {
			sizes = append(sizes, pieces*pieceLength+more)
		}
	}
	return sizes
}

func TestTreeAgainstBEP52(t *testing.T) {
	for _, pieceLength := range []int64{LeafSize, 2 * LeafSize, 8 * LeafSize} {
		for _, size := range sizes(int(pieceLength)) {
			data := content(size)
			tree, o, layer := refTree(t, data, pieceLength)
			for i := range o.Pieces() {
				off, n := o.Span(i)
				v, err := tree.Verify(i, data[off:off+n])
				if err != nil {
					t.Fatalf("%d bytes in pieces of %d: %v", size, pieceLength, err)
				}
				if !v.Valid() || v.Index() != i || v.Object() != o || !bytes.Equal(v.Bytes(), data[off:off+n]) {
					t.Fatalf("piece %d verified as %d of %+v", i, v.Index(), v.Object())
				}
				if o.Pieces() > 1 && tree.Hash(i) != layer[i] {
					t.Fatalf("%d bytes in pieces of %d: hash %d differs", size, pieceLength, i)
				}
			}
		}
	}
}

func TestHasherAgainstBEP52(t *testing.T) {
	for _, size := range sizes(MinLength) {
		if size > 5*MinLength+1 {
			continue
		}
		data := content(size)
		root, layer := reference(data, MinLength)
		h := NewHasher(int64(size))
		for rest := data; len(rest) > 0; {
			n := 1 + rand.IntN(min(len(rest), 2*MinLength))
			if got, err := h.Write(rest[:n]); got != n || err != nil {
				t.Fatal(got, err)
			}
			rest = rest[n:]
		}
		tree, err := h.Sum()
		if err != nil {
			t.Fatal(err)
		}
		want := Object{Digest: sha256.Sum256(data), Size: int64(size), PieceLength: MinLength, Root: root}
		if tree.Object() != want {
			t.Fatalf("%d bytes: %+v, want %+v", size, tree.Object(), want)
		}
		if want.Pieces() > 1 && !bytes.Equal(tree.Layer(), flatten(layer)) || want.Pieces() <= 1 && tree.Layer() != nil {
			t.Fatalf("%d bytes: another piece layer", size)
		}
		if _, err := NewTree(tree.Object(), tree.Layer()); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if err := tree.Audit(bytes.NewReader(data)); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
	}
}

func TestHasherWantsThePromisedSize(t *testing.T) {
	for _, size := range []int64{0, 99, 101, 3 * MinLength} {
		h := NewHasher(size)
		h.Write(make([]byte, 100))
		wrong := (*SizeError)(nil)
		if _, err := h.Sum(); !errors.As(err, &wrong) || *wrong != (SizeError{Want: size, Got: 100}) {
			t.Errorf("100 bytes where %d were promised: %v", size, err)
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	data := content(2*2*LeafSize + 100)
	tree, o, _ := refTree(t, data, 2*LeafSize)
	piece := func(i int) []byte {
		off, n := o.Span(i)
		return bytes.Clone(data[off : off+n])
	}
	flipped := piece(1)
	flipped[len(flipped)-1] ^= 1
	for name, test := range map[string]struct {
		i    int
		data []byte
	}{
		"one bit":          {1, flipped},
		"another piece":    {1, piece(0)},
		"too short":        {1, piece(1)[1:]},
		"too long":         {2, append(piece(2), 0)},
		"padded with 0":    {2, append(piece(2), make([]byte, 2*LeafSize-100)...)},
		"nothing":          {0, nil},
		"before the first": {-1, piece(0)},
		"after the last":   {3, piece(2)},
	} {
		v, err := tree.Verify(test.i, test.data)
		if err == nil || v.Valid() {
			t.Errorf("%s was verified", name)
		}
		if wrong := (*WrongBytesError)(nil); test.i >= 0 && test.i < 3 && (!errors.As(err, &wrong) || wrong.Piece != test.i || wrong.Object != o.Digest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNewTreeRefuses(t *testing.T) {
	data := content(5*LeafSize + 1)
	_, good, layer := refTree(t, data, LeafSize)
	flat := flatten(layer)
	for at := range flat {
		broken := bytes.Clone(flat)
		broken[at] ^= 1 << rand.IntN(8)
		if _, err := NewTree(good, broken); err == nil {
			t.Fatalf("a layer with byte %d altered was taken", at)
		}
	}
	for name, change := range map[string]func(*Object){
		"root":         func(o *Object) { o.Root[31] ^= 1 },
		"more bytes":   func(o *Object) { o.Size += LeafSize },
		"fewer bytes":  func(o *Object) { o.Size -= LeafSize },
		"no size":      func(o *Object) { o.Size = -1 },
		"too large":    func(o *Object) { o.Size = MaxSize + 1 },
		"piece length": func(o *Object) { o.PieceLength *= 2 },
		"odd length":   func(o *Object) { o.PieceLength += 1 },
		"no length":    func(o *Object) { o.PieceLength = 0 },
		"short length": func(o *Object) { o.PieceLength = LeafSize / 2 },
		"long length":  func(o *Object) { o.PieceLength = 2 * MaxLength },
		"many pieces":  func(o *Object) { o.Size = 4*TargetPieces*LeafSize + 1 },
		"root of none": func(o *Object) { o.Size = 0 },
	} {
		o := good
		change(&o)
		if _, err := NewTree(o, flat); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	one, o, _ := refTree(t, data[:100], LeafSize)
	if _, err := NewTree(o, flat[:sha256.Size]); err == nil {
		t.Error("a layer for one piece was taken")
	}
	if one.Layer() != nil {
		t.Error("one piece has a layer")
	}
}

func TestNewTreeKeepsNothing(t *testing.T) {
	data := content(3 * LeafSize)
	_, o, layer := refTree(t, data, LeafSize)
	flat := flatten(layer)
	tree, err := NewTree(o, flat)
	if err != nil {
		t.Fatal(err)
	}
	clear(flat)
	clear(tree.Layer())
	if _, err := tree.Verify(1, data[LeafSize:2*LeafSize]); err != nil {
		t.Error("the tree shares the caller's layer:", err)
	}
}

func TestAuditRefuses(t *testing.T) {
	data := content(3*LeafSize + 5)
	tree, o, _ := refTree(t, data, LeafSize)
	flipped := bytes.Clone(data)
	flipped[0] ^= 1
	for name, b := range map[string][]byte{"flipped": flipped, "short": data[1:], "long": append(bytes.Clone(data), 0), "none": nil} {
		wrong := (*WrongBytesError)(nil)
		if err := tree.Audit(bytes.NewReader(b)); !errors.As(err, &wrong) || wrong.Piece != -1 || wrong.Object != o.Digest {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzNewTree(f *testing.F) {
	for _, size := range []int{0, 1, LeafSize, 3*LeafSize + 1} {
		_, o, layer := refTree(f, content(size), LeafSize)
		if o.Pieces() < 2 {
			layer = nil
		}
		f.Add(o.Size, o.PieceLength, o.Root[:], flatten(layer))
	}
	f.Fuzz(func(t *testing.T, size, pieceLength int64, root, layer []byte) {
		o := Object{Size: size, PieceLength: pieceLength}
		copy(o.Root[:], root)
		tree, err := NewTree(o, layer)
		if err != nil {
			return
		}
		if !bytes.Equal(tree.Layer(), layer) {
			t.Fatal("the tree has another layer than it was made from")
		}
		// Whatever was accepted is consistent: the layer folds to the root.
		if n := o.Pieces(); n > 1 {
			nodes := make([]Hash, n)
			for i := range nodes {
				nodes[i] = tree.Hash(i)
			}
			pad := Hash{}
			for span := int64(LeafSize); span < pieceLength; span *= 2 {
				pad = sha256.Sum256(append(slices.Clone(pad[:]), pad[:]...))
			}
			for len(nodes) > 1 {
				if len(nodes)%2 == 1 {
					nodes = append(nodes, pad)
				}
				var up []Hash
				for pair := range slices.Chunk(nodes, 2) {
					up = append(up, sha256.Sum256(append(slices.Clone(pair[0][:]), pair[1][:]...)))
				}
				nodes, pad = up, sha256.Sum256(append(slices.Clone(pad[:]), pad[:]...))
			}
			if Root(nodes[0]) != o.Root {
				t.Fatal("the layer does not fold to the root")
			}
		}
		for i := range o.Pieces() {
			if _, n := o.Span(i); n <= 0 || n > pieceLength {
				t.Fatalf("piece %d has %d bytes", i, n)
			}
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	for _, length := range []int64{MinLength, 4 << 20, 16 << 20} {
		b.Run(fmt.Sprintf("%dKiB", length>>10), func(b *testing.B) {
			data := content(int(length))
			tree, _, _ := refTree(b, data, length)
			b.SetBytes(length)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := tree.Verify(0, data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkHasher(b *testing.B) {
	data := content(64 << 20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		h := NewHasher(int64(len(data)))
		for chunk := range slices.Chunk(data, 1<<20) {
			h.Write(chunk)
		}
		if _, err := h.Sum(); err != nil {
			b.Fatal(err)
		}
	}
}

// TestVerifyLeaves: leaves prove a piece when they are all of its leaves, in order.
func TestVerifyLeaves(t *testing.T) {
	for _, size := range []int{1, LeafSize, 3*LeafSize - 1, MinLength, 2*MinLength + 5*LeafSize + 1} {
		data := bytes.Repeat([]byte("spate"), size/5+1)[:size]
		h := NewHasher(int64(size))
		h.Write(data)
		tree, err := h.Sum()
		if err != nil {
			t.Fatal(err)
		}
		for i := range tree.Object().Pieces() {
			off, n := tree.Object().Span(i)
			right := AppendLeaves(nil, data[off:off+n])
			wrong := slices.Clone(right)
			wrong[len(wrong)-1][0] ^= 1
			for what, leaves := range map[string][]Hash{
				"a wrong one": wrong, "none": nil, "one too few": right[:len(right)-1], "one too many": append(slices.Clone(right), Hash{}),
			} {
				err := tree.VerifyLeaves(i, slices.Clone(leaves))
				if w, ok := errors.AsType[*WrongBytesError](err); !ok || w.Piece != i || w.Object != tree.Object().Digest {
					t.Errorf("%d bytes, piece %d, %s: %v", size, i, what, err)
				}
			}
			if err := tree.VerifyLeaves(i, right); err != nil {
				t.Errorf("%d bytes, piece %d: %v", size, i, err)
			}
		}
		for _, i := range []int{-1, tree.Object().Pieces()} {
			if tree.VerifyLeaves(i, nil) == nil {
				t.Errorf("%d bytes have a piece %d", size, i)
			}
		}
	}
}
