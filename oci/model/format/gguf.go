package format

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"
)

const (
	// maxDims is how many dimensions a tensor of a GGUF file may have, as ggml has it.
	maxDims = 4

	// maxPairs bounds how many keys the metadata of a GGUF file have, and
	// maxString how many bytes a key or the name of a tensor has.
	maxPairs  = 1 << 16
	maxString = 1 << 16

	// maxNesting is how deep arrays may lie in arrays; engines know one level.
	maxNesting = 4

	defaultAlignment = 32
	alignmentKey     = "general.alignment"
)

// Types of GGUF's metadata that the reader has to know.
const (
	ggufUint32 = 4
	ggufString = 8
	ggufArray  = 9
)

// ggufSizes are the bytes that a value of metadata takes, by its type.
var ggufSizes = map[uint32]int64{0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

// ReadGGUF reads the metadata and the table of tensors of a GGUF file of size
// bytes, version 2 or 3, little-endian. Tensors may not overlap nor leave the
// file; one of a type that is not known reaches to the next. A head of more than
// limit bytes is refused. It reads nothing behind the head but what a buffer of
// 64 KiB takes in, and needs memory for the tensors only.
func ReadGGUF(r io.ReaderAt, size, limit int64) (*Table, error) {
	g := ggufReader{r: bufio.NewReaderSize(io.NewSectionReader(r, 0, min(size, limit)), 64<<10), alignment: defaultAlignment}
	t, err := g.table(size)
	if err != nil {
		return nil, fmt.Errorf("read GGUF table: %w", err)
	}
	return t, nil
}

// A ggufReader reads the head of a file in order.
type ggufReader struct {
	r         *bufio.Reader
	off       int64 // bytes read
	alignment int64
	failed    error // the first error; what is read after it is zero
	number    [8]byte
}

func (g *ggufReader) table(size int64) (*Table, error) {
	magic := string(g.read(g.number[:4]))
	version := g.uint32()
	if g.failed == nil && magic != "GGUF" {
		return nil, fmt.Errorf("it begins with %q; is this a GGUF file?", magic)
	}
	if g.failed == nil && version != 2 && version != 3 {
		return nil, fmt.Errorf("version %#x is none of 2 and 3, little-endian", version)
	}
	tensors, pairs := g.uint64(), g.uint64()
	if tensors > MaxTensors || pairs > maxPairs {
		return nil, fmt.Errorf("it has %d tensors and %d metadata, more than %d and %d", tensors, pairs, MaxTensors, maxPairs)
	}
	for range pairs {
		if err := g.pair(); err != nil {
			return nil, err
		}
	}
	t := &Table{}
	for range tensors {
		tensor, err := g.tensor()
		if err != nil {
			return nil, err
		}
		t.Tensors = append(t.Tensors, tensor)
	}
	if g.failed != nil {
		return nil, g.failed
	}
	t.Header = min((g.off+g.alignment-1)/g.alignment*g.alignment, size)
	return t, t.settle(size, g.alignment)
}

// pair reads one key and its value, of which only the alignment counts.
func (g *ggufReader) pair() error {
	key, kind := g.string(), g.uint32()
	if key == alignmentKey && kind == ggufUint32 {
		g.alignment = int64(g.uint32())
		if g.failed == nil && (g.alignment == 0 || g.alignment&(g.alignment-1) != 0) {
			return fmt.Errorf("%s of %d is not a power of two", alignmentKey, g.alignment)
		}
	} else {
		g.skipValue(kind, 0)
	}
	if g.failed != nil {
		return fmt.Errorf("metadata %q: %w", key, g.failed)
	}
	return nil
}

func (g *ggufReader) skipValue(kind uint32, depth int) {
	size, plain := ggufSizes[kind]
	switch {
	case plain:
		g.skip(size)
	case kind == ggufString:
		g.skip(g.length())
	case kind == ggufArray && depth < maxNesting:
		kind, n := g.uint32(), g.length()
		if size, plain := ggufSizes[kind]; plain {
			g.skip(n * size)
			return
		}
		for ; n > 0 && g.failed == nil; n-- {
			g.skipValue(kind, depth+1)
		}
	case g.failed == nil:
		g.failed = fmt.Errorf("values of type %d, %d deep, are not known", kind, depth)
	}
}

// tensor reads one entry of the table. Begin and End count from the data, and
// End is -1 where the type is not known.
func (g *ggufReader) tensor() (Tensor, error) {
	t := Tensor{Name: g.string()}
	dims := g.uint32()
	if dims > maxDims {
		return t, fmt.Errorf("tensor %q: %d dimensions are more than %d", t.Name, dims, maxDims)
	}
	for range dims {
		t.Shape = append(t.Shape, g.length())
	}
	kind := g.uint32()
	t.Begin = g.length()
	if g.failed != nil {
		return t, fmt.Errorf("tensor %q: %w", t.Name, g.failed)
	}
	slices.Reverse(t.Shape) // ggml has the dimension of neighbours first
	ggml, known := ggmlTypes[kind]
	if !known {
		t.DType, t.End = fmt.Sprintf("ggml type %d", kind), -1
		return t, nil
	}
	t.DType = ggml.name
	size, ok := ggml.size(t.Shape)
	if !ok || size > math.MaxInt64-t.Begin {
		return t, fmt.Errorf("tensor %q: impossible shape %v of %s", t.Name, t.Shape, t.DType)
	}
	t.End = t.Begin + size
	return t, nil
}

// settle sorts the tensors and moves their offsets from the data to the file, which ends at size.
func (t *Table) settle(size, alignment int64) error {
	slices.SortFunc(t.Tensors, func(a, b Tensor) int {
		return cmp.Or(cmp.Compare(a.Begin, b.Begin), cmp.Compare(a.End, b.End), cmp.Compare(a.Name, b.Name))
	})
	data, last := size-t.Header, int64(0)
	for i := range t.Tensors {
		tensor, next := &t.Tensors[i], data
		if i+1 < len(t.Tensors) {
			next = t.Tensors[i+1].Begin
		}
		if tensor.End < 0 {
			tensor.End = next
		}
		if tensor.Begin%alignment != 0 {
			return fmt.Errorf("tensor %q: byte %d is no multiple of the alignment, %d", tensor.Name, tensor.Begin, alignment)
		}
		if tensor.Begin < last || tensor.End < tensor.Begin || tensor.End > data {
			return fmt.Errorf("tensor %q: bytes %d to %d do not lie between the end of those before, %d, and that of the data, %d",
				tensor.Name, tensor.Begin, tensor.End, last, data)
		}
		last = tensor.End
		tensor.Begin, tensor.End = tensor.Begin+t.Header, tensor.End+t.Header
	}
	return nil
}

// length reads a number of things or bytes. It is never so large that eight times as much overflows.
func (g *ggufReader) length() int64 {
	n := g.uint64()
	if n > math.MaxInt64/8 && g.failed == nil {
		g.failed = fmt.Errorf("%d is too large a number", n)
	}
	return int64(min(n, math.MaxInt64/8))
}

func (g *ggufReader) string() string {
	n := g.length()
	if n > maxString {
		g.failed = cmp.Or(g.failed, fmt.Errorf("a name of %d bytes is longer than %d", n, maxString))
		return ""
	}
	return string(g.read(make([]byte, n)))
}

func (g *ggufReader) uint32() uint32 { return binary.LittleEndian.Uint32(g.read(g.number[:4])) }

func (g *ggufReader) uint64() uint64 { return binary.LittleEndian.Uint64(g.read(g.number[:8])) }

// read fills b, with zeros after an error, and returns it.
func (g *ggufReader) read(b []byte) []byte {
	if g.failed == nil {
		n, err := io.ReadFull(g.r, b)
		g.advance(n, err)
	}
	if g.failed != nil {
		clear(b)
	}
	return b
}

func (g *ggufReader) skip(n int64) {
	if g.failed == nil {
		n, err := g.r.Discard(int(n))
		g.advance(n, err)
	}
}

func (g *ggufReader) advance(n int, err error) {
	g.off += int64(n)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = fmt.Errorf("the head has not ended at byte %d; is the file cut short?", g.off)
	}
	g.failed = err
}
