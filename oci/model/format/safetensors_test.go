package format

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
)

func TestReadSafetensors(t *testing.T) {
	file := rawSafetensors(`{"__metadata__":{"format":"pt"},`+
		`"b":{"dtype":"F32","shape":[2,3],"data_offsets":[6,30],"added":1},`+
		`"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]},`+
		`"none":{"dtype":"I64","shape":[0,7],"data_offsets":[30,30]},`+
		`"one":{"dtype":"F8_E4M3","shape":[],"data_offsets":[30,31]},`+
		`"half":{"dtype":"F4","shape":[4],"data_offsets":[31,33]}}   `, 33)
	s, err := ReadSafetensors(bytes.NewReader(file), int64(len(file)), MaxHeader)
	if err != nil {
		t.Fatal(err)
	}
	start := int64(len(file) - 33)
	want := []Tensor{
		{"a", "BF16", []int64{3}, start, start + 6},
		{"b", "F32", []int64{2, 3}, start + 6, start + 30},
		{"none", "I64", []int64{0, 7}, start + 30, start + 30},
		{"one", "F8_E4M3", []int64{}, start + 30, start + 31},
		{"half", "F4", []int64{4}, start + 31, start + 33},
	}
	if fmt.Sprint(s.Tensors) != fmt.Sprint(want) || s.Metadata["format"] != "pt" || s.Header != start {
		t.Errorf("ReadSafetensors: %v, want %v", s, want)
	}
	if n := s.Tensors[1].Elements(); n != 6 {
		t.Errorf("Elements() = %d, want 6", n)
	}
}

func TestReadSafetensorsRefuses(t *testing.T) {
	tensor := func(fields string) string { return `{"a":{` + fields + `}}` }
	for name, tt := range map[string]struct {
		header string
		data   int
		want   string
	}{
		"no JSON":                {`[]`, 0, "not a JSON object"},
		"no header":              {``, 0, "not a JSON object"},
		"white space before":     {` {}`, 0, "not a JSON object"},
		"cut JSON":               {`{"a":`, 0, "EOF"},
		"more behind":            {`{}{}`, 0, "behind its JSON"},
		"a name twice":           {`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 2, "occurs twice"},
		"metadata no map":        {`{"__metadata__":{"a":1}}`, 0, "metadata"},
		"no dtype":               {tensor(`"shape":[1],"data_offsets":[0,1]`), 1, "unknown dtype"},
		"an unknown dtype":       {tensor(`"dtype":"U9","shape":[1],"data_offsets":[0,1]`), 1, "unknown dtype"},
		"no shape":               {tensor(`"dtype":"U8","data_offsets":[0,1]`), 1, "needs a shape"},
		"null shape":             {tensor(`"dtype":"U8","shape":null,"data_offsets":[0,1]`), 1, "needs a shape"},
		"no offsets":             {tensor(`"dtype":"U8","shape":[1]`), 1, "needs a shape"},
		"three offsets":          {tensor(`"dtype":"U8","shape":[1],"data_offsets":[0,1,2]`), 1, "needs a shape"},
		"a shape below 0":        {tensor(`"dtype":"U8","shape":[-1],"data_offsets":[0,1]`), 1, "impossible shape"},
		"a shape that overflows": {tensor(`"dtype":"U8","shape":[4294967296,4294967296,2],"data_offsets":[0,0]`), 0, "impossible shape"},
		"half a byte":            {tensor(`"dtype":"F4","shape":[1],"data_offsets":[0,1]`), 1, "within a byte"},
		"too few bytes":          {tensor(`"dtype":"U8","shape":[2],"data_offsets":[0,1]`), 1, "1 bytes where"},
		"end before begin":       {tensor(`"dtype":"U8","shape":[1],"data_offsets":[0,-1]`), 1, "do not follow"},
		"begin below 0":          {tensor(`"dtype":"U8","shape":[1],"data_offsets":[-1,0]`), 1, "do not follow"},
		"past the end":           {tensor(`"dtype":"U8","shape":[2],"data_offsets":[0,2]`), 1, "do not follow"},
		"a hole at the start":    {tensor(`"dtype":"U8","shape":[1],"data_offsets":[1,2]`), 2, "do not follow"},
		"a hole at the end":      {tensor(`"dtype":"U8","shape":[1],"data_offsets":[0,1]`), 2, "cut short"},
		"an overlap":             {`{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}`, 3, "do not follow"},
		"a fraction":             {tensor(`"dtype":"U8","shape":[1.5],"data_offsets":[0,1]`), 1, "cannot unmarshal"},
	} {
		t.Run(name, func(t *testing.T) {
			file := rawSafetensors(tt.header, tt.data)
			_, err := ReadSafetensors(bytes.NewReader(file), int64(len(file)), MaxHeader)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want one with %q", err, tt.want)
			}
		})
	}
	for name, file := range map[string][]byte{
		"an empty file":       nil,
		"seven bytes":         make([]byte, 7),
		"a pointer to a file": []byte("version https://git-lfs.github.com/spec/v1\n"),
		"a huge header":       binary.LittleEndian.AppendUint64(nil, 1<<63),
		"a header past 100MB": append(binary.LittleEndian.AppendUint64(nil, MaxHeader+1), '{'),
	} {
		if _, err := ReadSafetensors(bytes.NewReader(file), int64(len(file)), MaxHeader); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func rawSafetensors(header string, data int) []byte {
	return append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...), make([]byte, data)...)
}

func FuzzReadSafetensors(f *testing.F) {
	f.Add(rawSafetensors(`{}`, 0))
	f.Add(rawSafetensors(`{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]},"b":{"dtype":"F4","shape":[2],"data_offsets":[6,7]}}`, 7))
	f.Fuzz(func(t *testing.T, file []byte) {
		size := int64(len(file))
		s, err := ReadSafetensors(bytes.NewReader(file), size, MaxHeader)
		if err != nil {
			return
		}
		covered := 8 + int64(binary.LittleEndian.Uint64(file))
		for _, tensor := range s.Tensors {
			if tensor.Begin != covered || tensor.End < tensor.Begin || tensor.End > size {
				t.Fatalf("tensor %v, after byte %d of %d", tensor, covered, size)
			}
			covered = tensor.End
		}
		if covered != size {
			t.Fatalf("tensors cover %d of %d bytes", covered, size)
		}
	})
}
