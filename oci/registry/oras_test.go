package registry

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote"
)

// A client that other people wrote: oras-go pushes, copies, mounts, lists and reads in parts.
func TestOrasClient(t *testing.T) {
	ctx := t.Context()
	c, _, _ := serve(t, t.TempDir(), Options{})
	repository := func(name string) *remote.Repository {
		t.Helper()
		r, err := remote.NewRepository(strings.TrimPrefix(c.base, "http://") + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		r.PlainHTTP = true
		r.Client = c.http
		return r
	}
	source, origin, target := memory.New(), repository("team/model"), repository("copy/model")

	weights := noise(1, 3<<20)
	layer, err := oras.PushBytes(ctx, source, "application/x-weights", weights)
	if err != nil {
		t.Fatal(err)
	}
	model, err := oras.PackManifest(ctx, source, oras.PackManifestVersion1_1, "application/x-model",
		oras.PackManifestOptions{Layers: []ocispec.Descriptor{layer}})
	if err != nil {
		t.Fatal(err)
	}
	signature, err := oras.PackManifest(ctx, source, oras.PackManifestVersion1_1, "application/x-signature",
		oras.PackManifestOptions{Subject: &model, ManifestAnnotations: map[string]string{"by": "me"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := source.Tag(ctx, model, "v1"); err != nil {
		t.Fatal(err)
	}

	if _, err := oras.ExtendedCopy(ctx, source, "v1", origin, "v1", oras.DefaultExtendedCopyOptions); err != nil {
		t.Fatal(err)
	}
	if _, err := oras.ExtendedCopy(ctx, origin, "v1", target, "v2", oras.DefaultExtendedCopyOptions); err != nil {
		t.Fatal(err)
	}
	for r, tag := range map[*remote.Repository]string{origin: "v1", target: "v2"} {
		if d, err := r.Resolve(ctx, tag); err != nil || !content.Equal(d, model) {
			t.Errorf("%s: %v, %v", tag, d, err)
		}
		if got, err := content.FetchAll(ctx, r, layer); err != nil || !bytes.Equal(got, weights) {
			t.Errorf("%s: weights differ, %v", tag, err)
		}
		var found []ocispec.Descriptor
		collect := func(page []ocispec.Descriptor) error { found = append(found, page...); return nil }
		if err := r.Referrers(ctx, model, "application/x-signature", collect); err != nil {
			t.Fatal(err)
		}
		if len(found) != 1 || found[0].Digest != signature.Digest || found[0].Annotations["by"] != "me" {
			t.Errorf("%s: referrers %v", tag, found)
		}
	}

	t.Run("mount", func(t *testing.T) {
		mounted := repository("mounted")
		fallback := func() (io.ReadCloser, error) { return nil, errors.New("the blob was asked for") }
		if err := mounted.Mount(ctx, layer, "team/model", fallback); err != nil {
			t.Fatal(err)
		}
		unknown := content.NewDescriptorFromBytes("application/x-weights", []byte("elsewhere"))
		sent := func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("elsewhere")), nil }
		if err := mounted.Mount(ctx, unknown, "team/model", sent); err != nil {
			t.Fatal(err)
		}
		for _, d := range []ocispec.Descriptor{layer, unknown} {
			if ok, err := mounted.Blobs().Exists(ctx, d); !ok || err != nil {
				t.Errorf("%s: %v, %v", d.Digest, ok, err)
			}
		}
	})
	t.Run("ranges", func(t *testing.T) {
		rc, err := origin.Fetch(ctx, layer)
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		seeker, ok := rc.(io.ReadSeeker)
		if !ok {
			t.Fatal("the client does not believe in ranges")
		}
		for _, off := range []int64{2 << 20, 5, 3<<20 - 1} {
			if _, err := seeker.Seek(off, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, min(1000, len(weights)-int(off)))
			if _, err := io.ReadFull(seeker, got); err != nil || !bytes.Equal(got, weights[off:off+int64(len(got))]) {
				t.Errorf("at %d: %v", off, err)
			}
		}
	})
	t.Run("tags", func(t *testing.T) {
		var tags []string
		if err := target.Tags(ctx, "", func(page []string) error { tags = append(tags, page...); return nil }); err != nil {
			t.Fatal(err)
		}
		if strings.Join(tags, " ") != "v2" {
			t.Errorf("tags %v", tags)
		}
	})
	t.Run("unknown", func(t *testing.T) {
		if _, err := origin.Resolve(ctx, "v3"); !errors.Is(err, errdef.ErrNotFound) {
			t.Errorf("resolve: %v", err)
		}
		if _, err := repository("nobody").Fetch(ctx, layer); !errors.Is(err, errdef.ErrNotFound) {
			t.Errorf("fetch: %v", err)
		}
	})
	t.Run("delete", func(t *testing.T) {
		if err := target.Delete(ctx, signature); err != nil {
			t.Fatal(err)
		}
		if err := target.Delete(ctx, layer); err != nil {
			t.Fatal(err)
		}
		if ok, err := target.Exists(ctx, signature); ok || err != nil {
			t.Errorf("exists: %v, %v", ok, err)
		}
	})
}
