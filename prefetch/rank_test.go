package prefetch

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/spate-project/spate/cache/piece"
)

// dims are those of a model of Qwen2's shape.
type dims struct{ layers, hidden, inner, vocab, heads, kvHeads, shards int64 }

func (d dims) config(tied bool) string {
	return fmt.Sprintf(`{"num_hidden_layers":%d,"hidden_size":%d,"num_attention_heads":%d,"num_key_value_heads":%d,"tie_word_embeddings":%t}`,
		d.layers, d.hidden, d.heads, d.kvHeads, tied)
}

// tensors returns the model's tensors of BF16, in the order of a checkpoint.
func (d dims) tensors() []tensor {
	var all []tensor
	add := func(name string, shape ...int64) { all = append(all, tensor{name, "BF16", shape}) }
	add("model.embed_tokens.weight", d.vocab, d.hidden)
	kv := d.hidden / d.heads * d.kvHeads
	for i := range d.layers {
		layer := fmt.Sprintf("model.layers.%d.", i)
		add(layer+"self_attn.q_proj.weight", d.hidden, d.hidden)
		add(layer+"self_attn.q_proj.bias", d.hidden)
		add(layer+"self_attn.k_proj.weight", kv, d.hidden)
		add(layer+"self_attn.v_proj.weight", kv, d.hidden)
		add(layer+"self_attn.o_proj.weight", d.hidden, d.hidden)
		add(layer+"mlp.gate_proj.weight", d.inner, d.hidden)
		add(layer+"mlp.up_proj.weight", d.inner, d.hidden)
		add(layer+"mlp.down_proj.weight", d.hidden, d.inner)
		add(layer+"input_layernorm.weight", d.hidden)
	}
	add("model.norm.weight", d.hidden)
	add("lm_head.weight", d.vocab, d.hidden)
	return all
}

// files returns the model in d.shards files.
func (d dims) files(t testing.TB, tied bool) []File {
	files := []File{textFile("config.json", d.config(tied)), textFile("tokenizer.json", "{}")}
	tensors := d.tensors()
	for i := range int(d.shards) {
		n := len(tensors)
		part := tensors[i*n/int(d.shards) : (i+1)*n/int(d.shards)]
		files = append(files, shardOf(t, slices.Clone(part)...).file(fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, d.shards)))
	}
	return files
}

// covered returns the bytes of a plan as sorted ranges without overlap, and fails
// if a byte is there twice.
func covered(t *testing.T, p Plan) Plan {
	t.Helper()
	whole := union(p)
	if whole.Bytes() != p.Bytes() {
		t.Errorf("%d bytes are there twice", p.Bytes()-whole.Bytes())
	}
	return whole
}

func union(plans ...Plan) Plan {
	all := slices.Concat(plans...)
	slices.SortFunc(all, func(a, b Range) int {
		return cmp.Or(slices.Compare(a.Object[:], b.Object[:]), cmp.Compare(a.Offset, b.Offset))
	})
	var whole Plan
	for _, r := range all {
		if k := len(whole) - 1; k >= 0 && whole[k].Object == r.Object && whole[k].Offset+whole[k].Length >= r.Offset {
			whole[k].Length = max(whole[k].Length, r.Offset+r.Length-whole[k].Offset)
			continue
		}
		whole = append(whole, r)
	}
	return whole
}

// An engine divides a model in its own way.
type engine struct {
	name   string
	layers func(n, pp, at int64) (first, last int64)
	vocab  int64 // rows are padded to a multiple of it
}

var engines = []engine{
	{"all that is over to the last", func(n, pp, at int64) (int64, int64) {
		if at == pp-1 {
			return at * (n / pp), n
		}
		return at * (n / pp), (at + 1) * (n / pp)
	}, 64},
	{"one more to those before the last", func(n, pp, at int64) (int64, int64) {
		sizes := make([]int64, pp)
		for i := range sizes {
			sizes[i] = n / pp
		}
		for i := range n % pp {
			sizes[max(pp-2-i, 0)]++
		}
		var first int64
		for _, size := range sizes[:at] {
			first += size
		}
		return first, first + sizes[at]
	}, 256},
	{"one more to the first", func(n, pp, at int64) (int64, int64) {
		start := func(i int64) int64 { return i*(n/pp) + min(i, n%pp) }
		return start(at), start(at + 1)
	}, 1},
}

// needs returns the rows [first, last) of a tensor that one process reads.
func (e engine) needs(x tensor, d dims, tied bool, tp, pp, tpAt, ppAt int64) (first, last int64) {
	rows := x.shape[0]
	equal := func(parts, at int64) (int64, int64) { return at * rows / parts, (at + 1) * rows / parts }
	name := strings.TrimPrefix(x.name, "model.")
	var layer int64
	if n, _ := fmt.Sscanf(name, "layers.%d.", &layer); n == 1 {
		if from, to := e.layers(d.layers, pp, ppAt); layer < from || layer >= to {
			return 0, 0
		}
		_, name, _ = strings.Cut(strings.TrimPrefix(name, "layers."), ".")
	}
	here := true
	switch name {
	case "embed_tokens.weight":
		here = ppAt == 0 || tied && ppAt == pp-1
	case "norm.weight", "lm_head.weight":
		here = ppAt == pp-1
	}
	if !here {
		return 0, 0
	}
	switch name {
	case "self_attn.q_proj.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight":
		return equal(tp, tpAt)
	case "self_attn.k_proj.weight", "self_attn.v_proj.weight":
		if d.kvHeads < tp { // several have the same head
			return equal(d.kvHeads, tpAt/(tp/d.kvHeads))
		}
		return equal(tp, tpAt)
	case "embed_tokens.weight", "lm_head.weight":
		each := ((rows+e.vocab-1)/e.vocab*e.vocab + tp - 1) / tp
		return min(rows, tpAt*each), min(rows, (tpAt+1)*each)
	}
	return 0, rows // of o_proj and down_proj a strip of each
}

// No engine misses a byte, and all ranks together have all.
func TestRanksAreSound(t *testing.T) {
	d := dims{layers: 7, hidden: 64, inner: 96, vocab: 1000, heads: 8, kvHeads: 2, shards: 3}
	for _, tied := range []bool{false, true} {
		files := d.files(t, tied)
		full := union(Full(files))
		for _, tp := range []int{1, 2, 4, 8} {
			for _, pp := range []int{1, 2, 3, 5, 9} {
				var ranks []Plan
				for i := range tp * pp {
					p, err := Model(files, Rank{tp, pp, i})
					if err != nil {
						t.Fatal(err)
					}
					ranks = append(ranks, p)
					have := covered(t, p)
					for _, e := range engines {
						checkNeeds(t, e, d, tied, files, have, int64(tp), int64(pp), int64(i))
					}
					if tp*pp > 1 && pp <= int(d.layers) && have.Bytes() >= full.Bytes() {
						t.Errorf("rank %d of %d x %d needs everything", i, tp, pp)
					}
				}
				if all := union(ranks...); fmt.Sprint(all) != fmt.Sprint(full) {
					t.Errorf("the ranks of %d x %d have %d bytes together, of %d", tp, pp, all.Bytes(), full.Bytes())
				}
			}
		}
	}
}

func checkNeeds(t *testing.T, e engine, d dims, tied bool, files []File, have Plan, tp, pp, rank int64) {
	t.Helper()
	for _, x := range d.tensors() {
		first, last := e.needs(x, d, tied, tp, pp, rank%tp, rank/tp)
		if first == last {
			continue
		}
		i := slices.IndexFunc(files, func(f File) bool {
			s, ok := f.Data.(shard)
			return ok && s.spans[x.name] != [2]int64{}
		})
		row := x.bytes() / x.shape[0]
		begin := files[i].Data.(shard).spans[x.name][0] + first*row
		if end := begin + (last-first)*row; !slices.ContainsFunc(have, func(r Range) bool {
			return r.Object == files[i].Object.Digest && r.Offset <= begin && end <= r.Offset+r.Length
		}) {
			t.Errorf("rank %d of %d x %d lacks of %s rows %d to %d, as an engine has them that gives %s", rank, tp, pp, x.name, first, last, e.name)
		}
	}
}

// What is cut, and what is kept where a rule might take it for something else.
func TestCut(t *testing.T) {
	const text = `{"num_hidden_layers":4,"hidden_size":64,"num_attention_heads":8,"num_key_value_heads":4,"tie_word_embeddings":false}`
	none, whole := [2]int64{0, 0}, [2]int64{0, 64}
	for _, tt := range []struct {
		config string
		rank   Rank
		tensor tensor
		want   [2]int64 // rows
	}{
		{text, Rank{TP: 4, Index: 1}, tensor{"model.layers.3.self_attn.q_proj.weight", "BF16", []int64{64, 64}}, [2]int64{16, 32}},
		{text, Rank{TP: 4, Index: 1}, tensor{"model.layers.3.self_attn.q_proj.weight", "F8_E4M3", []int64{64, 64}}, [2]int64{16, 32}},
		{text, Rank{TP: 4, Index: 3}, tensor{"model.layers.3.mlp.up_proj.weight", "BF16", []int64{64, 64}}, [2]int64{48, 64}},
		{text, Rank{TP: 2, Index: 1}, tensor{"language_model.model.layers.3.mlp.up_proj.weight", "BF16", []int64{64, 64}}, [2]int64{32, 64}},
		{text, Rank{TP: 2, Index: 1}, tensor{"model.language_model.layers.3.mlp.up_proj.weight", "BF16", []int64{64, 64}}, [2]int64{32, 64}},
		{`{"text_config":` + text + `}`, Rank{TP: 2}, tensor{"layers.3.mlp.up_proj.weight", "BF16", []int64{64, 64}}, [2]int64{0, 32}},
		{text, Rank{TP: 2, Index: 1}, tensor{"lm_head.weight", "BF16", []int64{1024, 64}}, [2]int64{512, 1024}},
		{text, Rank{TP: 2}, tensor{"lm_head.weight", "BF16", []int64{1000, 64}}, [2]int64{0, 512}},

		{text, Rank{PP: 4, Index: 1}, tensor{"model.layers.1.mlp.down_proj.weight", "BF16", []int64{64, 8}}, whole},
		{text, Rank{PP: 4, Index: 1}, tensor{"model.layers.2.mlp.down_proj.weight", "BF16", []int64{64, 8}}, none},
		{text, Rank{PP: 4, Index: 1}, tensor{"model.layers.0.mlp.experts.9.up_proj.weight", "BF16", []int64{64, 8}}, none},
		{text, Rank{PP: 2, Index: 1}, tensor{"model.embed_tokens.weight", "BF16", []int64{64, 8}}, none},
		{text, Rank{PP: 2, Index: 0}, tensor{"model.norm.weight", "BF16", []int64{64}}, none},
		{text, Rank{PP: 2, Index: 0}, tensor{"lm_head.weight", "BF16", []int64{64, 8}}, none},

		// Kept whole: not by whole heads, more than rows, of an unknown kind, or not of the decoder.
		{text, Rank{TP: 8, Index: 1}, tensor{"model.layers.3.self_attn.k_proj.weight", "BF16", []int64{64, 64}}, whole},
		{text, Rank{TP: 4, Index: 1}, tensor{"model.layers.3.self_attn.k_proj.weight", "BF16", []int64{64, 64}}, whole}, // heads of another size
		{text, Rank{TP: 3, Index: 1}, tensor{"model.layers.3.mlp.up_proj.weight", "BF16", []int64{64, 64}}, whole},
		{text, Rank{TP: 2, Index: 1}, tensor{"model.layers.3.mlp.up_proj.weight", "U8", []int64{64, 64}}, whole},
		{text, Rank{TP: 2, Index: 1}, tensor{"model.layers.3.mlp.up_proj.weight", "BF16", []int64{64, 2, 3}}, whole},
		{text, Rank{TP: 2, Index: 1}, tensor{"model.layers.3.mlp.up_proj.qweight", "BF16", []int64{64, 64}}, whole},
		{text, Rank{TP: 2, Index: 1}, tensor{"model.layers.3.mlp.experts.0.up_proj.weight", "BF16", []int64{64, 64}}, whole},
		{text, Rank{TP: 2, Index: 1}, tensor{"model.layers.3.self_attn.o_proj.weight", "BF16", []int64{64, 64}}, whole},
		{text, Rank{TP: 2, Index: 1}, tensor{"model.layers.4.mlp.up_proj.weight", "BF16", []int64{64, 64}}, whole}, // past the last layer
		{text, Rank{PP: 2, Index: 0}, tensor{"model.layers.4.embed_tokens.weight", "BF16", []int64{64, 64}}, whole},
		{text, Rank{TP: 2, PP: 2}, tensor{"vision_tower.layers.3.self_attn.q_proj.weight", "BF16", []int64{64, 64}}, whole},
		{text, Rank{TP: 2, PP: 2}, tensor{"model.visual.layers.3.mlp.up_proj.weight", "BF16", []int64{64, 64}}, whole},
		{`{"num_hidden_layers":4,"num_attention_heads":[8]}`, Rank{TP: 2}, tensor{"model.layers.3.self_attn.q_proj.weight", "BF16", []int64{64, 64}}, whole},
		{`{"num_hidden_layers":4}`, Rank{PP: 2, Index: 1}, tensor{"model.embed_tokens.weight", "BF16", []int64{64, 8}}, whole}, // may be tied
		{`{"tie_word_embeddings":true,"text_config":` + text + `}`, Rank{PP: 2, Index: 1}, tensor{"model.embed_tokens.weight", "BF16", []int64{64, 8}}, whole},
		{`{"text_config":` + text + `}`, Rank{PP: 2, Index: 1}, tensor{"model.embed_tokens.weight", "BF16", []int64{64, 8}}, whole},
		{`{"num_hidden_layers":`, Rank{TP: 2, PP: 2}, tensor{"model.layers.3.mlp.up_proj.weight", "BF16", []int64{64, 64}}, whole},
		{`[]`, Rank{TP: 2, PP: 2}, tensor{"lm_head.weight", "BF16", []int64{64, 64}}, whole},
	} {
		s := shardOf(t, tt.tensor)
		f := s.file("m/model.safetensors")
		p, err := Model([]File{textFile("m/config.json", tt.config), f}, tt.rank)
		if err != nil {
			t.Fatal(err)
		}
		begin, row := int64(len(s.head)), tt.tensor.bytes()/tt.tensor.shape[0]
		got := [2]int64{}
		for _, r := range p {
			if r.Object == f.Object.Digest && r.Offset >= begin {
				got = [2]int64{(r.Offset - begin) / row, (r.Offset + r.Length - begin) / row}
			}
		}
		if got != tt.want {
			t.Errorf("rank %v has rows %v of %s %s%v, want %v; config %s", tt.rank, got, tt.tensor.name, tt.tensor.dtype, tt.tensor.shape, tt.want, tt.config)
		}
	}
}

// Two files that are one object may belong to models that are divided differently.
func TestCutOneObjectTwice(t *testing.T) {
	d := dims{layers: 2, hidden: 64, inner: 96, vocab: 1024, heads: 8, kvHeads: 2, shards: 1}
	f := shardOf(t, d.tensors()...).file("a/model.safetensors")
	again := f
	again.Path = "b/model.safetensors"
	p, err := Model([]File{textFile("a/config.json", d.config(false)), f, again}, Rank{TP: 2})
	if err != nil {
		t.Fatal(err)
	}
	if have := covered(t, p).Bytes(); have < f.Object.Size {
		t.Errorf("the plan has %d of %d bytes", have, f.Object.Size)
	}
}

// Whatever a model's files say, all ranks together have each byte, and none has one twice.
func FuzzRanks(f *testing.F) {
	d := dims{layers: 3, hidden: 16, inner: 24, vocab: 100, heads: 4, kvHeads: 2, shards: 1}
	for _, x := range d.tensors() {
		f.Add(d.config(false), x.name, uint16(x.shape[0]), uint16(16))
	}
	f.Add(`{"text_config":`+d.config(true)+`}`, "model.language_model.embed_tokens.weight", uint16(100), uint16(0))
	f.Fuzz(func(t *testing.T, config, name string, rows, columns uint16) {
		if name == "__metadata__" || name == "x" {
			return
		}
		s := shardOf(t, tensor{name, "BF16", []int64{int64(rows), int64(columns)}}, flat("x"))
		files := []File{textFile("config.json", config), s.file("model.safetensors")}
		full := union(Full(files))
		for _, ranks := range []Rank{{TP: 2, PP: 1}, {TP: 1, PP: 2}, {TP: 4, PP: 3}} {
			var all []Plan
			for i := range ranks.TP * ranks.PP {
				p, err := Model(files, Rank{ranks.TP, ranks.PP, i})
				if err != nil {
					t.Fatal(err)
				}
				covered(t, p)
				all = append(all, p)
			}
			if got := union(all...); fmt.Sprint(got) != fmt.Sprint(full) {
				t.Fatalf("the ranks of %d x %d have %v together, of %v", ranks.TP, ranks.PP, got, full)
			}
		}
	})
}

// The layout of a model of 145 GB with 80 layers in 37 files.
func BenchmarkModel(b *testing.B) {
	d := dims{layers: 80, hidden: 8192, inner: 29568, vocab: 152064, heads: 64, kvHeads: 8, shards: 37}
	files := d.files(b, false)
	objects := make([]piece.Object, len(files))
	for i, f := range files {
		objects[i] = f.Object
	}
	for _, rank := range []Rank{{}, {TP: 2, Index: 1}, {TP: 2, PP: 2, Index: 1}} {
		b.Run(fmt.Sprintf("tp=%d/pp=%d", max(rank.TP, 1), max(rank.PP, 1)), func(b *testing.B) {
			b.ReportAllocs()
			var p Plan
			for b.Loop() {
				var err error
				if p, err = Model(files, rank); err != nil {
					b.Fatal(err)
				}
			}
			pieces := 0
			for range p.Pieces(objects...) {
				pieces++
			}
			b.ReportMetric(float64(p.Bytes())/1e9, "GB")
			b.ReportMetric(float64(len(p)), "ranges")
			b.ReportMetric(float64(pieces), "pieces")
		})
	}
}
