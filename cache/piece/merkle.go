package piece

import (
	"crypto/sha256"
	"hash"
	"math/bits"
	"slices"
)

// zeroHash returns the root of a subtree of 2^height absent leaves. BEP 52
// pads a tree with leaf hashes of 32 zero bytes.
func zeroHash(height int) Hash {
	var h Hash
	for range height {
		h = join(h, h)
	}
	return h
}

func join(a, b Hash) Hash {
	var buf [2 * sha256.Size]byte
	copy(buf[:], a[:])
	copy(buf[sha256.Size:], b[:])
	return sha256.Sum256(buf[:])
}

// fold returns the root of a tree over nodes, padded with pad to 2^height of them. It overwrites nodes.
func fold(nodes []Hash, pad Hash, height int) Hash {
	if len(nodes) == 0 {
		for range height {
			pad = join(pad, pad)
		}
		return pad
	}
	for range height {
		if len(nodes)%2 == 1 {
			nodes = append(nodes, pad)
		}
		for i := range len(nodes) / 2 {
			nodes[i] = join(nodes[2*i], nodes[2*i+1])
		}
		nodes = nodes[:len(nodes)/2]
		pad = join(pad, pad)
	}
	return nodes[0]
}

// log2ceil returns the least h with 2^h >= n, for n >= 1.
func log2ceil(n int) int { return bits.Len(uint(n - 1)) }

// AppendLeaves appends the hashes of data's leaves to dst: of each LeafSize
// bytes and of what is left at the end, which is not padded.
func AppendLeaves(dst []Hash, data []byte) []Hash {
	for len(data) > 0 {
		n := min(LeafSize, len(data))
		dst = append(dst, sha256.Sum256(data[:n]))
		data = data[n:]
	}
	return dst
}

// pieceHash returns the hash of the piece that has these leaves. alone says
// that the object has no other piece: its tree is then no taller than its own
// leaves need. It overwrites leaves.
func pieceHash(leaves []Hash, pieceLength int64, alone bool) Hash {
	height := bits.TrailingZeros64(uint64(pieceLength / LeafSize))
	if alone {
		height = log2ceil(len(leaves))
	}
	return fold(leaves, Hash{}, height)
}

// rootOf folds a piece layer to the root. layer is not changed.
func rootOf(layer []Hash, pieceLength int64) Root {
	switch len(layer) {
	case 0:
		return Root{}
	case 1:
		return Root(layer[0])
	}
	pad := zeroHash(bits.TrailingZeros64(uint64(pieceLength / LeafSize)))
	return Root(fold(slices.Clone(layer), pad, log2ceil(len(layer))))
}

// A Hasher computes an object's digest, piece layer and root in one pass over
// its bytes. The two hashes run side by side: whole-object SHA-256 in one
// goroutine, the tree in another, so that a pass costs about one SHA-256 of
// time where there are two cores. A Hasher is not safe for concurrent use.
//
// Memory is one piece for the tree and 32 bytes a piece for the layer.
type Hasher struct {
	size, pieceLength int64 // size as promised
	written           int64
	whole             hash.Hash
	buf               []byte // the piece being filled
	layer             []Hash
	scratch           []Hash
}

// NewHasher returns a Hasher for an object of size bytes, cut by PieceLength(size).
func NewHasher(size int64) *Hasher {
	n := PieceLength(size)
	return &Hasher{
		size: size, pieceLength: n,
		whole:   sha256.New(),
		buf:     make([]byte, 0, min(n, max(size, 1))),
		scratch: make([]Hash, 0, n/LeafSize),
	}
}

// Write takes the next bytes of the object. It never keeps p and always returns len(p), nil.
func (h *Hasher) Write(p []byte) (int, error) {
	done := make(chan struct{})
	go func() {
		h.whole.Write(p)
		close(done)
	}()
	for rest := p; len(rest) > 0; {
		if len(h.buf) == 0 && len(rest) >= int(h.pieceLength) {
			h.closePiece(rest[:h.pieceLength])
			rest = rest[h.pieceLength:]
			continue
		}
		n := min(int(h.pieceLength)-len(h.buf), len(rest))
		h.buf = append(h.buf, rest[:n]...)
		rest = rest[n:]
		if len(h.buf) == int(h.pieceLength) {
			h.closePiece(h.buf)
			h.buf = h.buf[:0]
		}
	}
	h.written += int64(len(p))
	<-done
	return len(p), nil
}

func (h *Hasher) closePiece(data []byte) {
	leaves := AppendLeaves(h.scratch[:0], data)
	h.layer = append(h.layer, pieceHash(leaves, h.pieceLength, h.size <= h.pieceLength))
}

// Sum ends the pass and returns the object with its proven tree.
// It fails when the bytes written are not as many as promised.
func (h *Hasher) Sum() (*Tree, error) {
	if h.written != h.size {
		return nil, &SizeError{Want: h.size, Got: h.written}
	}
	if len(h.buf) > 0 {
		h.closePiece(h.buf)
		h.buf = h.buf[:0]
	}
	o := Object{Size: h.size, PieceLength: h.pieceLength, Root: rootOf(h.layer, h.pieceLength)}
	h.whole.Sum(o.Digest[:0])
	return &Tree{object: o, layer: h.layer}, nil
}
