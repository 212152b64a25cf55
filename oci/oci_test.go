package oci

import "testing"

func TestSplitModelLayer(t *testing.T) {
	for _, kind := range []string{LayerWeight, LayerWeightConfig, LayerDoc, LayerCode, LayerDataset} {
		for _, packing := range []string{PackingRaw, PackingTar, PackingTarGzip, PackingTarZstd} {
			if k, p, ok := SplitModelLayer(kind + packing); !ok || k != kind || p != packing {
				t.Errorf("SplitModelLayer(%q) = %q, %q, %v", kind+packing, k, p, ok)
			}
		}
	}
	if k, p, ok := SplitModelLayer("application/vnd.cnai.model.weight.config.v1.tar"); !ok || k != LayerWeightConfig || p != PackingTar {
		t.Errorf("the older name is split into %q, %q, %v", k, p, ok)
	}
	for _, mediaType := range []string{"", PackingRaw, LayerDoc, LayerDoc + ".zip", LayerDoc + PackingRaw + "x", "application/vnd.oci.image.layer.v1.tar"} {
		if k, p, ok := SplitModelLayer(mediaType); ok {
			t.Errorf("SplitModelLayer(%q) = %q, %q", mediaType, k, p)
		}
	}
}
