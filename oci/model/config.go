package model

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/model/format"
)

const (
	// hintHeader and hintConfig bound what is read of a file to describe the model, in bytes.
	hintHeader = 16 << 20
	hintConfig = 1 << 20
)

// config is the config of a ModelPack artifact, as far as Pack knows it.
type config struct {
	Descriptor struct {
		CreatedAt *time.Time `json:"createdAt,omitempty"`
		Family    string     `json:"family,omitempty"`
		Name      string     `json:"name,omitempty"`
	} `json:"descriptor"`
	Config struct {
		Architecture string `json:"architecture,omitempty"`
		Format       string `json:"format,omitempty"`
		ParamSize    string `json:"paramSize,omitempty"`
		Precision    string `json:"precision,omitempty"`
		Quantization string `json:"quantization,omitempty"`
	} `json:"config"`
	ModelFS struct {
		Type    string          `json:"type"`
		DiffIDs []digest.Digest `json:"diffIds"`
	} `json:"modelfs"`
}

// A hint is what one file tells about the model.
type hint struct {
	elements map[string]int64 // numbers by dtype, of a safetensors file
	config   *modelConfig     // of config.json
}

// modelConfig is what is of use in the config.json that Hugging Face's libraries write.
type modelConfig struct {
	NameOrPath   string `json:"_name_or_path"`
	ModelType    string `json:"model_type"`
	TorchDType   string `json:"torch_dtype"`
	DType        string `json:"dtype"`
	Heads        int    `json:"num_attention_heads"`
	Quantization struct {
		Method string `json:"quant_method"`
	} `json:"quantization_config"`
}

// look reads from the start of a file what it tells about the model. A file that
// is not what its name says is packed all the same and tells nothing.
func look(r io.ReaderAt, name string, size int64) (h hint) {
	switch {
	case path.Ext(name) == ".safetensors":
		s, err := format.ReadSafetensors(r, size, hintHeader)
		if err != nil {
			return h
		}
		h.elements = make(map[string]int64)
		for _, t := range s.Tensors {
			h.elements[t.DType] += t.Elements()
		}
	case name == "config.json" && size <= hintConfig:
		var c modelConfig
		err := json.NewDecoder(io.NewSectionReader(r, 0, size)).Decode(&c)
		if err == nil || errors.As(err, new(*json.UnmarshalTypeError)) { // then the other fields are there
			h.config = &c
		}
	}
	return h
}

// describe makes the config of a model of the given layers from what its files told.
func describe(layers []ocispec.Descriptor, hints []hint, opts Options) ([]byte, error) {
	var c config
	elements := make(map[string]int64)
	for _, h := range hints {
		for dtype, n := range h.elements {
			elements[dtype] += n
		}
		if h.config != nil {
			c.Descriptor.Family = h.config.ModelType
			c.Descriptor.Name = modelName(h.config.NameOrPath)
			c.Config.Precision = cmp.Or(h.config.TorchDType, h.config.DType)
			c.Config.Quantization = h.config.Quantization.Method
			if h.config.Heads > 0 {
				c.Config.Architecture = "transformer"
			}
		}
	}
	if len(elements) > 0 {
		c.Config.Precision = precision(elements)
	}
	if c.Config.Quantization == "" { // else several parameters may share a number
		c.Config.ParamSize = paramSize(elements)
	}
	c.Config.Format = formatOf(layers)
	c.Descriptor.Name = cmp.Or(opts.Name, c.Descriptor.Name)
	if !opts.CreatedAt.IsZero() {
		created := opts.createdAt()
		c.Descriptor.CreatedAt = &created
	}
	c.ModelFS.Type = "layers"
	for _, layer := range layers {
		c.ModelFS.DiffIDs = append(c.ModelFS.DiffIDs, layer.Digest)
	}
	return json.Marshal(c)
}

// modelName returns the last part of ORG/NAME, and "" for a path on the machine that made the file.
func modelName(nameOrPath string) string {
	if strings.HasPrefix(nameOrPath, "/") || strings.HasPrefix(nameOrPath, ".") || strings.Count(nameOrPath, "/") > 1 {
		return ""
	}
	return nameOrPath[strings.LastIndexByte(nameOrPath, '/')+1:]
}

// formatOf returns what most bytes of the weights are in.
func formatOf(layers []ocispec.Descriptor) string {
	sizes := make(map[string]int64)
	for _, layer := range layers {
		if !strings.HasPrefix(layer.MediaType, oci.LayerWeight+".") {
			continue
		}
		switch ext := path.Ext(layer.Annotations[oci.AnnotationFilepath]); ext {
		case ".safetensors", ".gguf", ".onnx":
			sizes[ext[1:]] += layer.Size
		case ".bin", ".pt", ".pth":
			sizes["pytorch"] += layer.Size
		}
	}
	if names := byAmount(sizes); len(names) > 0 {
		return names[0]
	}
	return ""
}

// precision lists the types of the numbers, most of them first, without those
// that less than one in a hundred has.
func precision(elements map[string]int64) string {
	var all int64
	for _, n := range elements {
		all += n
	}
	names := slices.DeleteFunc(byAmount(elements), func(dtype string) bool { return elements[dtype] < all/100 })
	for i, dtype := range names {
		if name, ok := map[string]string{
			"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
			"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
		}[dtype]; ok {
			names[i] = name
		} else if rest, ok := strings.CutPrefix(strings.ToLower(dtype), "f"); ok {
			names[i] = "float" + rest
		}
	}
	return strings.Join(names, ",")
}

// paramSize writes a number of parameters as ModelPack does, "72.7B", and "" when there are few.
func paramSize(elements map[string]int64) string {
	var n float64
	for _, count := range elements {
		n += float64(count)
	}
	for _, unit := range []struct {
		size float64
		name string
	}{{1e15, "Q"}, {1e12, "T"}, {1e9, "B"}, {1e6, "M"}, {1e3, "K"}} {
		if rounded := math.Round(n/unit.size*10) / 10; rounded >= 1 {
			return fmt.Sprintf("%.1f%s", rounded, unit.name)
		}
	}
	return ""
}

// byAmount returns the keys of m, the one with the largest amount first.
func byAmount(m map[string]int64) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b string) int { return cmp.Or(cmp.Compare(m[b], m[a]), cmp.Compare(a, b)) })
	return keys
}
