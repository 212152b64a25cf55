package format

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
)

// A ggufText is a GGUF file in the making.
type ggufText []byte

func gguf(version uint32, tensors, pairs uint64) ggufText {
	return ggufText("GGUF").uint32(version).uint64(tensors).uint64(pairs)
}

func (g ggufText) uint32(n uint32) ggufText { return binary.LittleEndian.AppendUint32(g, n) }
func (g ggufText) uint64(n uint64) ggufText { return binary.LittleEndian.AppendUint64(g, n) }
func (g ggufText) string(s string) ggufText { return append(g.uint64(uint64(len(s))), s...) }
func (g ggufText) zeros(n int) ggufText     { return append(g, make([]byte, n)...) }

func (g ggufText) tensor(name string, kind uint32, offset uint64, shape ...uint64) ggufText {
	g = g.string(name).uint32(uint32(len(shape)))
	for _, dim := range shape {
		g = g.uint64(dim)
	}
	return g.uint32(kind).uint64(offset)
}

// data pads the head and appends n bytes.
func (g ggufText) data(alignment, n int) ggufText {
	return g.zeros((alignment-len(g)%alignment)%alignment + n)
}

// smallGGUF has one of everything.
func smallGGUF() ggufText {
	return gguf(3, 3, 5).
		string("general.name").uint32(ggufString).string("a model").
		string("general.alignment").uint32(ggufUint32).uint32(64).
		string("tokens").uint32(ggufArray).uint32(ggufString).uint64(2).string("a").string("bc").
		string("scores").uint32(ggufArray).uint32(6).uint64(3).zeros(12).
		string("nested").uint32(ggufArray).uint32(ggufArray).uint64(1).uint32(0).uint64(2).zeros(2).
		tensor("blk.0.ffn_up.weight", 12, 64, 256, 3).
		tensor("token_embd.weight", 0, 0, 5, 2).
		tensor("later", 99, 512, 7).
		data(64, 1000)
}

func TestReadGGUF(t *testing.T) {
	file := smallGGUF()
	got, err := ReadGGUF(bytes.NewReader(file), int64(len(file)), MaxHeader)
	if err != nil {
		t.Fatal(err)
	}
	h := int64(len(file) - 1000)
	want := []Tensor{
		{"token_embd.weight", "F32", []int64{2, 5}, h, h + 40},
		{"blk.0.ffn_up.weight", "Q4_K", []int64{3, 256}, h + 64, h + 64 + 3*144},
		{"later", "ggml type 99", []int64{7}, h + 512, h + 1000},
	}
	if got.Header != h || fmt.Sprint(got.Tensors) != fmt.Sprint(want) {
		t.Errorf("ReadGGUF: %v, want %v behind %d bytes", got, want, h)
	}
	for name, file := range map[string]ggufText{
		"version 2 without anything":       gguf(2, 0, 0),
		"an unknown type before another":   gguf(3, 2, 0).tensor("a", 99, 0, 1).tensor("b", 24, 32, 1).data(32, 33),
		"a number that is in no dimension": gguf(3, 1, 0).tensor("a", 0, 0).data(32, 4),
		"a tensor of nothing":              gguf(3, 2, 0).tensor("a", 0, 0, 0, 5).tensor("b", 24, 0, 1).data(32, 1),
	} {
		if _, err := ReadGGUF(bytes.NewReader(file), int64(len(file)), MaxHeader); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadGGUFRefuses(t *testing.T) {
	deep := gguf(3, 0, 1).string("deep").uint32(ggufArray)
	for range maxNesting + 1 {
		deep = deep.uint32(ggufArray).uint64(1)
	}
	for name, tt := range map[string]struct {
		file ggufText
		want string
	}{
		"nothing":                 {nil, "cut short"},
		"another file":            {ggufText("version https://git-lfs.github.com/spec/v1\n"), "is this a GGUF file"},
		"version 1":               {gguf(1, 0, 0), "version 0x1"},
		"big-endian":              {gguf(3<<24, 0, 0), "version 0x3000000"},
		"too many tensors":        {gguf(3, MaxTensors+1, 0), "tensors"},
		"too many metadata":       {gguf(3, 0, maxPairs+1), "metadata"},
		"no table":                {gguf(3, 1, 0), "cut short"},
		"an unknown value":        {gguf(3, 0, 1).string("k").uint32(13).zeros(8), `metadata "k": values of type 13`},
		"arrays without end":      {deep, `metadata "deep": values of type 9`},
		"a string without end":    {gguf(3, 0, 1).string("k").uint32(ggufString).uint64(1 << 40), "cut short"},
		"a length that overflows": {gguf(3, 0, 1).string("k").uint32(ggufString).uint64(1 << 63), `metadata "k": 9223372036854775808`},
		"an endless array":        {gguf(3, 0, 1).string("k").uint32(ggufArray).uint32(10).uint64(1 << 60), "too large"},
		"a long key":              {gguf(3, 0, 1).uint64(maxString + 1).zeros(maxString + 1), "a name of 65537 bytes"},
		"a long name":             {gguf(3, 1, 0).uint64(maxString + 1).zeros(maxString + 1), "a name of 65537 bytes"},
		"an odd alignment":        {gguf(3, 0, 1).string(alignmentKey).uint32(ggufUint32).uint32(24), "power of two"},
		"no alignment":            {gguf(3, 0, 1).string(alignmentKey).uint32(ggufUint32).uint32(0), "power of two"},
		"five dimensions":         {gguf(3, 1, 0).tensor("a", 0, 0, 1, 1, 1, 1, 1), `tensor "a": 5 dimensions`},
		"a shape that overflows":  {gguf(3, 1, 0).tensor("a", 0, 0, 1<<32, 1<<32).data(32, 0), `tensor "a": impossible shape`},
		"an offset that overflows": {gguf(3, 1, 0).tensor("a", 0, 1<<60-32, 1<<60-32).data(32, 0),
			`tensor "a": bytes`},
		"half a block":   {gguf(3, 1, 0).tensor("a", 12, 0, 255).data(32, 144), `tensor "a": impossible shape [255] of Q4_K`},
		"not aligned":    {gguf(3, 1, 0).tensor("a", 24, 8, 1).data(32, 9), `tensor "a": byte 8`},
		"past the end":   {gguf(3, 1, 0).tensor("a", 24, 32, 1).data(32, 32), `tensor "a": bytes 32 to 33`},
		"an overlap":     {gguf(3, 2, 0).tensor("a", 24, 0, 33).tensor("b", 24, 32, 1).data(32, 33), `tensor "b": bytes 32 to 33`},
		"unknown beyond": {gguf(3, 1, 0).tensor("a", 99, 64, 1).data(32, 32), `tensor "a": bytes 64 to 32`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ReadGGUF(bytes.NewReader(tt.file), int64(len(tt.file)), MaxHeader)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want one with %q", err, tt.want)
			}
		})
	}
	file := smallGGUF()
	if _, err := ReadGGUF(bytes.NewReader(file), int64(len(file)), 100); err == nil || !strings.Contains(err.Error(), "not ended at byte 100") {
		t.Errorf("a head of more than 100 bytes: %v", err)
	}
}

func FuzzReadGGUF(f *testing.F) {
	f.Add([]byte(smallGGUF()))
	f.Add([]byte(gguf(2, 1, 0).tensor("a", 2, 0, 32).data(32, 18)))
	f.Fuzz(func(t *testing.T, file []byte) {
		size := int64(len(file))
		table, err := ReadGGUF(bytes.NewReader(file), size, MaxHeader)
		if err != nil {
			return
		}
		last := table.Header
		for _, tensor := range table.Tensors {
			if tensor.Begin < last || tensor.End < tensor.Begin || tensor.End > size {
				t.Fatalf("tensor %v, after byte %d of %d", tensor, last, size)
			}
			last = tensor.End
		}
		if last > size {
			t.Fatalf("a head of %d bytes in a file of %d", last, size)
		}
	})
}
