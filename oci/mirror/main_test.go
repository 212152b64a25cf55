package mirror

import (
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
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/signing"
	"github.com/spate-project/spate/signing/cosign"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A bench is a registry with one repository, and a mirror of it.
type bench struct {
	t      testing.TB
	host   string // of the registry
	mirror *Mirror
	url    string // of the mirror
	mesh   *mesh
	log    *lockedBuffer
	repo   *remote.Repository // the repository at the registry, as its owner sees it
	signer signing.Signer
	server *httptest.Server // the registry
	front  *httptest.Server // of the mirror

	mu   sync.Mutex
	wrap func(http.Handler) http.Handler // stands before the registry
	seen []*http.Request                 // what the registry was asked, the owner's requests left out
}

const owner = "owner" // the User-Agent of whoever pushes

// newBench starts a registry and a mirror that change may have other options.
func newBench(t testing.TB, change func(b *bench, opts *Options)) *bench {
	t.Helper()
	b := &bench{t: t, mesh: &mesh{blobs: map[digest.Digest][]byte{}}, log: &lockedBuffer{}}
	reg := must(registry.Open(t.TempDir(), registry.Options{}))
	t.Cleanup(func() { reg.Close() })
	b.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.UserAgent() == owner {
			reg.ServeHTTP(w, req)
			return
		}
		b.mu.Lock()
		b.seen = append(b.seen, req.Clone(context.Background()))
		wrap := b.wrap
		b.mu.Unlock()
		if wrap != nil {
			wrap(reg).ServeHTTP(w, req)
			return
		}
		reg.ServeHTTP(w, req)
	}))
	t.Cleanup(b.server.Close)
	b.host = strings.TrimPrefix(b.server.URL, "http://")

	transport := remote.NewTransport()
	t.Cleanup(transport.CloseIdleConnections)
	b.repo = must(remote.Open(b.host+"/team/app", remote.Options{Transport: transport}))
	b.repo.Client = &auth.Client{Client: &http.Client{Transport: transport}, Header: http.Header{"User-Agent": {owner}}}

	k := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(k))})
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(k.Public()))})
	b.signer = must(cosign.NewSigner(private, nil))
	opts := Options{
		Policy: &signing.Policy{Verifiers: []signing.Verifier{must(cosign.NewVerifier(public, "ours.pub"))}},
		Blobs:  b.mesh,
		Local:  []string{b.host},
		Logger: slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(b, &opts)
	}
	b.mirror = must(New(opts))
	t.Cleanup(b.mirror.Close)
	b.front = httptest.NewServer(b.mirror)
	t.Cleanup(b.front.Close)
	b.url = b.front.URL
	return b
}

// before lets wrap stand before the registry from now on, and forgets what the registry was asked.
func (b *bench) before(wrap func(http.Handler) http.Handler) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wrap, b.seen = wrap, nil
}

func (b *bench) asked() []*http.Request {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.seen
}

func (b *bench) push(mediaType string, data []byte) ocispec.Descriptor {
	b.t.Helper()
	desc := content.NewDescriptorFromBytes(mediaType, data)
	if must(b.repo.Exists(b.t.Context(), desc)) {
		return desc
	}
	if err := b.repo.Push(b.t.Context(), desc, bytes.NewReader(data)); err != nil {
		b.t.Fatal(err)
	}
	return desc
}

// An image is an image manifest and what it lists.
type image struct {
	desc   ocispec.Descriptor
	config []byte
	layers [][]byte
}

// image pushes an image; names, if not empty, is its tag.
func (b *bench) image(tag string, layers ...[]byte) image {
	b.t.Helper()
	img := image{config: must(json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "x": string(layers[0][:4])})), layers: layers}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: b.push(ocispec.MediaTypeImageConfig, img.config),
	}
	for _, l := range layers {
		m.Layers = append(m.Layers, b.push(ocispec.MediaTypeImageLayer, l))
	}
	img.desc = b.push(ocispec.MediaTypeImageManifest, must(json.Marshal(m)))
	b.tag(img.desc, tag)
	return img
}

// index pushes an image index of images.
func (b *bench) index(tag string, images ...image) ocispec.Descriptor {
	b.t.Helper()
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for i, img := range images {
		desc := img.desc
		desc.Platform = &ocispec.Platform{OS: "linux", Architecture: []string{"amd64", "arm64", "riscv64"}[i]}
		idx.Manifests = append(idx.Manifests, desc)
	}
	desc := b.push(ocispec.MediaTypeImageIndex, must(json.Marshal(idx)))
	b.tag(desc, tag)
	return desc
}

func (b *bench) tag(desc ocispec.Descriptor, tag string) {
	b.t.Helper()
	if tag == "" {
		return
	}
	if err := b.repo.Tag(b.t.Context(), desc, tag); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) sign(desc ocispec.Descriptor) {
	b.t.Helper()
	bundle := must(b.signer.Sign(b.t.Context(), must(piece.ParseDigest(desc.Digest.String()))))
	must(signing.Attach(b.t.Context(), b.repo, desc, bundle))
}

// An answer is what the mirror answered; err is why its body could not be read to the end.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error
}

// do asks the mirror for rest, below the repository, of the bench's registry.
func (b *bench) do(method, rest string, header ...string) answer {
	b.t.Helper()
	return b.raw(method, "/v2/team/app/"+rest+map[bool]string{true: "&", false: "?"}[strings.Contains(rest, "?")]+"ns="+b.host, header...)
}

func (b *bench) get(rest string, header ...string) answer {
	b.t.Helper()
	return b.do(http.MethodGet, rest, header...)
}

func (b *bench) raw(method, target string, header ...string) answer {
	b.t.Helper()
	req := must(http.NewRequestWithContext(b.t.Context(), method, b.url+target, nil))
	req.Header.Set("Accept", ocispec.MediaTypeImageManifest+", "+ocispec.MediaTypeImageIndex)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}
	resp, err := client.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, body, err}
}

// want fails the test unless a is of status and its body is body, or holds it where a is an error.
func (a answer) want(t *testing.T, status int, body []byte) {
	t.Helper()
	good := bytes.Equal(a.body, body) || a.status >= 400 && bytes.Contains(a.body, body)
	if a.err != nil || a.status != status || !good {
		t.Fatalf("status %d (error %v), body %.300q; want %d, %.300q", a.status, a.err, a.body, status, body)
	}
}

// A mesh holds blobs in memory. It notes as what each was asked for, and passes
// on what pass says.
type mesh struct {
	mu    sync.Mutex
	blobs map[digest.Digest][]byte
	pass  func(blob ocispec.Descriptor) Passed // NoMesh when nil
	asked []string
	err   error // of the next opens, when not nil
	cut   int   // reads fail from here on, when not 0
}

func (m *mesh) hold(b []byte) { m.blobs[digest.FromBytes(b)] = b }

func (m *mesh) Open(_ context.Context, reference string, blob ocispec.Descriptor) (io.ReadSeekCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, reference)
	b, ok := m.blobs[blob.Digest]
	switch {
	case m.err != nil:
		return nil, m.err
	case !ok:
		return nil, piece.ErrNotHere
	}
	return &held{Reader: bytes.NewReader(b), cut: m.cut}, nil
}

func (m *mesh) Pass(_ context.Context, blob ocispec.Descriptor) Passed {
	if m.pass == nil {
		return Passed{Reason: NoMesh}
	}
	return m.pass(blob)
}

type held struct {
	*bytes.Reader
	cut int
}

func (h *held) Read(p []byte) (int, error) {
	if h.cut > 0 && h.Size()-int64(h.Len()) >= int64(h.cut) {
		return 0, io.ErrClosedPipe
	}
	return h.Reader.Read(p)
}

func (h *held) Close() error { return nil }

// A lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func random(n int) []byte {
	b := make([]byte, n)
	must(rand.Read(b))
	return b
}
