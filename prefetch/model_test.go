package prefetch

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci/model/format"
)

// A tensor is one of a test's model.
type tensor struct {
	name, dtype string
	shape       []int64
}

func (t tensor) bytes() int64 {
	n := map[string]int64{"F32": 4, "BF16": 2, "F8_E4M3": 1, "U8": 1}[t.dtype]
	for _, dim := range t.shape {
		n *= dim
	}
	return n
}

// shard is a safetensors file, of which there are only the head and, for the
// rest, zeros, so that it can have any size.
type shard struct {
	head  []byte
	size  int64
	spans map[string][2]int64 // where its tensors lie
}

// shardOf makes a file with the tensors in the order in which safetensors writes
// them: by type, the longest first, then by name.
func shardOf(t testing.TB, tensors ...tensor) shard {
	t.Helper()
	slices.SortFunc(tensors, func(a, b tensor) int {
		if a.dtype != b.dtype {
			return strings.Index("F32 BF16 F8_E4M3 U8", a.dtype) - strings.Index("F32 BF16 F8_E4M3 U8", b.dtype)
		}
		return strings.Compare(a.name, b.name)
	})
	header, spans := make(map[string]any), make(map[string][2]int64)
	var size int64
	for _, x := range tensors {
		header[x.name] = map[string]any{"dtype": x.dtype, "shape": x.shape, "data_offsets": []int64{size, size + x.bytes()}}
		spans[x.name] = [2]int64{size, size + x.bytes()}
		size += x.bytes()
	}
	text, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	head := append(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), text...)
	for name, span := range spans {
		spans[name] = [2]int64{span[0] + int64(len(head)), span[1] + int64(len(head))}
	}
	return shard{head, int64(len(head)) + size, spans}
}

func (s shard) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(s.head)) {
		copy(p, s.head[off:])
	}
	if left := s.size - off; left < int64(len(p)) {
		return int(max(left, 0)), io.EOF
	}
	return len(p), nil
}

func (s shard) file(path string) File {
	o := piece.Object{Digest: sha256.Sum256(append([]byte(path), s.head...)), Size: s.size, PieceLength: piece.PieceLength(s.size)}
	return File{path, o, s}
}

func textFile(path, text string) File {
	size := int64(len(text))
	o := piece.Object{Digest: sha256.Sum256([]byte(text)), Size: size, PieceLength: piece.PieceLength(size)}
	return File{path, o, strings.NewReader(text)}
}

// written lists the ranges of a plan: "path" is a whole file, "path:head" and "path:body" are
// the parts of a shard, "path:tensor" is a tensor of several.
func written(p Plan, files []File) string {
	var list []string
	for _, r := range p {
		i := slices.IndexFunc(files, func(f File) bool { return f.Object.Digest == r.Object })
		f := files[i]
		s, _ := f.Data.(shard)
		head := int64(len(s.head))
		text := fmt.Sprintf("%s:%d-%d", f.Path, r.Offset, r.Offset+r.Length)
		for name, span := range s.spans {
			if r.Offset == span[0] && r.Offset+r.Length == span[1] {
				text = f.Path + ":" + name
			}
		}
		switch {
		case r.Offset == 0 && r.Length == f.Object.Size:
			text = f.Path
		case r.Offset == 0 && r.Length == head:
			text = f.Path + ":head"
		case r.Offset == head && r.Offset+r.Length == f.Object.Size:
			text = f.Path + ":body"
		}
		list = append(list, text)
	}
	return strings.Join(list, " ")
}

func flat(name string) tensor { return tensor{name, "BF16", []int64{100}} }

func TestModelOrder(t *testing.T) {
	files := []File{
		shardOf(t, flat("z")).file("model-10.safetensors"),
		shardOf(t, flat("x"), flat("w")).file("model-2.safetensors"),
		shardOf(t, flat("y")).file("model-9.safetensors"),
		shardOf(t, flat("all")).file("consolidated.safetensors"),
		textFile("model.safetensors.index.json", `{"weight_map":{"w":"model-2.safetensors","x":"model-2.safetensors","y":"model-9.safetensors","z":"model-10.safetensors"}}`),
		textFile("config.json", `{"num_hidden_layers":1}`),
		textFile("tokenizer.json", `{"tokens":[]}`),
		textFile("README.md", "# A model\n"),
		textFile("copy.py", "pass\n"),
		textFile("modeling.py", "pass\n"), // the same object
		textFile("empty.json", ""),
		textFile("pytorch_model.bin", "pickled"),
		textFile("train.parquet", "PAR1"),
		textFile("vae/model.bin", "another part"),
	}
	got, err := Model(files, Rank{})
	if err != nil {
		t.Fatal(err)
	}
	want := "config.json model.safetensors.index.json tokenizer.json copy.py " +
		"model-2.safetensors:head model-9.safetensors:head model-10.safetensors:head consolidated.safetensors:head " +
		"model-2.safetensors:body model-9.safetensors:body model-10.safetensors:body vae/model.bin " +
		"consolidated.safetensors:body pytorch_model.bin " +
		"train.parquet README.md"
	if written(got, files) != want {
		t.Errorf("Model plans\n%s, want\n%s", written(got, files), want)
	}
	want = "config.json model.safetensors.index.json tokenizer.json copy.py " +
		"consolidated.safetensors model-2.safetensors model-9.safetensors model-10.safetensors pytorch_model.bin vae/model.bin " +
		"train.parquet README.md"
	full := Full(files)
	if written(full, files) != want {
		t.Errorf("Full plans\n%s, want\n%s", written(full, files), want)
	}
	if full.Bytes() != got.Bytes() {
		t.Errorf("%d bytes are all, %d those of a model's plan", full.Bytes(), got.Bytes())
	}
}

// Types divide a file: what is read are two streams.
func TestModelStreams(t *testing.T) {
	const k = piece.MinLength
	var tensors []tensor
	for i := range 4 {
		name := fmt.Sprintf("model.layers.%d.mlp.down_proj.weight", i)
		tensors = append(tensors, tensor{name, "F8_E4M3", []int64{1, k}}, tensor{name + "_scale_inv", "F32", []int64{1, k / 4}})
	}
	s := shardOf(t, tensors...)
	f := s.file("model.safetensors")
	p, err := Model([]File{f}, Rank{})
	if err != nil {
		t.Fatal(err)
	}
	want := "model.safetensors:head"
	for i := range 4 {
		name := fmt.Sprintf(" model.safetensors:model.layers.%d.mlp.down_proj.weight", i)
		want += name + name + "_scale_inv"
	}
	if got := written(p, []File{f}); got != want {
		t.Errorf("plan\n%s, want\n%s", got, want)
	}
	var pieces []int
	for _, i := range p.Pieces(f.Object) {
		pieces = append(pieces, i)
	}
	if want := []int{0, 4, 5, 1, 6, 2, 7, 3, 8}; !slices.Equal(pieces, want) {
		t.Errorf("pieces %v, want %v", pieces, want)
	}
}

// ggufOf returns a GGUF file of tensors of n bytes each, all called w and at the same place.
func ggufOf(tensors int, kind uint32, n int) string {
	b := binary.LittleEndian.AppendUint32([]byte("GGUF"), 3)
	b = binary.LittleEndian.AppendUint64(b, uint64(tensors))
	b = binary.LittleEndian.AppendUint64(b, 0) // metadata
	for range tensors {
		b = binary.LittleEndian.AppendUint64(b, 1)
		b = append(b, 'w')
		b = binary.LittleEndian.AppendUint32(b, 1) // dimensions
		b = binary.LittleEndian.AppendUint64(b, uint64(n))
		b = binary.LittleEndian.AppendUint32(b, kind)
		b = binary.LittleEndian.AppendUint64(b, 0)
	}
	return string(append(b, make([]byte, (32-len(b)%32)%32+n)...))
}

func TestModelGGUF(t *testing.T) {
	const i8 = 24
	files := []File{textFile("m-00002-of-00002.gguf", ggufOf(1, i8, 2)), textFile("m-00001-of-00002.gguf", ggufOf(1, i8, 1))}
	p, err := Model(files, Rank{TP: 2})
	if err != nil {
		t.Fatal(err)
	}
	want := "m-00001-of-00002.gguf:0-64 m-00002-of-00002.gguf:0-64 m-00001-of-00002.gguf:64-65 m-00002-of-00002.gguf:64-66"
	if got := written(p, files); got != want {
		t.Errorf("plan %s, want %s", got, want)
	}
}

func TestModelBoundsTensors(t *testing.T) {
	if testing.Short() {
		t.Skip("reads a million tensors")
	}
	one := textFile("1.gguf", ggufOf(format.MaxTensors/2+1, 99, 0))
	two := File{"2.gguf", one.Object, one.Data}
	two.Object.Digest[0]++
	if _, err := Model([]File{one}, Rank{}); err != nil {
		t.Fatal(err)
	}
	if _, err := Model([]File{one, two}, Rank{}); err == nil || !strings.Contains(err.Error(), "2.gguf: the model has more than") {
		t.Errorf("error %v", err)
	}
}

// A together file answers once all have been asked.
type together struct {
	shard
	asked *sync.WaitGroup
	once  *sync.Once
}

func (r together) ReadAt(p []byte, off int64) (int, error) {
	r.once.Do(r.asked.Done)
	r.asked.Wait()
	return r.shard.ReadAt(p, off)
}

// What is fetched for the heads does not come one after the other.
func TestModelBeginsTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // fails where all wait
		var asked sync.WaitGroup
		var files []File
		for i := range beginAtOnce {
			f := shardOf(t, flat("a")).file(fmt.Sprintf("%d.safetensors", i))
			asked.Add(1)
			f.Data = together{f.Data.(shard), &asked, new(sync.Once)}
			files = append(files, f)
		}
		if _, err := Model(files, Rank{}); err != nil {
			t.Error(err)
		}
	})
}

// A headOnly file gives its head and no other byte.
type headOnly struct{ shard }

func (h headOnly) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > int64(len(h.head)) {
		return 0, errors.New("that is not of the head")
	}
	return h.shard.ReadAt(p, off)
}

func TestModelReadsHeadsOnly(t *testing.T) {
	f := shardOf(t, flat("a"), flat("b")).file("model.safetensors")
	f.Data = headOnly{f.Data.(shard)}
	bin := textFile("model.bin", "pickled")
	bin.Data = nil
	if p, err := Model([]File{f, bin}, Rank{TP: 2}); err != nil || p.Bytes() != f.Object.Size+bin.Object.Size {
		t.Errorf("%v, %v", p, err)
	}
}

func TestModelRefuses(t *testing.T) {
	broken := func(path, header string) File {
		return textFile(path, string(binary.LittleEndian.AppendUint64(nil, uint64(len(header))))+header)
	}
	away := textFile("model.safetensors", strings.Repeat("x", 100))
	away.Data = failing{}
	config := textFile("config.json", `{"num_hidden_layers":2}`)
	config.Data = failing{}
	shard := shardOf(t, flat("a")).file("model.safetensors")
	for want, files := range map[string][]File{
		`prefetch of sub/x.safetensors: read safetensors header: tensor "t"`: {broken("sub/x.safetensors", `{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`)},
		"prefetch of y.gguf: read GGUF table":                                {broken("y.gguf", "{}")},
		"prefetch of m.safetensors.index.json: unexpected":                   {textFile("m.safetensors.index.json", `{"weight_map":`)},
		"prefetch of model.safetensors: read safetensors header: gone":       {away},
		"prefetch of config.json: gone":                                      {config, shard},
	} {
		if _, err := Model(files, Rank{TP: 2}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	for _, r := range []Rank{{TP: -1}, {PP: -1}, {Index: -1}, {Index: 1}, {TP: 2, PP: 2, Index: 4}, {TP: maxRanks + 1}} {
		if _, err := Model([]File{shard}, r); err == nil || !strings.Contains(err.Error(), "no rank") {
			t.Errorf("rank %v: %v", r, err)
		}
	}
}

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errors.New("gone") }
