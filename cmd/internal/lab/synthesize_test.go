package lab

import (
	"bytes"
	"compress/flate"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spate-project/spate/oci/model/format"
)

var update = flag.Bool("update", false, "write the golden files anew")

func synthesized(t testing.TB, size int64, o ModelOptions) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "model")
	if err := Synthesize(t.Context(), dir, size, o); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tensorsOf returns every tensor's bytes by name, checked against the index.
func tensorsOf(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	var index struct {
		Metadata  map[string]int64  `json:"metadata"`
		WeightMap map[string]string `json:"weight_map"`
	}
	readJSON(t, filepath.Join(dir, indexName), &index)
	tensors := map[string][]byte{}
	var size int64
	paths, _ := filepath.Glob(filepath.Join(dir, "*.safetensors"))
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		header, err := format.ReadSafetensors(bytes.NewReader(b), int64(len(b)), format.MaxHeader)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range header.Tensors {
			tensors[x.Name] = b[x.Begin:x.End]
			size += x.End - x.Begin
			if got := index.WeightMap[x.Name]; got != filepath.Base(path) {
				t.Errorf("the index has %s in %q, it is in %s", x.Name, got, path)
			}
		}
	}
	if len(tensors) != len(index.WeightMap) || size != index.Metadata["total_size"] {
		t.Errorf("%d tensors of %d bytes; the index has %d and %v", len(tensors), size, len(index.WeightMap), index.Metadata)
	}
	return tensors
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func TestFit(t *testing.T) {
	for size := int64(minSize); size < 200<<30; size += size / 3 {
		d := fit(size)
		got := total(d.tensors())
		if off := math.Abs(float64(got-size)) / float64(size); off > 0.02 {
			t.Errorf("%d bytes wanted, %+v has %d: %.1f%% off", size, d, got, 100*off)
		}
		if d.hidden/d.heads%2 != 0 {
			t.Errorf("%+v: rotary embeddings need an even head", d)
		}
		shards := int(min(max(size>>22, 1), 8))
		if _, err := split(d.tensors(), shards); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	d := fit(145_412_407_296) // Qwen2.5-72B's own
	d.heads, d.kvHeads = 64, 8
	if want := (dims{80, 8192, 29568, 152064, 64, 8}); d != want || total(d.tensors()) != 145_412_407_296 || len(d.tensors()) != 963 {
		t.Errorf("at full size %+v with %d bytes in %d tensors", d, total(d.tensors()), len(d.tensors()))
	}
}

func TestSynthesizeGolden(t *testing.T) {
	dir := synthesized(t, 2<<20, ModelOptions{Shards: 2, Seed: 1})
	var got strings.Builder
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%x %d %s\n", sha256.Sum256(b), len(b), e.Name())
		if strings.HasSuffix(e.Name(), ".safetensors") {
			header := b[8 : 8+binary.LittleEndian.Uint64(b)]
			fmt.Fprintf(&got, "%s\n", strings.ReplaceAll(string(header), "},", "},\n"))
		}
	}
	golden := filepath.Join("testdata", "layout.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("the model differs from %s (-update writes it anew):\n%s", golden, &got)
	}
}

func TestSynthesizeAgreesWithItsConfig(t *testing.T) {
	dir := synthesized(t, 3<<20, ModelOptions{Shards: 3})
	var c struct {
		Hidden  int `json:"hidden_size"`
		Inner   int `json:"intermediate_size"`
		Heads   int `json:"num_attention_heads"`
		KVHeads int `json:"num_key_value_heads"`
		Layers  int `json:"num_hidden_layers"`
		Vocab   int `json:"vocab_size"`
	}
	readJSON(t, filepath.Join(dir, "config.json"), &c)
	tensors := tensorsOf(t, dir)
	if want := 12*c.Layers + 3; len(tensors) != want {
		t.Errorf("%d tensors, %d layers need %d", len(tensors), c.Layers, want)
	}
	for name, params := range map[string]int{
		"model.embed_tokens.weight":              c.Vocab * c.Hidden,
		"model.layers.0.self_attn.q_proj.bias":   c.Hidden,
		"model.layers.1.self_attn.v_proj.weight": c.Hidden / c.Heads * c.KVHeads * c.Hidden,
		"model.layers.1.mlp.down_proj.weight":    c.Inner * c.Hidden,
		"model.norm.weight":                      c.Hidden,
		"lm_head.weight":                         c.Vocab * c.Hidden,
	} {
		if got := len(tensors[name]); got != 2*params {
			t.Errorf("%s has %d bytes, the configuration says %d", name, got, 2*params)
		}
	}
	var tok struct {
		Model struct{ Vocab map[string]int }
	}
	readJSON(t, filepath.Join(dir, "tokenizer.json"), &tok)
	if len(tok.Model.Vocab) != endOfText || tok.Model.Vocab["A"] != 'A' || tok.Model.Vocab["Ġ"] != ' ' {
		t.Errorf("%d tokens, A is %d, a space is %d", len(tok.Model.Vocab), tok.Model.Vocab["A"], tok.Model.Vocab["Ġ"])
	}
	if readme, _ := os.ReadFile(filepath.Join(dir, "README.md")); !bytes.HasPrefix(readme, []byte("---\nlicense: apache-2.0\n")) {
		t.Errorf("the model card begins %.40q", readme)
	}
}

func TestSynthesizeSeedAndShards(t *testing.T) {
	a := tensorsOf(t, synthesized(t, 2<<20, ModelOptions{Seed: 1}))
	b := tensorsOf(t, synthesized(t, 2<<20, ModelOptions{Seed: 1, Shards: 3}))
	c := tensorsOf(t, synthesized(t, 2<<20, ModelOptions{Seed: 2}))
	seen := map[string]string{}
	for name := range a {
		if !bytes.Equal(a[name], b[name]) {
			t.Errorf("%s depends on the number of shards", name)
		}
		if bytes.Equal(a[name], c[name]) {
			t.Errorf("%s does not depend on the seed", name)
		}
		if twin, ok := seen[string(a[name])]; ok {
			t.Errorf("%s and %s are equal", name, twin)
		}
		seen[string(a[name])] = name
	}
}

func TestWeightsLookLikeWeights(t *testing.T) {
	b := tensorsOf(t, synthesized(t, 8<<20, ModelOptions{Shards: 1}))["model.embed_tokens.weight"]
	var sum, squares float64
	var within int
	for i := 0; i < len(b); i += 2 {
		x := float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(b[i:])) << 16))
		sum += x
		squares += x * x
		if math.Abs(x) < 0.02 {
			within++
		}
	}
	n := float64(len(b) / 2)
	if mean, deviation := sum/n, math.Sqrt(squares/n); math.Abs(mean) > 1e-4 || math.Abs(deviation-0.02) > 1e-4 {
		t.Errorf("mean %g, deviation %g", mean, deviation)
	}
	if share := float64(within) / n; math.Abs(share-0.6827) > 0.01 {
		t.Errorf("%.3f of the weights are within one deviation", share)
	}
	var small bytes.Buffer
	w, _ := flate.NewWriter(&small, flate.BestCompression)
	w.Write(b)
	w.Close()
	if ratio := float64(small.Len()) / float64(len(b)); ratio < 0.7 {
		t.Errorf("compresses to %.2f of its size", ratio)
	}
}

func TestSynthesizeRefuses(t *testing.T) {
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "notes.txt"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	tests := []struct {
		name string
		ctx  context.Context
		dir  string
		size int64
		o    ModelOptions
		want string
	}{
		{"too small", t.Context(), "a", minSize - 1, ModelOptions{}, "too few"},
		{"negative", t.Context(), "b", -1, ModelOptions{}, "too few"},
		{"too many shards", t.Context(), "c", minSize, ModelOptions{Shards: 30}, "fewer shards"},
		{"negative shards", t.Context(), "d", minSize, ModelOptions{Shards: -1}, "-1 shards"},
		{"in use", t.Context(), full, minSize, ModelOptions{}, "not empty"},
		{"cancelled", cancelled, "e", minSize, ModelOptions{}, "context canceled"},
	}
	root := t.TempDir()
	for _, tt := range tests {
		if !filepath.IsAbs(tt.dir) {
			tt.dir = filepath.Join(root, tt.dir)
		}
		err := Synthesize(tt.ctx, tt.dir, tt.size, tt.o)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "synthesize model in "+tt.dir) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if err := Synthesize(cancelled, filepath.Join(root, "f"), minSize, ModelOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if entries, _ := os.ReadDir(full); !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == "notes.txt" }) || len(entries) != 1 {
		t.Errorf("a refused directory changed: %v", entries)
	}
}

func BenchmarkSynthesize(b *testing.B) {
	const size = 256 << 20
	root := b.TempDir()
	b.SetBytes(size)
	for b.Loop() {
		dir := filepath.Join(root, "model")
		if err := Synthesize(b.Context(), dir, size, ModelOptions{}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
