package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/memory"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/index"
	"github.com/spate-project/spate/oci/layer"
	"github.com/spate-project/spate/oci/remote"
)

// elsewhere is a hard link to a file of another layer, which one layer alone cannot show.
var elsewhere = &tar.Header{Name: "b", Linkname: "of/another/layer", Typeflag: tar.TypeLink, Mode: 0o644}

// manyParts are layers of every kind, some of them there twice.
func manyParts(t testing.TB) []part {
	empty := gzipPart(t, archive(t, nil))
	return []part{
		gzipPart(t, archive(t, map[string][]byte{"usr/bin/a": noise(1, 700_000), "etc/a": []byte("a")})),
		empty,
		zstdPart(t, archive(t, map[string][]byte{"usr/bin/b": noise(2, 900_000)})),
		empty,
		// Other contents, the same metadata.
		tarPart(archive(t, map[string][]byte{"c": noise(3, 300_000)})),
		tarPart(archive(t, map[string][]byte{"c": noise(4, 300_000)})),
		zstdPart(t, archive(t, map[string][]byte{"a": noise(5, 1000)}, elsewhere)),
	}
}

func TestBuild(t *testing.T) {
	var uploads atomic.Int64
	repo := open(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost || r.Method == http.MethodPut {
				uploads.Add(1)
			}
			next.ServeHTTP(w, r)
		})
	})
	parts := manyParts(t)
	m := pushImage(t, repo, parts...)
	dir := t.TempDir()
	built, err := Build(t.Context(), repo, m, Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if found := referrers(t, repo, m.Descriptor); len(found) != 1 || found[0].Digest != built.Index.Descriptor.Digest {
		t.Fatalf("its indexes are %v, want %v", found, built.Index.Descriptor)
	}
	checkBuilt(t, repo, m, parts, built)
	for i, o := range built.Objects {
		if last := i == len(parts)-1; (o.Unsupported != nil) != last {
			t.Errorf("layer %d: %v", i, o.Unsupported)
		}
	}

	// Nothing is sent again.
	uploads.Store(0)
	again, err := Build(t.Context(), repo, m, Options{Dir: dir, Concurrency: 1})
	if err != nil || !bytes.Equal(again.Index.Manifest, built.Index.Manifest) {
		t.Fatalf("built again: %v, %v; want %v", again, err, built.Index.Descriptor)
	}
	if n := uploads.Load(); n != 0 {
		t.Errorf("%d uploads where everything was there", n)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

// checkBuilt reads what was built as a node does.
func checkBuilt(t *testing.T, repo *remote.Repository, m Manifest, parts []part, built *Built) {
	t.Helper()
	x, err := index.Load(t.Context(), repo, built.Index.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	if x.Subject().Digest != m.Descriptor.Digest {
		t.Errorf("the index is of %v, want %v", x.Subject(), m.Descriptor)
	}
	layers, err := Layers(t.Context(), repo, m.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	found, err := Find(layers, x)
	if err != nil || len(found) != len(parts) || len(built.Objects) != len(parts) {
		t.Fatalf("Find: %d layers, %v; %d were built; want %d", len(found), err, len(built.Objects), len(parts))
	}
	for i, p := range parts {
		f, o := found[i], built.Objects[i]
		if f.DiffID.String() != digest.FromBytes(p.object).String() || f.Tree.Object().Digest != f.DiffID || o.DiffID != f.DiffID || o.Size != int64(len(p.object)) {
			t.Fatalf("layer %d is %v of tree %v, built %v", i, f.DiffID, f.Tree.Object(), o)
		}
		r, err := repo.Range(t.Context(), f.Object, 1, f.Object.Size-1)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		if err != nil || !bytes.Equal(got, p.object[1:]) {
			t.Errorf("layer %d: the object cannot be read from the middle: %d bytes, %v", i, len(got), err)
		}
		checkMetadata(t, repo, p.object, f.EROFS, o)
	}
}

func checkMetadata(t *testing.T, repo *remote.Repository, object []byte, desc *ocispec.Descriptor, o Object) {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	switch err := layer.Metadata(f, bytes.NewReader(object)); {
	case err != nil:
		if desc != nil || o.EROFS != nil || !errors.Is(o.Unsupported, errors.ErrUnsupported) {
			t.Errorf("layer %s has metadata %v, reason %v; want %v", o.Blob.Digest, desc, o.Unsupported, err)
		}
	case desc == nil || o.EROFS == nil || o.Unsupported != nil:
		t.Errorf("layer %s has no metadata: %v", o.Blob.Digest, o.Unsupported)
	default:
		want, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		got, err := content.FetchAll(t.Context(), repo, *desc)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("layer %s: %d bytes of metadata, %v, want %d", o.Blob.Digest, len(got), err, len(want))
		}
	}
}

// A store that is no registry will do.
func TestBuildInMemory(t *testing.T) {
	store := memory.New()
	m := pushImage(t, store, manyParts(t)...)
	if _, err := Build(t.Context(), store, m, Options{Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
}

// The files of a model are objects as they are; none is a tree.
func TestBuildModel(t *testing.T) {
	repo := open(t, nil)
	files := [][]byte{noise(1, 600_000), {}, []byte("{}")}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: oci.ArtifactTypeModel,
		Config: pushBytes(t, repo, oci.MediaTypeModelConfig, []byte(`{"modelfs":{"type":"layers"}}`)),
	}
	var parts []part
	for _, b := range files {
		m.Layers = append(m.Layers, pushBytes(t, repo, oci.LayerWeight+oci.PackingRaw, b))
		parts = append(parts, part{object: b})
	}
	text := marshal(t, m)
	manifest := Manifest{Descriptor: pushBytes(t, repo, m.MediaType, text), Bytes: text}
	built, err := Build(t.Context(), repo, manifest, Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range built.Objects {
		if o.EROFS != nil || o.Unsupported != nil || o.Tar || o.Size != int64(len(parts[i].object)) {
			t.Errorf("file %d: %+v", i, o)
		}
	}
	if _, err := index.Load(t.Context(), repo, built.Index.Manifest); err != nil {
		t.Fatal(err)
	}
}

// A layer that is not what the manifest names, in each way of reading it, is
// refused by who sent it, and no index comes of it.
func TestTamperedLayer(t *testing.T) {
	object := archive(t, map[string][]byte{"a": noise(1, 400_000)})
	for name, p := range map[string]part{"gzip": gzipPart(t, object), "zstd": zstdPart(t, object), "plain": tarPart(object)} {
		for _, at := range []int{0, len(p.blob) / 2, len(p.blob) - 1} {
			var active atomic.Bool
			blob := digest.FromBytes(p.blob)
			repo := open(t, func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if active.Load() && r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, blob.String()) {
						w = &flipWriter{ResponseWriter: w, at: at}
					}
					next.ServeHTTP(w, r)
				})
			})
			m := pushImage(t, repo, p)
			active.Store(true)
			dir := t.TempDir()
			_, err := Build(t.Context(), repo, m, Options{Dir: dir})
			var wrong *piece.WrongBytesError
			if !errors.As(err, &wrong) || wrong.Object.String() != blob.String() || wrong.From == "" {
				t.Errorf("%s, byte %d: Build: %v, want wrong bytes of %s", name, at, err, blob)
			}
			if err != nil && !strings.HasPrefix(err.Error(), "index "+m.Descriptor.Digest.String()+": layer 0, "+blob.String()) {
				t.Errorf("error %q does not say what was being done to what", err)
			}
			checkNothing(t, repo, m, dir)
		}
	}
}

// A flipWriter changes one bit of what it writes.
type flipWriter struct {
	http.ResponseWriter
	at int
}

func (w *flipWriter) Write(p []byte) (int, error) {
	if w.at >= 0 && w.at < len(p) {
		p = bytes.Clone(p)
		p[w.at] ^= 1
	}
	w.at -= len(p)
	return w.ResponseWriter.Write(p)
}

// checkNothing fails when m has an index or dir a file.
func checkNothing(t *testing.T, repo *remote.Repository, m Manifest, dir string) {
	t.Helper()
	if found := referrers(t, repo, m.Descriptor); len(found) != 0 {
		t.Errorf("there is an index all the same: %v", found)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

func TestBuildRefuses(t *testing.T) {
	object := archive(t, map[string][]byte{"a": noise(1, 400_000)})
	other := digest.FromString("another object")
	wrong := func(p part) part { p.diffID = other; return p }
	for name, tt := range map[string]struct {
		part part
		want string
	}{
		"the wrong diffID of a gzip layer":  {wrong(gzipPart(t, object)), "the image's config says " + other.String()},
		"the wrong diffID of a zstd layer":  {wrong(zstdPart(t, object)), "the image's config says " + other.String()},
		"the wrong diffID of a plain layer": {wrong(tarPart(object)), "the image's config says " + other.String()},
		"a layer that is no gzip":           {part{mediaType: gzipType, object: object, blob: object}, "gzip"},
		"a layer that is no zstd":           {part{mediaType: zstdType, object: object, blob: object}, "magic number"},
		"a gzip layer that ends early":      {part{mediaType: gzipType, object: object, blob: gzipped(t, object)[:1000]}, "unexpected EOF"},
		"bytes behind a gzip layer":         {part{mediaType: gzipType, object: object, blob: append(gzipped(t, object), "junk junk junk"...)}, "gzip"},
		"an object that is no tar":          {gzipPart(t, noise(9, 5000)), "tar"},
		"a tar that ends early":             {tarPart(object[:100_000]), "EOF"},
		"a layer of another compression":    {part{mediaType: tarType + "+lz4", object: object, blob: object}, `media type "application/vnd.oci.image.layer.v1.tar+lz4"`},
	} {
		t.Run(name, func(t *testing.T) {
			repo := open(t, nil)
			m := pushImage(t, repo, gzipPart(t, archive(t, nil)), tt.part)
			dir := t.TempDir()
			_, err := Build(t.Context(), repo, m, Options{Dir: dir})
			blob := digest.FromBytes(tt.part.blob).String()
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "layer 1, "+blob) ||
				!strings.HasPrefix(err.Error(), "index "+m.Descriptor.Digest.String()) {
				t.Fatalf("Build: %v, want an error of layer 1, %s, with %q", err, blob, tt.want)
			}
			checkNothing(t, repo, m, dir)
		})
	}
	// The publisher's mistake is of the class of wrong bytes, too.
	repo := open(t, nil)
	_, err := Build(t.Context(), repo, pushImage(t, repo, wrong(tarPart(object))), Options{Dir: t.TempDir()})
	if !errors.As(err, new(*piece.WrongBytesError)) {
		t.Errorf("Build: %v", err)
	}
	if _, err := Build(t.Context(), repo, pushImage(t, repo, tarPart(archive(t, map[string][]byte{"x": nil}))), Options{Dir: "/nowhere"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Build without a directory: %v", err)
	}
}

func TestBuildCancelled(t *testing.T) {
	repo := open(t, nil)
	m := pushImage(t, repo, manyParts(t)...)
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	_, err := Build(ctx, repo, m, Options{Dir: dir, Concurrency: 1, Progress: func(e Event) {
		if e.Step == Advanced {
			if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
				t.Errorf("%v has a name while it is in use, %v", left, err) // and would stay after a kill -9
			}
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("Build: %v", err)
	}
	checkNothing(t, repo, m, dir)
}

// The events are as Event says.
func TestProgress(t *testing.T) {
	repo := open(t, nil)
	parts := manyParts(t)
	m := pushImage(t, repo, parts...)
	var (
		mu      sync.Mutex
		planned Event
		last    = map[string]Event{}
	)
	_, err := Build(t.Context(), repo, m, Options{Progress: func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		before, begun := last[e.Layer]
		switch {
		case e.Step == Planned && len(last) == 0:
			planned = e
			return
		case planned.Layers == 0, (e.Step == Started) == begun, before.Step == Finished, e.Done < before.Done, e.Done > e.Size:
			t.Errorf("%+v after %+v", e, before)
		}
		last[e.Layer] = e
	}})
	if err != nil {
		t.Fatal(err)
	}
	sizes := map[string]int64{}
	for _, p := range parts {
		sizes[digest.FromBytes(p.blob).String()] = int64(len(p.blob))
	}
	var all int64
	for size := range maps.Values(sizes) {
		all += size
	}
	if planned.Layers != len(sizes) || planned.Size != all || len(last) != len(sizes) {
		t.Errorf("planned %+v, %d layers ended; want %d of %d bytes", planned, len(last), len(sizes), all)
	}
	for blob, e := range last {
		if e.Step != Finished || e.Done != sizes[blob] || e.Size != sizes[blob] {
			t.Errorf("the last event of %s is %+v", blob, e)
		}
	}
}

// TestBuildStack: a layer that overlayfs would not show as an unpack does has to
// be unpacked, and so do all above it.
func TestBuildStack(t *testing.T) {
	repo := open(t, nil)
	m := pushImage(t, repo,
		tarPart(archive(t, nil, &tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777})),
		tarPart(archive(t, map[string][]byte{"etc/a": []byte("a")})),
		tarPart(archive(t, map[string][]byte{"tmp/x": []byte("its directory has no entry")})),
		tarPart(archive(t, map[string][]byte{"etc/b": []byte("b")})))
	built, err := Build(t.Context(), repo, m, Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range built.Objects {
		if unpacked := i >= 2; unpacked != errors.Is(o.Unsupported, errors.ErrUnsupported) || unpacked != (o.EROFS == nil) {
			t.Errorf("layer %d has metadata %v, and %v", i, o.EROFS, o.Unsupported)
		}
	}
}
