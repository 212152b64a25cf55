package format

import (
	"testing"

	"github.com/spate-project/spate/oci"
)

func TestKindOf(t *testing.T) {
	for name, want := range map[string]string{
		"config.json": oci.LayerWeightConfig, "tokenizer.model": oci.LayerWeightConfig, "vocab.txt": oci.LayerWeightConfig,
		"chat_template.jinja": oci.LayerWeightConfig, "model.SAFETENSORS": oci.LayerWeight, "a/b.gguf": oci.LayerWeight,
		"pytorch_model.bin": oci.LayerWeight, "LICENSE": oci.LayerDoc, "README": oci.LayerDoc, "notes.md": oci.LayerDoc,
		"modeling.py": oci.LayerCode, "what": oci.LayerCode, "train.parquet": oci.LayerDataset,
	} {
		if got := KindOf(name, 10); got != want {
			t.Errorf("KindOf(%q) = %q, want %q", name, got, want)
		}
	}
	if got := KindOf("what", largeFile+1); got != oci.LayerWeight {
		t.Errorf("a large file of unknown kind is %q", got)
	}
}

func TestCompareNatural(t *testing.T) {
	ordered := []string{"", "a", "a1", "a2", "a09", "a10", "a10b", "a11", "model-1-of-10", "model-2-of-10", "model-10-of-10", "z"}
	for i, a := range ordered {
		for j, b := range ordered {
			if got := compareNatural(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("compareNatural(%q, %q) = %d", a, b, got)
			}
		}
	}
	if compareNatural("a01", "a1") == 0 {
		t.Error("two names are equal")
	}
}
