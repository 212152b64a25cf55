package prefetch

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spate-project/spate/oci/model/format"
)

const (
	// maxRanks bounds both ways to divide a model.
	maxRanks = 1 << 12

	// maxConfig bounds a config.json, in bytes. From a larger one nothing is known.
	maxConfig = 1 << 20

	// vocabPadding is the largest number of rows to a multiple of which engines
	// pad the vocabulary before they divide it.
	vocabPadding = 256
)

// A Rank is one of TP x PP processes, or of as many nodes with an equal number
// of processes each, that load a model together. The zero value needs it all.
//
// What a rank does not need is told by the rules that engines share, by the names
// of the tensors, of which Hugging Face's are known:
//
//   - Pipeline parallelism: each rank has the layers of an equal part; the first
//     has the embeddings too, the last the norm and the head. Where the layers do
//     not divide equally, engines differ and all that they may choose is kept.
//   - Tensor parallelism: each rank has an equal part of the rows of q_proj,
//     k_proj and v_proj, by whole heads, of gate_proj and up_proj, and, somewhat
//     more, of the embeddings and the head.
//
// All else is kept whole on all ranks: norms and biases; o_proj and down_proj,
// of which a rank has a strip of each row, and rows are shorter than pieces;
// experts, which engines divide by either way; what is quantized to less than
// 8 bits, where rows are not what they seem; GGUF; models whose config.json tells
// too little. What an engine that is told to divide otherwise misses is not lost:
// it is fetched when it is read.
type Rank struct {
	TP, PP int // 0 is 1
	Index  int // from 0: that of tensor parallelism + TP x that of pipeline parallelism
}

// Check reports whether there is such a rank.
func (r Rank) Check() error {
	tp, pp := max(r.TP, 1), max(r.PP, 1)
	if r.TP < 0 || r.PP < 0 || tp > maxRanks || pp > maxRanks || r.Index < 0 || r.Index >= tp*pp {
		return fmt.Errorf("there is no rank %d of TP %d x PP %d; ranks count from 0, and each way divides by 1 to %d", r.Index, cmp.Or(r.TP, 1), cmp.Or(r.PP, 1), maxRanks)
	}
	return nil
}

// A decoder is what the config.json of a model says of its layers, as Hugging
// Face's libraries write it. What it does not say is 0.
type decoder struct {
	Layers  int64 `json:"num_hidden_layers"`
	Hidden  int64 `json:"hidden_size"`
	Heads   int64 `json:"num_attention_heads"`
	KVHeads int64 `json:"num_key_value_heads"`
	HeadDim int64 `json:"head_dim"`
	Tied    *bool `json:"tie_word_embeddings"` // the head's weights are the embeddings
}

// A cutter keeps of files of weights what a rank needs.
type cutter struct {
	ranks, at struct{ tp, pp int64 } // how many ranks there are each way, and which one this is
	configs   map[string]File        // by directory
	decoders  map[string]decoder
}

func newCutter(files []File, r Rank) *cutter {
	c := &cutter{configs: make(map[string]File), decoders: make(map[string]decoder)}
	c.ranks.tp, c.ranks.pp = int64(max(r.TP, 1)), int64(max(r.PP, 1))
	c.at.tp, c.at.pp = int64(r.Index)%c.ranks.tp, int64(r.Index)/c.ranks.tp
	for _, f := range files {
		if path.Base(f.Path) == "config.json" && f.Object.Size <= maxConfig {
			c.configs[path.Dir(f.Path)] = f
		}
	}
	return c
}

// add appends to p what the rank needs of f behind its head.
func (c *cutter) add(p *Plan, f modelFile, t *format.Table) error {
	if f.format() != ".safetensors" {
		p.add(f.Object.Digest, t.Header, f.Object.Size)
		return nil
	}
	d, err := c.decoder(path.Dir(f.Path))
	if err != nil {
		return err
	}
	slices.SortFunc(t.Tensors, func(a, b format.Tensor) int { return strings.Compare(a.Name, b.Name) })
	for _, tensor := range t.Tensors {
		begin, end := tensor.Begin, tensor.End
		if !f.twice { // else the other file may have another config
			begin, end = c.cut(tensor, d)
		}
		p.add(f.Object.Digest, begin, end)
	}
	return nil
}

// decoder reads the config.json of a directory. The zero value, of which nothing
// is cut, stands for none, for one that is not understood, and for a whole model.
func (c *cutter) decoder(dir string) (decoder, error) {
	f, ok := c.configs[dir]
	if _, read := c.decoders[dir]; read || !ok || c.ranks.tp*c.ranks.pp == 1 {
		return c.decoders[dir], nil
	}
	text, err := io.ReadAll(io.NewSectionReader(f.Data, 0, f.Object.Size))
	if err != nil {
		return decoder{}, fmt.Errorf("plan the prefetch of %s: %w", f.Path, err)
	}
	var config struct {
		decoder
		Text *decoder `json:"text_config"` // of a model that takes more than text
	}
	err = json.Unmarshal(text, &config)
	if err != nil && !errors.As(err, new(*json.UnmarshalTypeError)) { // then the other fields are there
		config.decoder, config.Text = decoder{}, nil
	}
	d := config.decoder
	if config.Text != nil {
		d = *config.Text
		if config.Tied == nil || *config.Tied {
			d.Tied = config.Tied
		}
	}
	c.decoders[dir] = d
	return d, nil
}

// tensorName takes a name apart: the layer, if it is in one of the decoder, and
// the rest. Encoders of images and sound have other names in front.
var tensorName = regexp.MustCompile(`^(?:model\.)?(?:language_model\.)?(?:model\.)?(?:layers\.(\d+)\.)?(.+)$`)

// cut returns which bytes of the file the rank needs of t; none where begin is end.
func (c *cutter) cut(t format.Tensor, d decoder) (begin, end int64) {
	m := tensorName.FindStringSubmatch(t.Name)
	if m == nil || d.Layers <= 0 {
		return t.Begin, t.End
	}
	rows := c.vocabulary
	if m[1] == "" {
		if !c.holds(m[2], d) {
			return t.Begin, t.Begin
		}
	} else {
		layer, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil || layer >= d.Layers { // such as those that predict further tokens
			return t.Begin, t.End
		}
		if first, last := c.layers(d.Layers); layer < first || layer >= last {
			return t.Begin, t.Begin
		}
		rows = c.projection
	}
	if len(t.Shape) != 2 || t.Shape[0] == 0 || !plain(t.DType) {
		return t.Begin, t.End
	}
	row := (t.End - t.Begin) / t.Shape[0] // bytes
	first, last := rows(m[2], t.Shape[0], d)
	return t.Begin + first*row, t.Begin + last*row
}

// plain reports whether a row of numbers of type dtype is a row of the model's.
func plain(dtype string) bool {
	switch dtype {
	case "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2":
		return true
	}
	return false
}

// holds reports whether the rank has a tensor that is in no layer.
func (c *cutter) holds(name string, d decoder) bool {
	first, last := c.at.pp == 0, c.at.pp == c.ranks.pp-1
	switch name {
	case "embed_tokens.weight":
		tied := d.Tied == nil || *d.Tied // where nothing is said it depends on the model
		return first || last && tied
	case "norm.weight", "lm_head.weight":
		return last
	}
	return true
}

// layers returns the layers [first, last) of n that the rank may have: where n is no
// multiple of the ranks, engines give one more each to different ones, or all to the last.
func (c *cutter) layers(n int64) (first, last int64) {
	each, more := n/c.ranks.pp, n%c.ranks.pp
	return c.at.pp * each, min(n, (c.at.pp+1)*each+min(c.at.pp+1, more))
}

// projection returns the rows [first, last) of n that the rank has of a layer's matrix.
func (c *cutter) projection(name string, n int64, d decoder) (first, last int64) {
	heads, size := n, int64(1)
	switch name {
	case "self_attn.q_proj.weight":
		heads, size = d.Heads, d.headSize()
	case "self_attn.k_proj.weight", "self_attn.v_proj.weight":
		heads, size = d.KVHeads, d.headSize()
	case "mlp.gate_proj.weight", "mlp.up_proj.weight":
	default:
		return 0, n
	}
	if heads <= 0 || heads%c.ranks.tp != 0 || n%heads != 0 || n/heads != size {
		return 0, n
	}
	each := n / c.ranks.tp
	return c.at.tp * each, (c.at.tp + 1) * each
}

// headSize returns how many rows a head has, and 0 when that is not known.
func (d decoder) headSize() int64 {
	if d.HeadDim == 0 && d.Heads > 0 && d.Hidden%d.Heads == 0 {
		return d.Hidden / d.Heads
	}
	return d.HeadDim
}

// vocabulary returns the rows [first, last) of n that the rank may have of a
// matrix with a row for each token: engines pad n before they divide it, or do not.
func (c *cutter) vocabulary(name string, n int64, _ decoder) (first, last int64) {
	if name != "embed_tokens.weight" && name != "lm_head.weight" {
		return 0, n
	}
	unit := vocabPadding * c.ranks.tp
	most := (n + unit - 1) / unit * vocabPadding
	return c.at.tp * n / c.ranks.tp, min(n, (c.at.tp+1)*most)
}
