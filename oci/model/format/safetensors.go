package format

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
)

// ReadSafetensors reads the header of a safetensors file of size bytes. It
// accepts what the format does: every byte behind the header belongs to exactly
// one tensor, as many as its type and shape need. A header of more than limit
// bytes is refused. It reads nothing but the header, which it needs a few times
// the memory of.
func ReadSafetensors(r io.ReaderAt, size, limit int64) (*Table, error) {
	t, err := readSafetensors(r, size, limit)
	if err != nil {
		return nil, fmt.Errorf("read safetensors header: %w", err)
	}
	return t, nil
}

func readSafetensors(r io.ReaderAt, size, limit int64) (*Table, error) {
	var prefix [8]byte
	if size < int64(len(prefix)) {
		return nil, fmt.Errorf("the file has %d bytes, too few for one", size)
	}
	if _, err := r.ReadAt(prefix[:], 0); err != nil && err != io.EOF {
		return nil, err
	}
	length := binary.LittleEndian.Uint64(prefix[:])
	if length > uint64(limit) || int64(length) > size-int64(len(prefix)) {
		return nil, fmt.Errorf("it would have %d bytes in a file of %d; is this a safetensors file?", length, size)
	}
	header := make([]byte, length)
	if n, err := r.ReadAt(header, int64(len(prefix))); n < len(header) {
		return nil, err
	}
	t, err := parseHeader(header)
	if err != nil {
		return nil, err
	}
	t.Header = int64(len(prefix)) + int64(length)
	return t, t.place(size)
}

// tensorInfo is a tensor as the header spells it. Offsets count from the end of the header.
type tensorInfo struct {
	DType   string  `json:"dtype"`
	Shape   []int64 `json:"shape"`
	Offsets []int64 `json:"data_offsets"`
}

// parseHeader reads the JSON of a header, in which a name occurs once.
func parseHeader(header []byte) (*Table, error) {
	if len(header) == 0 || header[0] != '{' {
		return nil, fmt.Errorf("it is not a JSON object")
	}
	d := json.NewDecoder(bytes.NewReader(header))
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	t := &Table{}
	seen := make(map[string]bool)
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, _ := token.(string) // an object's keys are strings
		if seen[name] {
			return nil, fmt.Errorf("%q occurs twice", name)
		}
		seen[name] = true
		if name == "__metadata__" {
			if err := d.Decode(&t.Metadata); err != nil {
				return nil, fmt.Errorf("its metadata: %w", err)
			}
			continue
		}
		var info tensorInfo
		if err := d.Decode(&info); err != nil {
			return nil, fmt.Errorf("tensor %q: %w", name, err)
		}
		if info.Shape == nil || len(info.Offsets) != 2 {
			return nil, fmt.Errorf("tensor %q: it needs a shape and two data_offsets", name)
		}
		if len(t.Tensors) == MaxTensors {
			return nil, fmt.Errorf("it has more than %d tensors", MaxTensors)
		}
		t.Tensors = append(t.Tensors, Tensor{name, info.DType, info.Shape, info.Offsets[0], info.Offsets[1]})
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if rest := bytes.TrimRight(header[d.InputOffset():], " "); len(rest) > 0 {
		return nil, fmt.Errorf("there are %d bytes behind its JSON", len(rest))
	}
	return t, nil
}

// place sorts the tensors and moves their offsets from the data to the file, which ends at size.
func (t *Table) place(size int64) error {
	slices.SortFunc(t.Tensors, func(a, b Tensor) int {
		return cmp.Or(cmp.Compare(a.Begin, b.Begin), cmp.Compare(a.End, b.End), cmp.Compare(a.Name, b.Name))
	})
	start, next := t.Header, t.Header
	for i := range t.Tensors {
		t := &t.Tensors[i]
		want, err := t.bytes()
		if err != nil {
			return fmt.Errorf("tensor %q: %w", t.Name, err)
		}
		if t.Begin != next-start || t.End < t.Begin || t.End > size-start {
			return fmt.Errorf("tensor %q: bytes %d to %d do not follow the ones before, which end at %d of %d",
				t.Name, t.Begin, t.End, next-start, size-start)
		}
		if t.End-t.Begin != want {
			return fmt.Errorf("tensor %q: %d bytes where %s of shape %v has %d", t.Name, t.End-t.Begin, t.DType, t.Shape, want)
		}
		t.Begin, t.End = t.Begin+start, t.End+start
		next = t.End
	}
	if next != size {
		return fmt.Errorf("its tensors end at byte %d of %d; is the file cut short?", next, size)
	}
	return nil
}

// bytes returns how many bytes t needs, and an error when no tensor can have its type and shape.
func (t Tensor) bytes() (int64, error) {
	bits, ok := dtypeBits(t.DType)
	if !ok {
		return 0, fmt.Errorf("unknown dtype %q", t.DType)
	}
	n := int64(1)
	for _, dim := range t.Shape {
		if dim < 0 || dim != 0 && n > math.MaxInt64/bits/dim {
			return 0, fmt.Errorf("impossible shape %v", t.Shape)
		}
		n *= dim
	}
	if n*bits%8 != 0 {
		return 0, fmt.Errorf("%s of shape %v ends within a byte", t.DType, t.Shape)
	}
	return n * bits / 8, nil
}

// dtypeBits returns how many bits a number of type dtype takes.
func dtypeBits(dtype string) (bits int64, ok bool) {
	switch dtype {
	case "F4":
		return 4, true
	case "F6_E2M3", "F6_E3M2":
		return 6, true
	case "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ":
		return 8, true
	case "U16", "I16", "F16", "BF16":
		return 16, true
	case "U32", "I32", "F32":
		return 32, true
	case "U64", "I64", "F64", "C64":
		return 64, true
	}
	return 0, false
}
