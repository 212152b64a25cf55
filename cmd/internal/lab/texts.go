package lab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// endOfText is the id of the one special token, after the 256 bytes.
const endOfText = 256

const readme = `---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# A synthetic model

%d layers with the tensor names and proportions of Qwen2.5-72B, scaled down.
The weights are random numbers: it loads like a model and says nothing.
`

// writeTexts writes everything of a model but its shards.
func writeTexts(dir string, d dims, shards [][]tensor) error {
	weightMap := map[string]string{}
	var size int64
	for i, ts := range shards {
		for _, t := range ts {
			weightMap[t.name] = shardName(i, len(shards))
		}
		size += total(ts)
	}
	for name, v := range map[string]any{
		"config.json": map[string]any{
			"architectures":           []string{"Qwen2ForCausalLM"},
			"attention_dropout":       0,
			"bos_token_id":            endOfText,
			"eos_token_id":            endOfText,
			"hidden_act":              "silu",
			"hidden_size":             d.hidden,
			"initializer_range":       0.02,
			"intermediate_size":       d.inner,
			"max_position_embeddings": 32768,
			"max_window_layers":       d.layers,
			"model_type":              "qwen2",
			"num_attention_heads":     d.heads,
			"num_hidden_layers":       d.layers,
			"num_key_value_heads":     d.kvHeads,
			"rms_norm_eps":            1e-6,
			"rope_theta":              1e6,
			"tie_word_embeddings":     false,
			"torch_dtype":             "bfloat16",
			"use_cache":               true,
			"use_sliding_window":      false,
			"vocab_size":              d.vocab,
		},
		"generation_config.json": map[string]any{
			"bos_token_id": endOfText,
			"do_sample":    false,
			"eos_token_id": endOfText,
		},
		"tokenizer_config.json": map[string]any{
			"eos_token":        "<|endoftext|>",
			"model_max_length": 32768,
			"pad_token":        "<|endoftext|>",
			"tokenizer_class":  "Qwen2Tokenizer",
		},
		"tokenizer.json": tokenizer(),
		"model.safetensors.index.json": map[string]any{
			"metadata":   map[string]int64{"total_size": size},
			"weight_map": weightMap,
		},
	} {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(v); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "README.md"), fmt.Appendf(nil, readme, d.layers), 0o644)
}

// tokenizer returns a byte-level BPE without merges in the format of Hugging
// Face's tokenizers: each byte is a token.
func tokenizer() any {
	// GPT-2's alphabet: printable bytes stand for themselves, the others for
	// the runes from 256 on.
	vocab := make(map[string]int, endOfText)
	moved := rune(256)
	for b := range rune(256) {
		r := b
		if b <= ' ' || b >= 0x7f && b <= 0xa0 || b == 0xad {
			r = moved
			moved++
		}
		vocab[string(r)] = int(b)
	}
	byteLevel := map[string]any{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true}
	return map[string]any{
		"version":    "1.0",
		"truncation": nil,
		"padding":    nil,
		"added_tokens": []any{map[string]any{
			"id": endOfText, "content": "<|endoftext|>", "special": true,
			"single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
		}},
		"normalizer":     nil,
		"pre_tokenizer":  byteLevel,
		"post_processor": byteLevel,
		"decoder":        byteLevel,
		"model": map[string]any{
			"type": "BPE", "dropout": nil, "unk_token": nil, "continuing_subword_prefix": nil, "end_of_word_suffix": nil,
			"fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": []string{},
		},
	}
}
