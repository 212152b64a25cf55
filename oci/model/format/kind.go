package format

import (
	"cmp"
	"path"
	"strings"

	"github.com/spate-project/spate/oci"
)

// largeFile is from where on a file of unknown kind is taken for weights, in bytes, as modctl does.
const largeFile = 128 << 20

// KindOf guesses what a file of size bytes is from its name: one of the oci.Layer constants.
func KindOf(name string, size int64) string {
	base := strings.ToLower(path.Base(name))
	switch {
	case strings.Contains(base, "tokenizer"),
		base == "vocab.txt", base == "merges.txt", base == "spiece.model", base == "sentencepiece.bpe.model":
		return oci.LayerWeightConfig
	case strings.HasPrefix(base, "license"), strings.HasPrefix(base, "readme"), strings.HasPrefix(base, "notice"):
		return oci.LayerDoc
	}
	switch path.Ext(base) {
	case ".json", ".jsonl", ".json5", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".conf", ".config", ".xml", ".jinja", ".tiktoken":
		return oci.LayerWeightConfig
	case ".safetensors", ".gguf", ".ggml", ".bin", ".pt", ".pth", ".pt2", ".pte", ".onnx", ".onnx_data", ".h5", ".hdf5", ".keras",
		".pb", ".tflite", ".ckpt", ".npy", ".npz", ".msgpack", ".pkl", ".model", ".mlmodel", ".engine", ".trt", ".llamafile", ".dduf":
		return oci.LayerWeight
	case ".md", ".txt", ".pdf", ".rst", ".html", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp":
		return oci.LayerDoc
	case ".parquet", ".arrow", ".csv", ".tsv":
		return oci.LayerDataset
	}
	if size > largeFile {
		return oci.LayerWeight
	}
	return oci.LayerCode
}

// Compare orders the files of a model, each of a kind and at a path, as an engine
// reads them: what configures it, code, weights in the natural order of their
// shards, then what it does not read at all.
func Compare(kindA, pathA, kindB, pathB string) int {
	return cmp.Or(cmp.Compare(rank(kindA), rank(kindB)), compareNatural(pathA, pathB))
}

func rank(kind string) int {
	switch kind {
	case oci.LayerWeightConfig:
		return 0
	case oci.LayerCode:
		return 1
	case oci.LayerWeight:
		return 2
	case oci.LayerDataset:
		return 3
	}
	return 4
}

// compareNatural compares byte by byte, but runs of digits by their value:
// part-9 is before part-10.
func compareNatural(a, b string) int {
	x, y := a, b
	for x != "" && y != "" {
		nx, ny := digits(x), digits(y)
		if nx == 0 || ny == 0 {
			if x[0] != y[0] {
				return cmp.Compare(x[0], y[0])
			}
			x, y = x[1:], y[1:]
			continue
		}
		vx, vy := strings.TrimLeft(x[:nx], "0"), strings.TrimLeft(y[:ny], "0")
		if c := cmp.Or(cmp.Compare(len(vx), len(vy)), cmp.Compare(vx, vy)); c != 0 {
			return c
		}
		x, y = x[nx:], y[ny:]
	}
	return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(a, b))
}

// digits returns how many digits s begins with.
func digits(s string) int {
	return len(s) - len(strings.TrimLeft(s, "0123456789"))
}
