package lab

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// minSize is the smallest model that still has Qwen2's shape.
const minSize = 1 << 20

// dims are a Qwen2 model's dimensions. Qwen2.5-72B has 80 layers, hidden 8192,
// inner 29568, vocabulary 152064, 64 heads of which 8 hold keys and values.
type dims struct {
	layers, hidden, inner, vocab, heads, kvHeads int64
}

// fit returns Qwen2.5-72B's proportions scaled so that the weights have about
// size bytes: all 80 layers where they leave a hidden size of 128 or more.
func fit(size int64) dims {
	const perLayer, perModel = 13.08, 37.1 // parameters in units of hidden²
	params := float64(size) / 2
	layers := min(max(int64((params/(128*128)-perModel)/perLayer), 2), 80)
	hidden := max(16, 16*int64(math.Round(math.Sqrt(params/(perModel+perLayer*float64(layers)))/16)))
	d := dims{layers: layers, hidden: hidden, vocab: hidden / 16 * 297, heads: 8, kvHeads: 1}
	// The inner size takes up what the coarser steps left over.
	left := size/2 - total(d.tensors())/2
	d.inner = 8 * max(1, int64(math.Round(float64(left)/float64(3*8*hidden*layers))))
	return d
}

// A tensor is of bfloat16.
type tensor struct {
	name  string
	shape []int64
	seed  uint64 // its place in the model
}

func (t tensor) bytes() int64 {
	n := int64(2)
	for _, s := range t.shape {
		n *= s
	}
	return n
}

func total(ts []tensor) (n int64) {
	for _, t := range ts {
		n += t.bytes()
	}
	return n
}

// tensors returns the model's tensors in the order in which PyTorch saves them.
func (d dims) tensors() []tensor {
	var ts []tensor
	add := func(name string, shape ...int64) {
		ts = append(ts, tensor{name, shape, uint64(len(ts))})
	}
	kv := d.hidden / d.heads * d.kvHeads
	add("model.embed_tokens.weight", d.vocab, d.hidden)
	for i := range d.layers {
		layer := fmt.Sprintf("model.layers.%d.", i)
		for _, p := range []struct {
			name string
			rows int64
		}{{"q", d.hidden}, {"k", kv}, {"v", kv}} {
			add(layer+"self_attn."+p.name+"_proj.weight", p.rows, d.hidden)
			add(layer+"self_attn."+p.name+"_proj.bias", p.rows)
		}
		add(layer+"self_attn.o_proj.weight", d.hidden, d.hidden)
		add(layer+"mlp.gate_proj.weight", d.inner, d.hidden)
		add(layer+"mlp.up_proj.weight", d.inner, d.hidden)
		add(layer+"mlp.down_proj.weight", d.hidden, d.inner)
		add(layer+"input_layernorm.weight", d.hidden)
		add(layer+"post_attention_layernorm.weight", d.hidden)
	}
	add("model.norm.weight", d.hidden)
	add("lm_head.weight", d.vocab, d.hidden)
	return ts
}

// split deals the tensors in order to n shards of about equal size, and sorts
// each by name, as safetensors does.
func split(ts []tensor, n int) ([][]tensor, error) {
	shards := make([][]tensor, n)
	size, before := total(ts), int64(0)
	for _, t := range ts {
		middle := before + t.bytes()/2
		i := int(float64(middle) / float64(size) * float64(n))
		shards[i] = append(shards[i], t)
		before += t.bytes()
	}
	for _, s := range shards {
		if len(s) == 0 {
			return nil, fmt.Errorf("its largest tensor is larger than one of %d shards; ask for fewer shards or a larger model", n)
		}
		slices.SortFunc(s, func(a, b tensor) int { return strings.Compare(a.name, b.name) })
	}
	return shards, nil
}
