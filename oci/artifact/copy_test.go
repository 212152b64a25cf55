package artifact

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/memory"

	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/oci/remote"
)

// newRegistry runs a registry and returns its address.
func newRegistry(t *testing.T, opts registry.Options) string {
	t.Helper()
	r, err := registry.Open(t.TempDir(), opts)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(r)
	t.Cleanup(func() {
		s.Close()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return strings.TrimPrefix(s.URL, "http://")
}

func open(t *testing.T, name string) *remote.Repository {
	t.Helper()
	transport := remote.NewTransport()
	t.Cleanup(transport.CloseIdleConnections)
	repo, err := remote.Open(name, remote.Options{Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// An example is an artifact with all that one can have.
type example struct {
	*memory.Store
	root ocispec.Descriptor
	all  []ocispec.Descriptor // manifests and blobs
}

func (e *example) put(t *testing.T, mediaType string, b []byte) ocispec.Descriptor {
	t.Helper()
	d := content.NewDescriptorFromBytes(mediaType, b)
	if ok, err := e.Exists(t.Context(), d); err != nil || ok {
		return d
	}
	if err := e.Push(t.Context(), d, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	e.all = append(e.all, d)
	return d
}

func (e *example) putJSON(t *testing.T, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return e.put(t, mediaType, b)
}

// manifest puts a manifest with one random layer of size bytes.
func (e *example) manifest(t *testing.T, subject *ocispec.Descriptor, size int) ocispec.Descriptor {
	t.Helper()
	layer := make([]byte, size)
	rand.Read(layer)
	return e.putJSON(t, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: "application/x-test", Subject: subject,
		Config: e.put(t, ocispec.DescriptorEmptyJSON.MediaType, []byte("{}")),
		Layers: []ocispec.Descriptor{e.put(t, "application/x-layer", layer)},
	})
}

// newExample: two platforms, a signature of the whole, one of a platform, an
// attestation of that signature, and a signature under cosign's tag.
func newExample(t *testing.T) *example {
	t.Helper()
	e := &example{Store: memory.New()}
	one, two := e.manifest(t, nil, 1<<20), e.manifest(t, nil, 300_000)
	e.root = e.putJSON(t, ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{one, two},
	})
	e.manifest(t, &e.root, 1000)
	ofTwo := e.manifest(t, &two, 2000)
	e.manifest(t, &ofTwo, 3000)
	legacy := e.manifest(t, nil, 4000)
	e.tag(t, legacy, cosignTag(one.Digest, ".sig"))
	e.tag(t, e.root, "v1")
	return e
}

func (e *example) tag(t *testing.T, d ocispec.Descriptor, tag string) {
	t.Helper()
	if err := e.Tag(t.Context(), d, tag); err != nil {
		t.Fatal(err)
	}
}

func (e *example) bytes() (n int64) {
	for _, d := range e.all {
		n += d.Size
	}
	return n
}

// check fails unless all of e is in src with the same bytes, as tag, and found there as e has it.
func (e *example) check(t *testing.T, src Source, tag string) {
	t.Helper()
	ctx := t.Context()
	if d, err := src.Resolve(ctx, tag); err != nil || d.Digest != e.root.Digest {
		t.Fatalf("%s names %v, %v", tag, d.Digest, err)
	}
	want, err := walk(ctx, e, e.root, 2)
	if err != nil {
		t.Fatal(err)
	}
	got, err := walk(ctx, src, e.root, 2)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.levels) != 3 || len(got.levels[1]) != 3 || len(got.levels[2]) != 1 || len(want.levels) != 3 || len(got.tags) != 1 || got.tags[0].tag != want.tags[0].tag {
		t.Errorf("found %v, want %v", got, want)
	}
	for _, d := range e.all {
		there, err := content.FetchAll(ctx, src, d)
		if err != nil {
			t.Fatal(err)
		}
		here, err := content.FetchAll(ctx, e, d)
		if err != nil || !bytes.Equal(here, there) {
			t.Fatalf("%s differs, %v", d.Digest, err)
		}
	}
}

// TestCopy copies between registries: all of it, once, and what is there not again.
func TestCopy(t *testing.T) {
	ctx, e := t.Context(), newExample(t)
	a, b := open(t, newRegistry(t, registry.Options{})+"/team/app"), open(t, newRegistry(t, registry.Options{})+"/app")
	if _, err := Copy(ctx, e, "v1", a, "v1", Options{}); err != nil {
		t.Fatal(err)
	}
	e.check(t, a, "v1")

	var mu sync.Mutex
	done := map[digest.Digest]int64{}
	c, err := Copy(ctx, a, "v1", b, "prod", Options{Concurrency: 3, Progress: func(d ocispec.Descriptor, n int64) {
		mu.Lock()
		defer mu.Unlock()
		done[d.Digest] = max(done[d.Digest], n)
	}})
	if err != nil {
		t.Fatal(err)
	}
	e.check(t, b, "prod")
	if c.Root.Digest != e.root.Digest || c.Referrers != 4 || c.Manifests != 7 || c.Bytes < e.bytes() || c.Bytes > e.bytes()+100 {
		t.Errorf("copied %+v of %d bytes", c, e.bytes())
	}
	for _, d := range e.all {
		if !isManifest(d) && done[d.Digest] != d.Size {
			t.Errorf("progress of %s ends at %d of %d", d.Digest, done[d.Digest], d.Size)
		}
	}
	if c, err = Copy(ctx, a, "v1", b, "prod", Options{}); err != nil || c.Bytes != 0 || c.Referrers != 4 {
		t.Errorf("again: %+v, %v", c, err)
	}
	// One more signature: that alone moves.
	e.manifest(t, &e.root, 5000)
	if c, err = Copy(ctx, e, "v1", b, "prod", Options{}); err != nil || c.Manifests != 1 || c.Blobs != 1 || c.Referrers != 5 {
		t.Errorf("with one signature more: %+v, %v", c, err)
	}
}

// broken is a source that fails to read one blob.
type broken struct {
	Source
	blob digest.Digest
}

func (b broken) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	body, err := b.Source.Fetch(ctx, d)
	if err == nil && d.Digest == b.blob {
		defer body.Close()
		return io.NopCloser(io.MultiReader(io.LimitReader(body, d.Size/2), bytes.NewReader(make([]byte, d.Size-d.Size/2)))), nil
	}
	return body, err
}

// TestWrongBytes: a blob that is not what its digest says ends the copy, and no tag is there.
func TestWrongBytes(t *testing.T) {
	ctx, e := t.Context(), newExample(t)
	i := slices.IndexFunc(e.all, func(d ocispec.Descriptor) bool { return d.Size == 3000 }) // of the last referrer
	src := broken{e, e.all[i].Digest}
	repo := open(t, newRegistry(t, registry.Options{})+"/app")
	if _, err := Copy(ctx, src, "v1", repo, "v1", Options{}); err == nil {
		t.Fatal("wrong bytes were copied")
	}
	if _, err := repo.Resolve(ctx, "v1"); !notFound(err) {
		t.Errorf("the tag: %v", err)
	}
	for _, name := range []string{"a.tar", "a"} {
		dir := t.TempDir()
		out, err := NewExport(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Copy(ctx, src, "v1", out, "v1", Options{}); err == nil {
			t.Error("wrong bytes were exported")
		}
		if name == "a.tar" && out.Commit() == nil {
			t.Error("a broken tar was committed")
		}
		if err := out.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("%v is left", left)
		}
	}
	if _, err := Copy(ctx, e, "v1", repo, "v1", Options{}); err != nil {
		t.Fatal(err)
	}
	e.check(t, repo, "v1")
}

// TestTooManyManifests: what a source lists is bounded.
func TestTooManyManifests(t *testing.T) {
	e := &example{Store: memory.New()}
	var x ocispec.Index
	for range maxManifests/maxManifest + 1 {
		x.Manifests = append(x.Manifests, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(rand.Text()), Size: maxManifest})
	}
	x.SchemaVersion, x.MediaType = 2, ocispec.MediaTypeImageIndex
	b, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	root := content.NewDescriptorFromBytes(x.MediaType, b)
	if _, err := walk(t.Context(), bare{e, root, b}, root, 2); err == nil || !strings.Contains(err.Error(), "bytes of manifests") {
		t.Errorf("error %v", err)
	}
	if _, err := walk(t.Context(), crowd{e}, e.manifest(t, nil, 10), 2); err == nil || !strings.Contains(err.Error(), "bytes of manifests") {
		t.Errorf("error %v", err)
	}
	if _, err := walk(t.Context(), e, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: root.Digest, Size: maxManifest + 1}, 2); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("error %v", err)
	}
}

// crowd is a source that lists referrers without end.
type crowd struct{ Source }

func (crowd) Referrers(_ context.Context, _ ocispec.Descriptor, _ string, fn func([]ocispec.Descriptor) error) error {
	for {
		if err := fn([]ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(rand.Text())}}); err != nil {
			return err
		}
	}
}

// bare is a source with a manifest whose parts are not there.
type bare struct {
	Source
	root ocispec.Descriptor
	b    []byte
}

func (s bare) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	if d.Digest == s.root.Digest {
		return io.NopCloser(bytes.NewReader(s.b)), nil
	}
	return s.Source.Fetch(ctx, d)
}

// TestFollower: a target that follows the source is asked for nothing but what it says it has.
func TestFollower(t *testing.T) {
	ctx, e := t.Context(), newExample(t)
	home := newRegistry(t, registry.Options{})
	a := open(t, home+"/app")
	if _, err := Copy(ctx, e, "v1", a, "v1", Options{}); err != nil {
		t.Fatal(err)
	}
	b := open(t, newRegistry(t, registry.Options{Upstreams: []registry.Upstream{{Open: func(name string) (registry.UpstreamRepository, error) {
		return open(t, home+"/"+name), nil
	}}}})+"/app")
	c, err := Copy(ctx, a, "v1", b, "v1", Options{})
	if err != nil || c.Bytes != 0 {
		t.Fatalf("copied %+v, %v", c, err)
	}
	e.check(t, b, "v1")
}

func TestBelongs(t *testing.T) {
	d := digest.FromString("x")
	for tag, want := range map[string]bool{
		cosignTag(d, ".sig"): true, cosignTag(d, ".att"): true, cosignTag(d, ""): true,
		"v1": false, "sha256-1": false, "team/app:v1": false, "": false, d.String(): false,
	} {
		if Belongs(tag) != want {
			t.Errorf("Belongs(%q) = %v", tag, !want)
		}
	}
}

// TestLayouts takes two artifacts to a layout and from there to a registry.
func TestLayouts(t *testing.T) {
	for _, name := range []string{"layout.tar", "layout"} {
		t.Run(name, func(t *testing.T) {
			ctx, path := t.Context(), filepath.Join(t.TempDir(), name)
			one, two := newExample(t), newExample(t)
			out, err := NewExport(path)
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			for tag, e := range map[string]*example{"team/one:v1": one, "two:v1": two} {
				if _, err := Copy(ctx, e, "v1", out, tag, Options{}); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("it is there before it is whole: %v", err)
			}
			if err := errors.Join(out.Commit(), out.Close()); err != nil {
				t.Fatal(err)
			}
			if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
				t.Errorf("%v is left", left)
			}
			in, err := OpenLayout(ctx, path)
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			if names, err := in.Names(ctx); err != nil || !slices.Equal(names, []string{"team/one:v1", "two:v1"}) {
				t.Errorf("names %v, %v", names, err)
			}
			one.check(t, in, "team/one:v1")
			repo := open(t, newRegistry(t, registry.Options{})+"/two")
			if _, err := Copy(ctx, in, "two:v1", repo, "v1", Options{}); err != nil {
				t.Fatal(err)
			}
			two.check(t, repo, "v1")
			again, err := NewExport(path)
			if (err == nil) != (name == "layout.tar") {
				t.Errorf("again: %v", err)
			}
			if err == nil {
				again.Close()
			}
			if other, err := NewExport(path + ".gz"); err == nil {
				other.Close()
				t.Error("a compressed tar was begun")
			}
		})
	}
}

// makeTar makes a tar of name, text, name, text and so on.
func makeTar(t testing.TB, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
