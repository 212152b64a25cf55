package piece

import "fmt"

const (
	// LeafSize is the unit of BEP 52's tree: 16 KiB.
	LeafSize = 16 << 10

	// MinLength is the smallest piece length that PieceLength chooses.
	MinLength = 256 << 10

	// MaxLength bounds the piece length that Check accepts, so that a foreign
	// index cannot make us hold more than this for one piece.
	MaxLength = 64 << 20

	// TargetPieces is how many pieces PieceLength lets an object have.
	TargetPieces = 16384

	// MaxSize is the largest object: TargetPieces pieces of MaxLength, 1 TiB.
	MaxSize = TargetPieces * MaxLength
)

// An Object is what an index says of one object. It is a value; it proves nothing by itself.
type Object struct {
	Digest      Digest `json:"digest"`
	Size        int64  `json:"size"`        // bytes
	PieceLength int64  `json:"pieceLength"` // bytes, a power of two >= LeafSize
	Root        Root   `json:"root"`
}

// PieceLength returns the piece length for an object of size bytes: 256 KiB,
// doubled until the object has at most TargetPieces pieces. It depends on
// nothing but size, so that any two machines cut an object alike.
func PieceLength(size int64) int64 {
	n := int64(MinLength)
	for n < MaxLength && size > n*TargetPieces {
		n *= 2
	}
	return n
}

// Check reports whether the numbers of o can describe an object at all.
func (o Object) Check() error {
	switch {
	case o.Size < 0 || o.Size > MaxSize:
		return fmt.Errorf("object %s: size %d is outside 0..%d", o.Digest, o.Size, int64(MaxSize))
	case o.PieceLength < LeafSize || o.PieceLength > MaxLength || o.PieceLength&(o.PieceLength-1) != 0:
		return fmt.Errorf("object %s: piece length %d is not a power of two between %d and %d",
			o.Digest, o.PieceLength, LeafSize, MaxLength)
	case (o.Size+o.PieceLength-1)/o.PieceLength > 4*TargetPieces:
		return fmt.Errorf("object %s: piece length %d cuts %d bytes into more than %d pieces",
			o.Digest, o.PieceLength, o.Size, 4*TargetPieces)
	case o.Size == 0 && o.Root != Root{}:
		return fmt.Errorf("object %s: no bytes but a root", o.Digest)
	}
	return nil
}

// Pieces returns how many pieces o has; none when it is empty.
func (o Object) Pieces() int {
	return int((o.Size + o.PieceLength - 1) / o.PieceLength)
}

// Span returns where piece i lies: its offset in the object and its length in bytes.
// The last piece may be shorter. It panics when i is out of range.
func (o Object) Span(i int) (off, n int64) {
	if i < 0 || i >= o.Pieces() {
		panic(fmt.Sprintf("piece %d of %d", i, o.Pieces()))
	}
	off = int64(i) * o.PieceLength
	return off, min(o.PieceLength, o.Size-off)
}

// Range returns the pieces [first, last) that hold the bytes [off, off+n),
// cut to the object's end; first == last when there are none.
func (o Object) Range(off, n int64) (first, last int) {
	if off < 0 || n <= 0 || off >= o.Size {
		return 0, 0
	}
	end := off + min(n, o.Size-off)
	return int(off / o.PieceLength), int((end-1)/o.PieceLength) + 1
}
