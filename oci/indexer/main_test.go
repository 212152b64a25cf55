package indexer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	mrand "math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
	"oras.land/oras-go/v2/content"

	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/signing/cosign"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newKey returns a signer and the verifier of its key.
func newKey(t *testing.T) (*cosign.Signer, *cosign.Verifier) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := cosign.NewSigner(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := signer.Verifier("a test")
	if err != nil {
		t.Fatal(err)
	}
	return signer, verifier
}

// A server is a registry with an indexer that has its own key.
type server struct {
	t       *testing.T
	dir     string
	opts    Options
	indexer *Indexer
	reg     *registry.Registry
	addr    string
	end     func()
}

// serve starts a registry on dir, whose indexer does not run yet.
func serve(t *testing.T, dir string, opts Options) *server {
	t.Helper()
	s := &server{t: t, dir: dir, opts: opts, indexer: New(opts)}
	var err error
	if s.reg, err = registry.Open(dir, registry.Options{Pushed: s.indexer.Pushed}); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s.reg)
	s.addr = strings.TrimPrefix(srv.URL, "http://")
	s.end = func() {
		srv.CloseClientConnections()
		srv.Close()
		s.reg.Close()
	}
	t.Cleanup(func() { s.end() })
	return s
}

// run lets the indexer run until the server ends.
func (s *server) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.indexer.Run(ctx, s.reg.Store()) }()
	end := s.end
	s.end = func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
		end()
		s.end = func() {}
	}
}

func newServer(t *testing.T) *server {
	t.Helper()
	signer, verifier := newKey(t)
	s := serve(t, t.TempDir(), Options{Signer: signer, Verifier: verifier, MaxExpanded: 1 << 20, Logger: logger(t)})
	s.run()
	s.settled(0, 0, 0)
	return s
}

// logger returns a logger to what is printed when the test fails.
func logger(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

func (s *server) open(name string) *remote.Repository {
	s.t.Helper()
	transport := remote.NewTransport()
	s.t.Cleanup(transport.CloseIdleConnections)
	repo, err := remote.Open(s.addr+"/"+name, remote.Options{Transport: transport})
	if err != nil {
		s.t.Fatal(err)
	}
	return repo
}

// until waits for a condition.
func (s *server) until(what string, ok func() bool) {
	s.t.Helper()
	for start := time.Now(); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			s.t.Fatalf("%s: not after a minute; %+v", what, s.indexer.Stats())
		}
	}
}

// settled waits until the outcomes are these and nothing is pending.
func (s *server) settled(indexed, failed, skipped int) {
	s.t.Helper()
	s.until("the images are through", func() bool {
		stats := s.indexer.Stats()
		return stats.Pending == 0 && stats.Indexed == indexed && stats.Failed == failed && stats.Skipped == skipped
	})
}

// clean fails when the store holds a temporary file.
func (s *server) clean() {
	s.t.Helper()
	for _, room := range []string{"tmp", "uploads"} {
		if left, err := os.ReadDir(filepath.Join(s.dir, room)); err != nil || len(left) > 0 {
			s.t.Errorf("%v is left in %s, %v", left, room, err)
		}
	}
}

func referrers(t *testing.T, repo *remote.Repository, desc ocispec.Descriptor, artifactType string) (found []ocispec.Descriptor) {
	t.Helper()
	err := repo.Referrers(t.Context(), desc, artifactType, func(page []ocispec.Descriptor) error {
		found = append(found, page...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func indexes(t *testing.T, repo *remote.Repository, desc ocispec.Descriptor) []ocispec.Descriptor {
	t.Helper()
	return referrers(t, repo, desc, oci.ArtifactTypeIndex)
}

// noise returns n bytes that depend on seed alone.
func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	mrand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// archive returns a tar of one file.
func archive(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// pushImage pushes an image whose layers are objects, compressed, untagged.
func pushImage(t *testing.T, repo content.Pusher, objects ...[]byte) (ocispec.Descriptor, []byte) {
	t.Helper()
	config := ocispec.Image{RootFS: ocispec.RootFS{Type: "layers"}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, o := range objects {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(o))
		m.Layers = append(m.Layers, push(t, repo, ocispec.MediaTypeImageLayerGzip, gzipped(t, o)))
	}
	m.Config = push(t, repo, ocispec.MediaTypeImageConfig, marshal(t, config))
	text := marshal(t, m)
	return push(t, repo, m.MediaType, text), text
}

func push(t *testing.T, repo content.Pusher, mediaType string, b []byte) ocispec.Descriptor {
	t.Helper()
	desc := content.NewDescriptorFromBytes(mediaType, b)
	if err := repo.Push(t.Context(), desc, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	return desc
}

func fetch(t *testing.T, repo content.Fetcher, desc ocispec.Descriptor) []byte {
	t.Helper()
	r, err := repo.Fetch(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
