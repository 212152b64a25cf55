package model

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"

	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/image"
)

// A volume is one model and images of the same blobs, each with the index that
// image.Build makes of it, and the model unpacks to the files that it was made of.
func TestPackVolume(t *testing.T) {
	dir, files := modelDir(t)
	deep := strings.Repeat(strings.Repeat("d", 200)+"/", 4) + "deep.bin" // too long for the header of a tar
	files[deep] = "deep"
	writeFile(t, filepath.Join(dir, deep), files[deep])
	repo := openRegistry(t, nil)
	progress := &events{t: t}
	v, err := PackVolume(t.Context(), dir, repo, Options{Progress: progress.add})
	if err != nil {
		t.Fatal(err)
	}
	for name := range files {
		if progress.last[name].Step != Finished {
			t.Errorf("the last event of %s is %+v", name, progress.last[name])
		}
	}
	var size int64
	for _, text := range files {
		size += int64(len(text))
	}
	if v.Size != size || len(v.Files) != len(files) {
		t.Errorf("a volume of %d files, %d bytes; want %d, %d", len(v.Files), v.Size, len(files), size)
	}

	root, manifests, err := image.Manifests(t.Context(), repo, v.Root.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	if root.MediaType != ocispec.MediaTypeImageIndex || len(manifests) != len(volumeArchitectures)+1 {
		t.Fatalf("the tag names %+v with %d manifests", root, len(manifests))
	}
	listed := func(i int) (d []string) {
		layers, err := image.Layers(t.Context(), repo, manifests[i].Bytes)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range layers {
			if l.DiffID.String() != l.Blob.Digest.String() {
				t.Errorf("blob %s is another object, %s", l.Blob.Digest, l.DiffID)
			}
			d = append(d, fmt.Sprint(l.Blob.Digest, l.Blob.Size))
		}
		return d
	}
	last := len(manifests) - 1
	for i, m := range manifests {
		if got, want := fmt.Sprint(listed(i)), fmt.Sprint(listed(last)); got != want {
			t.Errorf("manifest %d has the layers\n%s\nwant\n%s", i, got, want)
		}
		built, err := image.Build(t.Context(), repo, m, image.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range built.Objects {
			if o.Unsupported != nil {
				t.Errorf("manifest %d, layer %s: %v", i, o.Blob.Digest, o.Unsupported)
			}
		}
		if i == last {
			if m.Descriptor.ArtifactType != oci.ArtifactTypeModel || m.Descriptor.Platform != nil || built.Index.Descriptor.Digest != v.Packed.Index.Descriptor.Digest {
				t.Errorf("the model is %+v with index %s, want %s", m.Descriptor, v.Packed.Index.Descriptor.Digest, built.Index.Descriptor.Digest)
			}
			continue
		}
		if platform := image.Platform(m.Descriptor); platform != "linux/"+volumeArchitectures[i] {
			t.Errorf("manifest %d is for %q", i, platform)
		}
		if got, want := v.Images[i].Index.Descriptor.Digest, built.Index.Descriptor.Digest; got != want {
			t.Errorf("manifest %d has index %s, want %s", i, got, want)
		}
	}

	out := t.TempDir()
	if err := Unpack(t.Context(), repo, v.Files, out, Options{}); err != nil {
		t.Fatal(err)
	}
	checkFiles(t, out, files)
	var m ocispec.Manifest
	if err := json.Unmarshal(v.Manifest, &m); err != nil {
		t.Fatal(err)
	}
	text, err := content.FetchAll(t.Context(), repo, m.Config)
	if err != nil || !strings.Contains(string(text), `"format":"safetensors"`) {
		t.Errorf("the model's config is %s, %v", text, err)
	}
}

// What is signed must be the same for ever, on any machine.
func TestPackVolumeGolden(t *testing.T) {
	const want = "sha256:826d3f2f5d009632f819a6b4160128af9ea6a782925be086f9d3e49af347bcdd"
	dir := writeFiles(t, map[string]string{"config.json": `{"model_type":"llama"}`, "sub/run.sh": "#!/bin/sh\n", "größe.bin": "x"})
	if err := os.Chmod(filepath.Join(dir, "sub/run.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	v, err := PackVolume(t.Context(), dir, newLayout(t), Options{Name: "golden", CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600))})
	if err != nil {
		t.Fatal(err)
	}
	if v.Root.Digest != want {
		t.Errorf("the image index is %s, want %s", v.Root.Digest, want)
	}
}

func TestPackVolumeRefuses(t *testing.T) {
	many := map[string]string{}
	for i := range image.MaxLayers + 1 {
		many[fmt.Sprintf("%d.bin", i)] = ""
	}
	dir := writeFiles(t, many)
	store := &counting{place: newLayout(t)}
	_, err := PackVolume(t.Context(), dir, store, Options{})
	checkError(t, err, "pack "+dir+" as an image volume: ", "it has 501 files, more than the 500 layers")
	if store.uploads > 0 {
		t.Errorf("%d files were sent", store.uploads)
	}

	dir = writeFiles(t, map[string]string{"config.json": "{}", "model.gguf": string(bytesOf(1, 8<<20))})
	changing := &changing{place: newLayout(t), change: func() {
		if err := os.Truncate(filepath.Join(dir, "model.gguf"), 7<<20); err != nil {
			t.Error(err)
		}
	}}
	_, err = PackVolume(t.Context(), dir, changing, Options{})
	checkError(t, err, "model.gguf", "changed while it was being packed")
	if changing.manifests > 0 {
		t.Error("a manifest was stored")
	}
}
