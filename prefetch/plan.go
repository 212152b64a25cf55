// Package prefetch is about bytes that a node fetches before anybody waits for
// them: which, and in which order.
package prefetch

import (
	"encoding/json"
	"fmt"
	"iter"

	"github.com/spate-project/spate/cache/piece"
)

// MaxRanges bounds a plan that comes as JSON.
const MaxRanges = 1 << 22

// A Range is the bytes [Offset, Offset+Length) of an object.
type Range struct {
	Object piece.Digest `json:"object"`
	Offset int64        `json:"offset"`
	Length int64        `json:"length"` // more than 0
}

// valid reports whether an object can have r.
func (r Range) valid() bool {
	return r.Offset >= 0 && r.Length > 0 && r.Length <= piece.MaxSize-r.Offset
}

// A Plan is what a prefetch fetches and in which order. It is a value that says
// nothing of where the bytes are, nor of whether they may be fetched. As JSON it
// is the list of its ranges.
type Plan []Range

// UnmarshalJSON refuses ranges that no object has.
func (p *Plan) UnmarshalJSON(b []byte) error {
	var ranges []Range
	if err := json.Unmarshal(b, &ranges); err != nil {
		return err
	}
	if len(ranges) > MaxRanges {
		return fmt.Errorf("a plan of %d ranges is longer than %d", len(ranges), MaxRanges)
	}
	for i, r := range ranges {
		if !r.valid() {
			return fmt.Errorf("range %d of a plan, %d bytes at %d of %s, is in no object", i, r.Length, r.Offset, r.Object)
		}
	}
	*p = ranges
	return nil
}

// Bytes returns how many bytes p has. It fetches more where a range does not
// begin and end with a piece.
func (p Plan) Bytes() (n int64) {
	for _, r := range p {
		n += r.Length
	}
	return n
}

// Pieces yields the pieces of the given objects that hold bytes of p, in the
// order in which p needs them, each once. Other objects, and what is past the
// end of one, are passed over.
func (p Plan) Pieces(objects ...piece.Object) iter.Seq2[piece.Digest, int] {
	return func(yield func(piece.Digest, int) bool) {
		known := byDigest(objects)
		yielded := make(map[piece.Digest][]bool)
		for _, r := range p {
			o, ok := known[r.Object]
			if !ok {
				continue
			}
			if yielded[r.Object] == nil {
				yielded[r.Object] = make([]bool, o.Pieces())
			}
			first, last := o.Range(r.Offset, r.Length)
			for i := first; i < last; i++ {
				if yielded[r.Object][i] {
					continue
				}
				yielded[r.Object][i] = true
				if !yield(r.Object, i) {
					return
				}
			}
		}
	}
}

// Present returns how many bytes of p lie in pieces of the given objects that
// has reports as present. All of p is present when they are as many as Bytes.
func (p Plan) Present(has func(d piece.Digest, i int) bool, objects ...piece.Object) (n int64) {
	known := byDigest(objects)
	for _, r := range p {
		o, ok := known[r.Object]
		if !ok {
			continue
		}
		first, last := o.Range(r.Offset, r.Length)
		for i := first; i < last; i++ {
			if has(r.Object, i) {
				off, size := o.Span(i)
				n += min(off+size, r.Offset+r.Length) - max(off, r.Offset)
			}
		}
	}
	return n
}

func byDigest(objects []piece.Object) map[piece.Digest]piece.Object {
	m := make(map[piece.Digest]piece.Object, len(objects))
	for _, o := range objects {
		m[o.Digest] = o
	}
	return m
}

// add appends the bytes [begin, end) of an object, to the last range where they follow it.
func (p *Plan) add(d piece.Digest, begin, end int64) {
	if begin >= end {
		return
	}
	if k := len(*p) - 1; k >= 0 && (*p)[k].Object == d && (*p)[k].Offset+(*p)[k].Length == begin {
		(*p)[k].Length += end - begin
		return
	}
	*p = append(*p, Range{d, begin, end - begin})
}
