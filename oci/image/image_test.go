package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/index"
)

// dockerImage is an image as Docker pushes it, with a history that names more than its layers.
func dockerImage(t testing.TB, store content.Pusher) ([]byte, []Layer) {
	a, b := gzipPart(t, archive(t, map[string][]byte{"a": []byte("a")})), tarPart(archive(t, nil))
	blobs := []ocispec.Descriptor{
		content.NewDescriptorFromBytes("application/vnd.docker.image.rootfs.diff.tar.gzip", a.blob),
		content.NewDescriptorFromBytes("application/vnd.docker.image.rootfs.diff.tar", b.blob),
	}
	config := fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%q,%q]},`+
		`"history":[{"created_by":"ADD"},{"created_by":"ENV","empty_layer":true},{"created_by":"RUN"},{"empty_layer":true}]}`,
		digest.FromBytes(a.object), digest.FromBytes(b.object))
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: oci.MediaTypeDockerManifest,
		Config: pushBytes(t, store, dockerConfig, config), Layers: blobs,
	}
	layers := []Layer{
		{Blob: blobs[0], DiffID: parse(t, digest.FromBytes(a.object)), Tar: true},
		{Blob: blobs[1], DiffID: parse(t, digest.FromBytes(b.object)), Tar: true},
	}
	return marshal(t, m), layers
}

func parse(t testing.TB, d digest.Digest) piece.Digest {
	t.Helper()
	p, err := piece.ParseDigest(d.String())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func sameLayers(a, b []Layer) bool {
	return slices.EqualFunc(a, b, func(a, b Layer) bool {
		return content.Equal(a.Blob, b.Blob) && a.DiffID == b.DiffID && a.Tar == b.Tar
	})
}

func TestLayersOfDocker(t *testing.T) {
	store := memory.New()
	manifest, want := dockerImage(t, store)
	if !Is(manifest) || Is([]byte(strings.ReplaceAll(string(manifest), dockerConfig, oci.MediaTypeModelConfig))) || Is(manifest[1:]) {
		t.Error("Is takes one for the other")
	}
	if got, err := Layers(t.Context(), store, manifest); err != nil || !sameLayers(got, want) {
		t.Errorf("Layers: %v, %v; want %v", got, err, want)
	}
}

func TestLayersRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		manifest    func(*ocispec.Manifest)
		config      string // in place of the config
		text        string // in place of the manifest
		want        string
		unsupported bool
	}{
		"no JSON":               {text: "{", want: "unexpected end of JSON"},
		"an array":              {text: "[]", want: "cannot unmarshal"},
		"a large one":           {text: strings.Repeat(" ", MaxManifest+1), want: "more than"},
		"an image index":        {manifest: func(m *ocispec.Manifest) { m.MediaType = ocispec.MediaTypeImageIndex }, want: "not an image manifest"},
		"two documents in one":  {text: `{"schemaVersion":2,"manifests":[],"config":{},"layers":[]}`, want: "not an image manifest"},
		"Docker's first schema": {manifest: func(m *ocispec.Manifest) { m.SchemaVersion = 1 }, want: "schema version 2"},
		"another artifact": {manifest: func(m *ocispec.Manifest) { m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json" },
			want: "not one of an image", unsupported: true},
		"an artifact of nothing": {manifest: func(m *ocispec.Manifest) { m.Config.MediaType, m.Layers = ocispec.MediaTypeEmptyJSON, nil },
			want: "neither an image nor a model", unsupported: true},
		"a config of 1 TiB":     {manifest: func(m *ocispec.Manifest) { m.Config.Size = 1 << 40 }, want: "more than"},
		"a config of -1 bytes":  {manifest: func(m *ocispec.Manifest) { m.Config.Size = -1 }, want: "more than"},
		"a config that is gone": {manifest: func(m *ocispec.Manifest) { m.Config.Digest = digest.FromString("x") }, want: "its config: "},
		"a layer too many":      {manifest: func(m *ocispec.Manifest) { m.Layers = append(m.Layers, m.Layers[0]) }, want: "2 layers, but its config names 1"},
		"no layer":              {manifest: func(m *ocispec.Manifest) { m.Layers = nil }, want: "0 layers, but its config names 1"},
		"501 layers":            {manifest: func(m *ocispec.Manifest) { m.Layers = slices.Repeat(m.Layers, MaxLayers+1) }, want: "501 layers, more than"},
		"a foreign layer": {manifest: func(m *ocispec.Manifest) {
			m.Layers[0].MediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
		},
			want: "layer 0, sha256:", unsupported: true},
		"a layer not to be given away": {manifest: func(m *ocispec.Manifest) {
			m.Layers[0].MediaType = "application/vnd.oci.image.layer.nondistributable.v1.tar"
		}, want: "not distributed with the image", unsupported: true},
		"an encrypted layer": {manifest: func(m *ocispec.Manifest) { m.Layers[0].MediaType += "+encrypted" }, want: "+encrypted", unsupported: true},
		"a layer of SHA-512": {manifest: func(m *ocispec.Manifest) { m.Layers[0].Digest = digest.SHA512.FromString("x") }, want: "layer 0, sha512:"},
		"a layer of -1 bytes": {manifest: func(m *ocispec.Manifest) { m.Layers[0].Size = -1 },
			want: "-1 bytes"},
		"a model's archive": {manifest: func(m *ocispec.Manifest) {
			m.Config.MediaType, m.Layers[0].MediaType = oci.MediaTypeModelConfig, oci.LayerWeight+oci.PackingTarGzip
		}, want: "one file a layer", unsupported: true},
		"a config of SHA-512": {config: `{"rootfs":{"type":"layers","diff_ids":["sha512:00"]}}`, want: "its config: parse digest"},
		"a config of layers":  {config: `{"rootfs":{"type":"files","diff_ids":[]}}`, want: `type "files"`},
		"an empty config":     {config: `{}`, want: `type ""`},
		"a config of text":    {config: `hello`, want: "its config: invalid character"},
	} {
		t.Run(name, func(t *testing.T) {
			store := memory.New()
			var m ocispec.Manifest
			if err := json.Unmarshal(pushImage(t, store, tarPart(archive(t, nil))).Bytes, &m); err != nil {
				t.Fatal(err)
			}
			if tt.config != "" {
				m.Config = pushBytes(t, store, ocispec.MediaTypeImageConfig, []byte(tt.config))
			}
			if tt.manifest != nil {
				tt.manifest(&m)
			}
			text := []byte(tt.text)
			if tt.text == "" {
				text = marshal(t, m)
			}
			_, err := Layers(t.Context(), store, text)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "read image manifest: ") {
				t.Fatalf("Layers: %v, want an error with %q", err, tt.want)
			}
			if errors.Is(err, errdef.ErrUnsupported) != tt.unsupported {
				t.Errorf("the class of %v is wrong", err)
			}
		})
	}
}

// imageIndex stores an image index of entries and tags it v1.
func imageIndex(t testing.TB, store *memory.Store, mediaType string, entries ...ocispec.Descriptor) ocispec.Descriptor {
	t.Helper()
	desc := pushBytes(t, store, mediaType, marshal(t, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: mediaType, Manifests: entries,
	}))
	if err := store.Tag(t.Context(), desc, "v1"); err != nil {
		t.Fatal(err)
	}
	return desc
}

func TestManifests(t *testing.T) {
	for _, mediaType := range []string{ocispec.MediaTypeImageIndex, oci.MediaTypeDockerList} {
		store := memory.New()
		one := pushImage(t, store, tarPart(archive(t, nil)))
		two := pushImage(t, store, tarPart(archive(t, map[string][]byte{"two": nil})))
		other := pushImage(t, store, tarPart(archive(t, map[string][]byte{"three": nil})))
		amd, arm, attestation, soci := one.Descriptor, two.Descriptor, other.Descriptor, other.Descriptor
		amd.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
		arm.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
		attestation.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
		soci.ArtifactType = "application/vnd.amazon.soci.index.v2+json"
		want := imageIndex(t, store, mediaType, amd, attestation, arm, soci, amd)

		root, manifests, err := Manifests(t.Context(), store, "v1")
		if err != nil {
			t.Fatal(err)
		}
		if !content.Equal(root, want) || len(manifests) != 2 || !bytes.Equal(manifests[0].Bytes, one.Bytes) || !bytes.Equal(manifests[1].Bytes, two.Bytes) {
			t.Fatalf("Manifests: %v, %v", root, manifests)
		}
		if a, b := Platform(manifests[0].Descriptor), Platform(manifests[1].Descriptor); a != "linux/amd64" || b != "linux/arm64/v8" {
			t.Errorf("platforms %q, %q", a, b)
		}
		if err := store.Tag(t.Context(), one.Descriptor, "one"); err != nil {
			t.Fatal(err)
		}
		images := []ocispec.Descriptor{one.Descriptor, amd, arm}
		if got, err := ForPlatform(images, "linux", "arm64"); err != nil || !content.Equal(got, arm) {
			t.Errorf("ForPlatform: %v, %v", got, err)
		}
		if got, err := ForPlatform(images, "linux", "riscv64"); !errors.Is(err, errdef.ErrNotFound) ||
			!strings.Contains(err.Error(), "no image for linux/riscv64, only for unknown, linux/amd64, linux/arm64/v8") {
			t.Errorf("ForPlatform: %v, %v", got, err)
		}
		root, manifests, err = Manifests(t.Context(), store, "one")
		if err != nil || root.Digest != one.Descriptor.Digest || len(manifests) != 1 || !bytes.Equal(manifests[0].Bytes, one.Bytes) {
			t.Errorf("Manifests: %v, %v, %v", root, manifests, err)
		}
	}
}

func TestImagesRefuses(t *testing.T) {
	image := content.NewDescriptorFromBytes(ocispec.MediaTypeImageManifest, []byte("{}"))
	nested, sha512 := image, image
	nested.MediaType, sha512.Digest = ocispec.MediaTypeImageIndex, digest.SHA512.FromString("x")
	list := func(entries ...ocispec.Descriptor) string {
		return string(marshal(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: entries}))
	}
	for name, tt := range map[string]struct{ text, want string }{
		"no JSON":              {"{", "unexpected end of JSON"},
		"a manifest":           {`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `"}`, "not an image index"},
		"two documents in one": {`{"schemaVersion":2,"manifests":[],"layers":[]}`, "not an image index"},
		"an old schema":        {`{"schemaVersion":1,"manifests":[]}`, "schema version 2"},
		"a large one":          {strings.Repeat(" ", MaxManifest+1), "more than"},
		"nothing":              {list(), "lists no image"},
		"an index in an index": {list(image, nested), "manifest 1, " + image.Digest.String()},
		"a digest of SHA-512":  {list(sha512), "manifest 0: parse digest"},
		"257 entries":          {list(slices.Repeat([]ocispec.Descriptor{image}, MaxManifests+1)...), "257 manifests"},
	} {
		if _, err := Images([]byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "read image index: ") {
			t.Errorf("%s: Images: %v, want an error with %q", name, err, tt.want)
		}
	}
	store := memory.New()
	desc := imageIndex(t, store, ocispec.MediaTypeImageIndex, image) // which lists what is not there
	if _, _, err := Manifests(t.Context(), store, "v1"); !errors.Is(err, errdef.ErrNotFound) || !strings.HasPrefix(err.Error(), "read the manifests of v1: ") {
		t.Errorf("Manifests of %v: %v", desc, err)
	}
	if _, _, err := Manifests(t.Context(), store, "v2"); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("Manifests of nothing: %v", err)
	}
}

func TestPlatform(t *testing.T) {
	for want, p := range map[string]*ocispec.Platform{
		"":                           nil,
		"linux/riscv64":              {OS: "linux", Architecture: "riscv64"},
		"windows/amd64:10.0.17763.1": {OS: "windows", Architecture: "amd64", OSVersion: "10.0.17763.1"},
	} {
		if got := Platform(ocispec.Descriptor{Platform: p}); got != want {
			t.Errorf("Platform(%v) = %q, want %q", p, got, want)
		}
	}
}

// An index that does not list every layer proves nothing of the image.
func TestFindMissing(t *testing.T) {
	store := memory.New()
	a, err := index.Build(content.NewDescriptorFromBytes(ocispec.MediaTypeImageManifest, nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Push(t.Context(), store); err != nil {
		t.Fatal(err)
	}
	x, err := index.Load(t.Context(), store, a.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	_, layers := dockerImage(t, store)
	if _, err := Find(layers, x); err == nil || !strings.Contains(err.Error(), "object "+layers[0].DiffID.String()+" of layer 0") {
		t.Errorf("Find: %v", err)
	}
}

func FuzzLayers(f *testing.F) {
	store := memory.New()
	manifest, _ := dockerImage(f, store)
	f.Add(manifest, []byte(`{"rootfs":{"type":"layers","diff_ids":[]}}`))
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"x"},"layers":[{"mediaType":"application/vnd.cncf.model.weight.v1.raw"}]}`), []byte(nil))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		m, err := parseManifest(manifest)
		if err != nil {
			return
		}
		for _, read := range []func() ([]Layer, error){
			func() ([]Layer, error) { return imageLayers(m, config) },
			func() ([]Layer, error) { return modelLayers(m) },
		} {
			layers, err := read()
			if err == nil && (len(layers) != len(m.Layers) || len(layers) > MaxFiles) {
				t.Fatalf("%d layers of %d", len(layers), len(m.Layers))
			}
			for _, l := range layers {
				if l.Blob.Size < 0 || foreign(l.Blob.MediaType) || !l.Tar && l.DiffID.String() != l.Blob.Digest.String() {
					t.Fatalf("%+v was accepted", l)
				}
			}
		}
	})
}

func FuzzImages(f *testing.F) {
	image := content.NewDescriptorFromBytes(ocispec.MediaTypeImageManifest, []byte("{}"))
	image.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
	f.Add([]byte(marshal(f, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{image}})))
	f.Fuzz(func(t *testing.T, b []byte) {
		images, err := Images(b)
		if err == nil && (len(images) == 0 || len(images) > MaxManifests) {
			t.Fatalf("%q has %d images", b, len(images))
		}
		for _, desc := range images {
			if Platform(desc); IsIndex(desc.MediaType) || desc.Digest.Validate() != nil {
				t.Fatalf("%v was accepted", desc)
			}
		}
	})
}

// BenchmarkBuild indexes an image of one gzip layer whose object has 300 MB, of files that compress by half.
func BenchmarkBuild(b *testing.B) {
	files := map[string][]byte{}
	for i := range 300 {
		random := noise(byte(i), 500_000)
		data := append(random, bytes.Repeat(random[:1000], 500)...)
		files[fmt.Sprintf("usr/lib/%03d", i)] = data
	}
	repo := open(b, nil)
	p := gzipPart(b, archive(b, files))
	m := pushImage(b, repo, p)
	b.SetBytes(int64(len(p.object)))
	b.ReportMetric(float64(len(p.object))/float64(len(p.blob)), "ratio")
	first := true
	for b.Loop() {
		if !first { // else the object is there already
			b.StopTimer()
			repo = open(b, nil)
			m = pushImage(b, repo, p)
			b.StartTimer()
		}
		first = false
		if _, err := Build(b.Context(), repo, m, Options{Dir: b.TempDir()}); err != nil {
			b.Fatal(err)
		}
	}
}
