package piece

import (
	"crypto/sha256"
	"fmt"
	"io"
	"sync"
)

// A Tree is an object together with a piece layer that folds to its root. Only
// NewTree and Hasher.Sum make one, so holding a Tree is proof of that. It is
// immutable and safe for concurrent use.
type Tree struct {
	object  Object
	layer   []Hash
	scratch sync.Pool
}

// NewTree proves layer against o.Root. layer is the concatenation of the piece
// hashes, 32 bytes each, as BEP 52's "piece layers" has them; an object of at
// most one piece has no layer, since its root is that piece's hash.
// NewTree keeps no reference to layer.
func NewTree(o Object, layer []byte) (*Tree, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	n := o.Pieces()
	t := &Tree{object: o}
	if n <= 1 {
		if len(layer) != 0 {
			return nil, fmt.Errorf("object %s: a piece layer of %d bytes where there is one piece", o.Digest, len(layer))
		}
		if n == 1 {
			t.layer = []Hash{Hash(o.Root)}
		}
		return t, nil
	}
	if len(layer) != n*sha256.Size {
		return nil, fmt.Errorf("object %s: the piece layer has %d bytes, %d pieces need %d",
			o.Digest, len(layer), n, n*sha256.Size)
	}
	t.layer = make([]Hash, n)
	for i := range t.layer {
		copy(t.layer[i][:], layer[i*sha256.Size:])
	}
	if got := rootOf(t.layer, o.PieceLength); got != o.Root {
		return nil, fmt.Errorf("object %s: the piece layer folds to root %s, want %s", o.Digest, got, o.Root)
	}
	return t, nil
}

// Object returns what the tree proves.
func (t *Tree) Object() Object { return t.object }

// Hash returns the hash that piece i must have.
func (t *Tree) Hash(i int) Hash { return t.layer[i] }

// Layer returns the piece layer as NewTree takes it: nil for an object of at most one piece.
func (t *Tree) Layer() []byte {
	if len(t.layer) <= 1 {
		return nil
	}
	b := make([]byte, 0, len(t.layer)*sha256.Size)
	for _, h := range t.layer {
		b = append(b, h[:]...)
	}
	return b
}

// A Verified is the bytes of one piece that match its object's root. Only
// Tree.Verify makes one; receivers refuse the zero value (Valid reports false).
// The bytes are borrowed from Verify's caller.
type Verified struct {
	tree  *Tree
	index int
	data  []byte
}

// Verify checks data against piece i. It keeps data inside the result, so the
// caller must not change data while the result is in use.
// The error is a *WrongBytesError without a peer; callers that know the sender add it.
func (t *Tree) Verify(i int, data []byte) (Verified, error) {
	if i < 0 || i >= len(t.layer) {
		return Verified{}, fmt.Errorf("object %s has no piece %d", t.object.Digest, i)
	}
	if _, n := t.object.Span(i); int64(len(data)) != n {
		return Verified{}, &WrongBytesError{Object: t.object.Digest, Piece: i}
	}
	scratch, _ := t.scratch.Get().(*[]Hash)
	if scratch == nil {
		s := make([]Hash, 0, t.object.PieceLength/LeafSize)
		scratch = &s
	}
	defer t.scratch.Put(scratch)
	if err := t.VerifyLeaves(i, AppendLeaves((*scratch)[:0], data)); err != nil {
		return Verified{}, err
	}
	return Verified{tree: t, index: i, data: data}, nil
}

// VerifyLeaves checks the hashes of all leaves of piece i, as AppendLeaves
// computes them, and overwrites them. It is for who hashed the bytes as they
// came and knows that none has changed since. The error is as Verify's.
func (t *Tree) VerifyLeaves(i int, leaves []Hash) error {
	if i < 0 || i >= len(t.layer) {
		return fmt.Errorf("object %s has no piece %d", t.object.Digest, i)
	}
	_, n := t.object.Span(i)
	if len(leaves) != int((n+LeafSize-1)/LeafSize) ||
		pieceHash(leaves, t.object.PieceLength, len(t.layer) == 1) != t.layer[i] {
		return &WrongBytesError{Object: t.object.Digest, Piece: i}
	}
	return nil
}

// Valid reports whether v came from Verify.
func (v Verified) Valid() bool { return v.tree != nil }

// Object returns the object that v is a piece of.
func (v Verified) Object() Object { return v.tree.object }

// Index returns which piece v is.
func (v Verified) Index() int { return v.index }

// Bytes returns the piece. The caller must not change it.
func (v Verified) Bytes() []byte { return v.data }

// Audit reads the whole object from r and compares its SHA-256 with the digest:
// the last check, which also catches an index whose root never belonged to the
// digest. The error is a *WrongBytesError with Piece -1, or r's own.
func (t *Tree) Audit(r io.Reader) error {
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(r, t.object.Size+1))
	if err != nil {
		return fmt.Errorf("audit object %s: %w", t.object.Digest, err)
	}
	if n != t.object.Size || Digest(h.Sum(nil)) != t.object.Digest {
		return &WrongBytesError{Object: t.object.Digest, Piece: -1}
	}
	return nil
}
