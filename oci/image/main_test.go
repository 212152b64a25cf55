package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
	"oras.land/oras-go/v2/content"

	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/oci/remote"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open returns a repository of a registry of its own. between may change what
// the registry answers; nil changes nothing.
func open(t testing.TB, between func(http.Handler) http.Handler) *remote.Repository {
	t.Helper()
	var handler http.Handler
	handler, err := registry.Open(t.TempDir(), registry.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if between != nil {
		handler = between(handler)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	transport := remote.NewTransport()
	t.Cleanup(transport.CloseIdleConnections)
	repo, err := remote.Open(strings.TrimPrefix(server.URL, "http://")+"/apps/web", remote.Options{Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// noise returns n bytes that depend on seed alone.
func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// archive returns a tar of entries and, where they are files, of their contents.
func archive(t testing.TB, files map[string][]byte, more ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	write := func(h *tar.Header, data []byte) {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range sorted(files) {
		write(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name])), Typeflag: tar.TypeReg}, files[name])
	}
	for _, h := range more {
		write(h, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	return compressed(t, &buf, w, b)
}

func zstded(t testing.TB, b []byte) []byte {
	var buf bytes.Buffer
	w, err := zstd.NewWriter(&buf)
	if err != nil {
		t.Fatal(err)
	}
	return compressed(t, &buf, w, b)
}

func compressed(t testing.TB, buf *bytes.Buffer, w io.WriteCloser, b []byte) []byte {
	t.Helper()
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// A part is one layer of an image to be made.
type part struct {
	mediaType string
	object    []byte
	blob      []byte
	diffID    digest.Digest // the object's unless set
}

const gzipType, zstdType, tarType = ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd, ocispec.MediaTypeImageLayer

func gzipPart(t testing.TB, object []byte) part {
	return part{mediaType: gzipType, object: object, blob: gzipped(t, object)}
}

func zstdPart(t testing.TB, object []byte) part {
	return part{mediaType: zstdType, object: object, blob: zstded(t, object)}
}

func tarPart(object []byte) part { return part{mediaType: tarType, object: object, blob: object} }

// pushImage stores an image of OCI's form, untagged.
func pushImage(t testing.TB, repo content.Pusher, parts ...part) Manifest {
	t.Helper()
	config := ocispec.Image{RootFS: ocispec.RootFS{Type: "layers"}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	done := map[digest.Digest]bool{}
	for _, p := range parts {
		if p.diffID == "" {
			p.diffID = digest.FromBytes(p.object)
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, p.diffID)
		desc := content.NewDescriptorFromBytes(p.mediaType, p.blob)
		m.Layers = append(m.Layers, desc)
		if !done[desc.Digest] {
			pushBytes(t, repo, p.mediaType, p.blob)
		}
		done[desc.Digest] = true
	}
	m.Config = pushBytes(t, repo, ocispec.MediaTypeImageConfig, marshal(t, config))
	text := marshal(t, m)
	return Manifest{Descriptor: pushBytes(t, repo, m.MediaType, text), Bytes: text}
}

func pushBytes(t testing.TB, repo content.Pusher, mediaType string, b []byte) ocispec.Descriptor {
	t.Helper()
	desc := content.NewDescriptorFromBytes(mediaType, b)
	if err := repo.Push(t.Context(), desc, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	return desc
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sorted(files map[string][]byte) []string { return slices.Sorted(maps.Keys(files)) }

// referrers lists the indexes of desc that repo has.
func referrers(t testing.TB, repo *remote.Repository, desc ocispec.Descriptor) (found []ocispec.Descriptor) {
	t.Helper()
	err := repo.Referrers(t.Context(), desc, oci.ArtifactTypeIndex, func(page []ocispec.Descriptor) error {
		found = append(found, page...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
