package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("REGISTRY_TEST_DIR"); dir != "" {
		serveChild(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// serveChild is the process that the crash tests kill: a registry on dir that
// prints its address and lives until its standard input ends.
func serveChild(dir string) {
	var opts Options
	if host := os.Getenv("REGISTRY_TEST_UPSTREAM"); host != "" {
		opts.Upstreams = upstreamAt(host)
	}
	reg, err := Open(dir, opts)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if n, err := strconv.ParseInt(os.Getenv("REGISTRY_TEST_CHECKPOINT"), 10, 64); err == nil {
		reg.store.checkpointBytes = n
	}
	if n, err := strconv.Atoi(os.Getenv("REGISTRY_TEST_KILL_AT")); err == nil {
		changes := 0
		reg.store.beforeChange = func() {
			if changes++; changes == n {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var h http.Handler = reg
	if os.Getenv("REGISTRY_TEST_COLLECT") != "" {
		h = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if _, err := reg.Store().Collect(context.Background(), collectTestRetention, false); err != nil {
				w.WriteHeader(500)
			}
		})
	}
	fmt.Println(l.Addr())
	go http.Serve(l, h)
	io.Copy(io.Discard, os.Stdin)
}

// A client speaks to a registry under test. A transport error is status 0.
type client struct {
	t    testing.TB
	base string
	http *http.Client
}

type response struct {
	status int
	header http.Header
	body   []byte
}

// serve runs a registry on dir, closed when the test ends or by the returned function.
func serve(t testing.TB, dir string, opts Options) (*client, *Registry, func()) {
	t.Helper()
	reg, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(reg)
	closed := false
	stop := func() {
		if !closed {
			closed = true
			srv.CloseClientConnections()
			srv.Close()
			reg.Close()
		}
	}
	t.Cleanup(stop)
	return &client{t: t, base: srv.URL, http: srv.Client()}, reg, stop
}

// do sends one request; header is a list of names and values. body is nil, []byte or an io.Reader.
func (c *client) do(method, path string, body any, header ...string) response {
	c.t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case []byte:
		r = bytes.NewReader(b)
	case io.Reader:
		r = b
	}
	if !strings.HasPrefix(path, "http") {
		path = c.base + path
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, path, r)
	if err != nil {
		c.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return response{header: http.Header{}}
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return response{header: http.Header{}}
	}
	return response{resp.StatusCode, resp.Header, got}
}

// want is do that ends the test on another status.
func (c *client) want(status int, method, path string, body any, header ...string) response {
	c.t.Helper()
	r := c.do(method, path, body, header...)
	if r.status != status {
		c.t.Fatalf("%s %s: status %d, want %d: %s", method, path, r.status, status, r.body)
	}
	return r
}

// code returns the first error code of an answer.
func (r response) code() string {
	var doc struct{ Errors []struct{ Code string } }
	if json.Unmarshal(r.body, &doc) != nil || len(doc.Errors) == 0 {
		return ""
	}
	return doc.Errors[0].Code
}

// offset returns how much an upload has, as the answer says.
func (r response) offset(t testing.TB) int64 {
	t.Helper()
	last, ok := strings.CutPrefix(r.header.Get("Range"), "0-")
	n, err := strconv.ParseInt(last, 10, 64)
	if !ok || err != nil {
		t.Fatalf("Range %q", r.header.Get("Range"))
	}
	if n == 0 {
		return 0
	}
	return n + 1
}

// begin starts an upload and returns its location.
func (c *client) begin(repo string) string {
	c.t.Helper()
	return c.want(202, "POST", "/v2/"+repo+"/blobs/uploads/", nil).header.Get("Location")
}

func (c *client) pushBlob(repo string, data []byte) digest.Digest {
	c.t.Helper()
	d := digest.FromBytes(data)
	c.want(201, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), data)
	return d
}

func (c *client) pushManifest(repo, reference string, m any) digest.Digest {
	c.t.Helper()
	raw := marshal(c.t, m)
	r := c.want(201, "PUT", "/v2/"+repo+"/manifests/"+reference, raw)
	if d := digest.FromBytes(raw); r.header.Get("Docker-Content-Digest") != d.String() {
		c.t.Fatalf("pushed %s, told %s", d, r.header.Get("Docker-Content-Digest"))
	}
	return digest.FromBytes(raw)
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func descriptor(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

// image is a manifest over a config and layers, all plain bytes.
func image(config []byte, layers ...[]byte) ocispec.Manifest {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    descriptor(ocispec.MediaTypeImageConfig, config),
		Layers:    []ocispec.Descriptor{},
	}
	for _, l := range layers {
		m.Layers = append(m.Layers, descriptor(ocispec.MediaTypeImageLayer, l))
	}
	return m
}

// noise returns n bytes that depend on seed alone.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	rand.NewChaCha8(key).Read(b)
	return b
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
