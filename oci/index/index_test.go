package index

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/memory"
	ocistore "oras.land/oras-go/v2/content/oci"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/oci/remote"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var update = flag.Bool("update", false, "write the golden files anew")

var subject = content.NewDescriptorFromBytes(ocispec.MediaTypeImageManifest, []byte("a manifest"))

// noise returns size bytes that depend on seed alone.
func noise(seed uint64, size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
	return b
}

// object returns the tree of size bytes that depend on seed alone.
func object(t testing.TB, seed uint64, size int) Entry {
	t.Helper()
	b := noise(seed, size)
	h := piece.NewHasher(int64(size))
	h.Write(b)
	tree, err := h.Sum()
	if err != nil {
		t.Fatal(err)
	}
	return Entry{Blob: content.NewDescriptorFromBytes("application/octet-stream", b), Tree: tree}
}

// metadata stand for the EROFS metadata of an object.
var metadata = []byte("EROFS metadata")

func metadataOf(b []byte) *Metadata {
	return &Metadata{Digest: sha256.Sum256(b), Size: int64(len(b))}
}

// entries are objects of no byte, of one piece, of several, and two that are
// layers of an image, one of them compressed, with the same metadata.
func entries(t testing.TB) []Entry {
	expanded, plain := object(t, 4, 2*piece.MinLength), object(t, 5, 512)
	expanded.Blob = content.NewDescriptorFromBytes(ocispec.MediaTypeImageLayerGzip, []byte("compressed"))
	expanded.EROFS, plain.EROFS = metadataOf(metadata), metadataOf(metadata)
	return []Entry{
		object(t, 1, 3*piece.MinLength+17),
		object(t, 2, 0),
		object(t, 3, 1000),
		expanded,
		plain,
	}
}

// pushParts stores what of entries an index refers to and does not hold.
func pushParts(t testing.TB, store content.Storage) {
	t.Helper()
	for mediaType, b := range map[string][]byte{
		oci.MediaTypeEROFS:          metadata,
		ocispec.MediaTypeImageLayer: noise(4, 2*piece.MinLength),
	} {
		if err := push(t.Context(), store, content.NewDescriptorFromBytes(mediaType, b), b); err != nil {
			t.Fatal(err)
		}
	}
}

func build(t testing.TB, entries ...Entry) *Artifact {
	t.Helper()
	a, err := Build(subject, entries)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// stores are the places that an index may be pushed to and loaded from.
func stores(t *testing.T, test func(t *testing.T, store content.Storage)) {
	t.Run("memory", func(t *testing.T) { test(t, memory.New()) })
	t.Run("layout", func(t *testing.T) {
		store, err := ocistore.New(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		test(t, store)
	})
	t.Run("registry", func(t *testing.T) {
		handler, err := registry.Open(t.TempDir(), registry.Options{Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		server := httptest.NewServer(handler)
		t.Cleanup(server.Close)
		transport := remote.NewTransport()
		t.Cleanup(transport.CloseIdleConnections)
		repo, err := remote.Open(strings.TrimPrefix(server.URL, "http://")+"/models/qwen", remote.Options{Transport: transport})
		if err != nil {
			t.Fatal(err)
		}
		test(t, repo)
	})
}

func TestRoundTrip(t *testing.T) {
	for name, entries := range map[string][]Entry{
		"several objects": entries(t),
		"no piece layer":  {object(t, 3, 1000)},
		"no object":       nil,
	} {
		t.Run(name, func(t *testing.T) {
			stores(t, func(t *testing.T, store content.Storage) {
				a := build(t, entries...)
				pushParts(t, store)
				for range 2 { // pushing again changes nothing
					if err := a.Push(t.Context(), store); err != nil {
						t.Fatal(err)
					}
				}
				manifest, err := content.FetchAll(t.Context(), store, a.Descriptor)
				if err != nil {
					t.Fatal(err)
				}
				x, err := Load(t.Context(), store, manifest)
				if err != nil {
					t.Fatal(err)
				}
				checkIndex(t, x, entries)
			})
		})
	}
}

func checkIndex(t *testing.T, x *Index, entries []Entry) {
	t.Helper()
	if !content.Equal(x.Subject(), subject) {
		t.Errorf("Subject() = %v, want %v", x.Subject(), subject)
	}
	if len(x.Objects()) != len(entries) {
		t.Fatalf("%d objects, want %d", len(x.Objects()), len(entries))
	}
	for i, o := range x.Objects() {
		want := entries[i]
		if o.Object != want.Tree.Object() || o.Blob.String() != want.Blob.Digest.String() {
			t.Errorf("object %d is %v of blob %s, want %v of %s", i, o.Object, o.Blob, want.Tree.Object(), want.Blob.Digest)
		}
		if (o.EROFS == nil) != (want.EROFS == nil) || o.EROFS != nil && *o.EROFS != *want.EROFS {
			t.Errorf("object %d has EROFS metadata %v, want %v", i, o.EROFS, want.EROFS)
		}
		tree, ok := x.Tree(o.Digest)
		if !ok || tree.Object() != o.Object || !bytes.Equal(tree.Layer(), want.Tree.Layer()) {
			t.Errorf("Tree(%s) is not the tree that was built", o.Digest)
		}
	}
	if _, ok := x.Tree(piece.Digest{1}); ok {
		t.Error("there is a tree of an object that is not listed")
	}
}

// The registry finds an index as a referrer of its subject.
func TestReferrer(t *testing.T) {
	stores(t, func(t *testing.T, store content.Storage) {
		lister, ok := store.(*remote.Repository)
		if !ok {
			t.Skip("lists no referrers")
		}
		a := build(t, entries(t)...)
		pushParts(t, store)
		if err := a.Push(t.Context(), store); err != nil {
			t.Fatal(err)
		}
		var found []ocispec.Descriptor
		err := lister.Referrers(t.Context(), subject, oci.ArtifactTypeIndex, func(page []ocispec.Descriptor) error {
			found = append(found, page...)
			return nil
		})
		if err != nil || len(found) != 1 || !content.Equal(found[0], a.Descriptor) {
			t.Fatalf("Referrers: %v, %v; want %v", found, err, a.Descriptor)
		}
	})
}

// The layers of the manifest are in the order that the package promises.
func TestLayers(t *testing.T) {
	list := entries(t)
	m, err := parseManifest(build(t, list...).Manifest)
	if err != nil {
		t.Fatal(err)
	}
	want := []ocispec.Descriptor{
		content.NewDescriptorFromBytes(oci.MediaTypePieceLayer, list[0].Tree.Layer()),
		content.NewDescriptorFromBytes(oci.MediaTypePieceLayer, list[3].Tree.Layer()),
		content.NewDescriptorFromBytes(oci.MediaTypeEROFS, metadata),
		content.NewDescriptorFromBytes(ocispec.MediaTypeImageLayer, noise(4, 2*piece.MinLength)),
	}
	if !slices.EqualFunc(m.Layers, want, content.Equal) {
		t.Errorf("the layers are %v, want %v", m.Layers, want)
	}
}

// A registry that keeps what a manifest names does not take an index whose objects nobody stored.
func TestPushWithoutObjects(t *testing.T) {
	stores(t, func(t *testing.T, store content.Storage) {
		if _, ok := store.(*remote.Repository); !ok {
			return
		}
		if err := build(t, entries(t)...).Push(t.Context(), store); err == nil || !strings.HasPrefix(err.Error(), "push index sha256:") {
			t.Errorf("Push: %v", err)
		}
	})
}

func TestListedOnce(t *testing.T) {
	one, two := object(t, 1, 3*piece.MinLength), object(t, 2, 10)
	a, again := build(t, one, two), build(t, one, one, two, one)
	if !bytes.Equal(a.Manifest, again.Manifest) {
		t.Error("an object that several files have changes the index")
	}
}

// The bytes of an index are part of what is signed: they must never change.
func TestGolden(t *testing.T) {
	a := build(t, entries(t)...)
	for name, got := range map[string][]byte{"manifest.json": a.Manifest, "config.json": a.blobs[a.descs[len(a.descs)-1].Digest]} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s has changed:\n%s\nwant:\n%s", name, got, want)
		}
	}
	if annotated := subject; true {
		annotated.Annotations = map[string]string{"org.opencontainers.image.created": "now"}
		b, err := Build(annotated, entries(t))
		if err != nil || !bytes.Equal(a.Manifest, b.Manifest) {
			t.Errorf("annotations of the subject's descriptor change the index (%v)", err)
		}
	}
}

// Every byte of every part is flipped in turn. A part that is fetched must be
// refused; the manifest itself, which the caller vouches for, may at most say
// something else about what no object depends on.
func TestFlippedBytes(t *testing.T) {
	entries := []Entry{object(t, 1, 2*piece.MinLength), object(t, 2, 100)}
	a := build(t, entries...)
	for _, desc := range a.descs {
		for i := range a.blobs[desc.Digest] {
			parts := flipped(a, desc.Digest, i)
			if _, err := Load(t.Context(), parts, a.Manifest); err == nil {
				t.Fatalf("byte %d of the %s is flipped, and nobody minds", i, desc.MediaType)
			}
		}
	}
	for i := range a.Manifest {
		for _, bit := range []byte{1, 1 << 5} {
			manifest := bytes.Clone(a.Manifest)
			manifest[i] ^= bit
			x, err := Load(t.Context(), parts(a.blobs), manifest)
			if err != nil {
				continue
			}
			x.subject = subject
			checkIndex(t, x, entries)
		}
	}
}

func flipped(a *Artifact, d digest.Digest, i int) parts {
	p := parts{}
	for k, v := range a.blobs {
		p[k] = v
	}
	p[d] = bytes.Clone(p[d])
	p[d][i] ^= 1
	return p
}

// parts is a store that may lie.
type parts map[digest.Digest][]byte

func (p parts) Fetch(_ context.Context, target ocispec.Descriptor) (io.ReadCloser, error) {
	b, ok := p[target.Digest]
	if !ok {
		return nil, errors.New("not found")
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// A manifest and a list that are whole, and signed for all that anyone knows, but make no index.
func TestLoadRefuses(t *testing.T) {
	zero := piece.Digest{}
	for name, tt := range map[string]struct {
		manifest func(*ocispec.Manifest)
		config   func(*config)
		text     func(string) string
		want     string
	}{
		"another artifact":      {manifest: func(m *ocispec.Manifest) { m.ArtifactType = oci.ArtifactTypeModel }, want: "its artifactType is"},
		"an image index":        {manifest: func(m *ocispec.Manifest) { m.MediaType = ocispec.MediaTypeImageIndex }, want: "not an image manifest"},
		"an old schema":         {manifest: func(m *ocispec.Manifest) { m.SchemaVersion = 1 }, want: "not an image manifest"},
		"another config":        {manifest: func(m *ocispec.Manifest) { m.Config.MediaType = ocispec.MediaTypeEmptyJSON }, want: "its config is"},
		"a config of 1 TiB":     {manifest: func(m *ocispec.Manifest) { m.Config.Size = 1 << 40 }, want: "more than"},
		"a config of -1 bytes":  {manifest: func(m *ocispec.Manifest) { m.Config.Size = -1 }, want: "more than"},
		"no subject":            {manifest: func(m *ocispec.Manifest) { m.Subject = nil }, want: "no subject"},
		"a subject of SHA-512":  {manifest: func(m *ocispec.Manifest) { m.Subject.Digest = digest.SHA512.FromString("x") }, want: "its subject"},
		"another order":         {manifest: func(m *ocispec.Manifest) { slices.Reverse(m.Layers) }, want: "other layers"},
		"no expanded object":    {manifest: func(m *ocispec.Manifest) { m.Layers = m.Layers[:3] }, want: "other layers"},
		"a piece layer too few": {manifest: func(m *ocispec.Manifest) { m.Layers = m.Layers[1:] }, want: "other layers"},
		"no layer at all":       {manifest: func(m *ocispec.Manifest) { m.Layers = nil }, want: "other layers"},
		"an old version":        {config: func(c *config) { c.Version = 1 }, want: "version 1"},
		"a new version":         {config: func(c *config) { c.Version = 3 }, want: "use a newer one"},
		"an object twice":       {config: func(c *config) { c.Objects = append(c.Objects, c.Objects[2]) }, want: "listed twice"},
		"a blob twice":          {config: func(c *config) { c.Objects[2].Blob = c.Objects[0].Blob }, want: "listed twice"},
		"a piece layer twice":   {config: func(c *config) { c.Objects[3].Layer = c.Objects[0].Layer }, want: "listed twice"},
		"no piece layer":        {config: func(c *config) { c.Objects[0].Layer = nil }, want: "does not go with"},
		"a needless layer":      {config: func(c *config) { c.Objects[2].Layer = &zero }, want: "does not go with"},
		"another root":          {config: func(c *config) { c.Objects[0].Root[0] ^= 1 }, want: "folds to root"},
		"another size":          {config: func(c *config) { c.Objects[0].Size += piece.MinLength }, want: "other layers"},
		"a size below 0":        {config: func(c *config) { c.Objects[0].Size = -1 }, want: "size -1"},
		"a size of 1 EiB":       {config: func(c *config) { c.Objects[0].Size = 1 << 60 }, want: "size"},
		"a piece length of 0":   {config: func(c *config) { c.Objects[0].PieceLength = 0 }, want: "piece length 0"},
		"too many piece hashes": {config: manyPieces, want: "its piece layers have more than"},
		"no metadata at all":    {config: func(c *config) { c.Objects[3].EROFS.Size = 0 }, want: "metadata of 0 bytes"},
		"metadata of 257 MiB":   {config: func(c *config) { c.Objects[3].EROFS.Size = 257 << 20 }, want: "metadata of 269484032 bytes"},
		"metadata of -1 bytes":  {config: func(c *config) { c.Objects[3].EROFS.Size = -1 }, want: "metadata of -1 bytes"},
		"metadata of two sizes": {config: func(c *config) { c.Objects[4].EROFS.Size++ }, want: "two sizes"},
		"other metadata":        {config: func(c *config) { c.Objects[4].EROFS.Digest[0] ^= 1 }, want: "other layers"},
		"too much metadata":     {config: muchMetadata, want: "its EROFS metadata have more than"},
		"null metadata":         {text: func(s string) string { return strings.Replace(s, `"erofs":{`, `"erofs":null,"x":{`, 1) }, want: "not written as"},
		"an added field":        {text: func(s string) string { return strings.Replace(s, `"version":2`, `"version":2,"x":2`, 1) }, want: "not written as"},
		"a field twice":         {text: func(s string) string { return strings.Replace(s, `"version":2`, `"version":2,"version":2`, 1) }, want: "not written as"},
		"white space":           {text: func(s string) string { return s + "\n" }, want: "not written as"},
		"null objects":          {text: func(string) string { return `{"version":2,"objects":null}` }, want: "not written as"},
		"upper case":            {text: func(s string) string { return strings.Replace(s, `"digest"`, `"Digest"`, 1) }, want: "not written as"},
		"no JSON":               {text: func(s string) string { return s[1:] }, want: "invalid character"},
		"an array":              {text: func(s string) string { return "[]" }, want: "cannot unmarshal"},
	} {
		t.Run(name, func(t *testing.T) {
			a := build(t, entries(t)...)
			var m ocispec.Manifest
			if err := json.Unmarshal(a.Manifest, &m); err != nil {
				t.Fatal(err)
			}
			text := a.blobs[m.Config.Digest]
			if tt.config != nil {
				c, err := parseConfig(text)
				if err != nil {
					t.Fatal(err)
				}
				tt.config(&c)
				if text, err = c.encode(); err != nil {
					t.Fatal(err)
				}
			}
			if tt.text != nil {
				text = []byte(tt.text(string(text)))
			}
			m.Config = content.NewDescriptorFromBytes(m.Config.MediaType, text)
			if tt.manifest != nil {
				tt.manifest(&m)
			}
			manifest, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			a.blobs[m.Config.Digest] = text
			if _, err = Load(t.Context(), parts(a.blobs), manifest); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("Load: %v, want an error with %q", err, tt.want)
			}
			if !strings.HasPrefix(err.Error(), "load index sha256:") {
				t.Errorf("error %q does not say what was being done", err)
			}
		})
	}
}

// manyPieces lists objects with more piece hashes in all than a reader would hold.
func manyPieces(c *config) {
	o := c.Objects[0]
	o.Size, o.PieceLength = 16<<30, piece.MinLength
	for i := range MaxLayers/(2<<20) + 1 {
		o.Digest = piece.Digest{byte(i), byte(i >> 8), 1}
		o.Blob, o.Layer = o.Digest, &piece.Digest{byte(i), byte(i >> 8), 2}
		c.Objects = append(c.Objects, o)
	}
}

// muchMetadata lists objects with more EROFS metadata in all than an index may have.
func muchMetadata(c *config) {
	o := c.Objects[2]
	for i := range MaxEROFSTotal/MaxEROFS + 1 {
		o.Digest = piece.Digest{byte(i), 1}
		o.Blob, o.EROFS = o.Digest, &Metadata{Digest: piece.Digest{byte(i), 2}, Size: MaxEROFS}
		c.Objects = append(c.Objects, o)
	}
}

func TestLoadMissingParts(t *testing.T) {
	a := build(t, entries(t)...)
	for d := range a.blobs {
		p := parts{}
		for k, v := range a.blobs {
			if k != d {
				p[k] = v
			}
		}
		if _, err := Load(t.Context(), p, a.Manifest); err == nil {
			t.Errorf("part %s is missing, and nobody minds", d)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	e := object(t, 1, 10)
	e.Blob.Digest = digest.SHA512.FromString("x")
	if _, err := Build(subject, []Entry{e}); err == nil {
		t.Error("a blob named by SHA-512 was listed")
	}
	large := object(t, 1, 10)
	large.EROFS = &Metadata{Digest: piece.Digest{1}, Size: MaxEROFS + 1}
	if _, err := Build(subject, []Entry{large}); err == nil || !strings.HasPrefix(err.Error(), "build index of "+subject.Digest.String()) {
		t.Errorf("EROFS metadata of %d bytes: %v", large.EROFS.Size, err)
	}
	one, two := object(t, 1, 10), object(t, 2, 10)
	two.Blob = one.Blob
	if _, err := Build(subject, []Entry{one, two}); err == nil {
		t.Error("two objects of one blob were listed")
	}
}

func FuzzParseConfig(f *testing.F) {
	a := build(f, entries(f)...)
	f.Add(a.blobs[a.descs[len(a.descs)-1].Digest])
	f.Add([]byte(`{"version":2,"objects":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseConfig(b)
		if err != nil {
			return
		}
		again, err := c.encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%q was read and would be written %q (%v)", b, again, err)
		}
		c.layers()
	})
}

func FuzzParseManifest(f *testing.F) {
	f.Add(build(f, entries(f)...).Manifest)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest(b)
		if err == nil && (m.Subject == nil || m.Config.Size > MaxConfig) {
			t.Fatalf("%q was accepted", b)
		}
	})
}

// BenchmarkIndexBuild hashes 256 MiB as a push does and makes the index of them.
func BenchmarkIndexBuild(b *testing.B) {
	const size, chunk = 256 << 20, 1 << 20
	data := make([]byte, chunk)
	rand.NewChaCha8([32]byte{}).Read(data)
	b.SetBytes(size)
	for b.Loop() {
		h := piece.NewHasher(size)
		for range size / chunk {
			h.Write(data)
		}
		tree, err := h.Sum()
		if err != nil {
			b.Fatal(err)
		}
		build(b, Entry{Blob: subject, Tree: tree})
	}
}

func BenchmarkLoad(b *testing.B) {
	var list []Entry
	for i := range uint64(37) {
		list = append(list, object(b, i, 16*piece.MinLength))
	}
	a := build(b, list...)
	for b.Loop() {
		if _, err := Load(b.Context(), parts(a.blobs), a.Manifest); err != nil {
			b.Fatal(err)
		}
	}
}
