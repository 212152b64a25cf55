package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/spate-project/spate/cache"
	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/identity"
	"github.com/spate-project/spate/p2p/link"
	"github.com/spate-project/spate/p2p/torrent"
	"github.com/spate-project/spate/p2p/tracker"
	"github.com/spate-project/spate/signing"
	"github.com/spate-project/spate/signing/cosign"
)

// A plain is a signed manifest without an index, which lists one blob.
type plain struct {
	repository string
	blob       []byte
}

func (p plain) digest() digest.Digest { return digest.FromBytes(p.blob) }

// pushPlain pushes and signs what lists a blob of size bytes.
func (s *site) pushPlain(name string, size int, seed uint64) plain {
	s.t.Helper()
	check := func(err error) {
		s.t.Helper()
		if err != nil {
			s.t.Fatal(err)
		}
	}
	p := plain{repository: name, blob: noise(size, seed)}
	repo, err := remote.Open(s.registry+"/"+name, remote.Options{})
	check(err)
	put := func(mediaType string, b []byte) ocispec.Descriptor {
		s.t.Helper()
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
		check(repo.Push(s.t.Context(), d, bytes.NewReader(b)))
		return d
	}
	config, layer := put(ocispec.MediaTypeImageConfig, []byte("{}")), put(ocispec.MediaTypeImageLayer, p.blob)
	desc := put(ocispec.MediaTypeImageManifest, fmt.Appendf(nil,
		`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		ocispec.MediaTypeImageManifest, config.MediaType, config.Digest, config.Size, layer.MediaType, layer.Digest, layer.Size))
	check(repo.Tag(s.t.Context(), desc, "v1"))
	key, err := os.ReadFile(s.keys.Sign())
	check(err)
	signer, err := cosign.NewSigner(key, func() ([]byte, error) { return nil, nil })
	check(err)
	_, err = signing.Sign(s.t.Context(), repo, signer, desc)
	check(err)
	return p
}

// newPeer starts the agent of a node of the mesh, which has the given flags too.
func (s *site) newPeer(name string, flags ...string) *node {
	s.t.Helper()
	return s.newNode(name, append(flags, "--mesh", s.keys.Mesh(name), "--mesh-listen", free(s.t))...)
}

// ask asks the node's mirror for rest below p's repository. The caller closes the body.
func (n *node) ask(ctx context.Context, p plain, rest string, login *url.Userinfo) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.listen+"/v2/"+p.repository+"/"+rest, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", ocispec.MediaTypeImageManifest)
	if login != nil {
		pass, _ := login.Password()
		req.SetBasicAuth(login.Username(), pass)
	}
	return http.DefaultClient.Do(req)
}

// read is ask, to the answer's end.
func (n *node) read(ctx context.Context, p plain, rest string, login *url.Userinfo) (status int, body []byte, err error) {
	resp, err := n.ask(ctx, p, rest, login)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// pull pulls the manifest and the blob of p through the mirror, as containerd would.
func (n *node) pull(ctx context.Context, p plain, login *url.Userinfo) error {
	if status, body, err := n.read(ctx, p, "manifests/v1", login); err != nil || status != http.StatusOK {
		return fmt.Errorf("%s: manifest: status %d, %w: %s", n.name, status, err, body)
	}
	status, body, err := n.read(ctx, p, "blobs/"+p.digest().String(), login)
	if err != nil || status != http.StatusOK || !bytes.Equal(body, p.blob) {
		return fmt.Errorf("%s: blob: status %d, %d bytes, %w; want %d bytes", n.name, status, len(body), err, len(p.blob))
	}
	return nil
}

// took returns how many blobs the node's mirror has given out by path.
func (n *node) took(path string) int {
	n.t.Helper()
	return n.metric(n.listen, fmt.Sprintf("spate_mirror_blobs_total{path=%q} ", path))
}

// hasTaken waits until the node's mirror has counted that it gave out so many
// blobs by path: it does so when the caller has them already.
func (n *node) hasTaken(count int, path string) {
	n.t.Helper()
	n.eventually(fmt.Sprintf("%s has given out %d blobs by %s", n.name, count, path), func() bool { return n.took(path) == count })
}

// metric returns a number that addr serves, 0 where it does not; line is what its line begins with.
func (s *site) metric(addr, line string) (v int) {
	s.t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	_, rest, ok := strings.Cut("\n"+string(text), "\n"+line)
	var f float64
	if _, err := fmt.Sscan(rest, &f); ok && err != nil {
		s.t.Fatalf("%s of %s: %v", line, addr, err)
	}
	return int(f)
}

// eventually waits until is holds.
func (s *site) eventually(what string, is func() bool) {
	s.t.Helper()
	for start := time.Now(); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			s.t.Fatalf("%s: not after a minute", what)
		}
	}
}

// TestHints: a blob without an index that four nodes want at once leaves the
// registry about once, and each node says which way it took.
func TestHints(t *testing.T) {
	names := []string{"a", "b", "c", "d"}
	s := newSite(t, names)
	p := s.pushPlain("app", 24<<20, 1)
	var nodes []*node
	for _, name := range names {
		nodes = append(nodes, s.newPeer(name))
	}
	before := s.sent()
	g, ctx := errgroup.WithContext(t.Context())
	for _, n := range nodes {
		g.Go(func() error { return n.pull(ctx, p, nil) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	sent, size := s.sent()-before, int64(len(p.blob))
	t.Logf("the registry has sent %.2f copies", float64(sent)/float64(size))
	if sent > size*3/2 {
		t.Errorf("the registry has sent %d bytes for a blob of %d", sent, size)
	}
	s.eventually("one node has drawn the blob and the others had it by a hint", func() bool {
		drawn, hinted := 0, 0
		for _, n := range nodes {
			drawn += n.took("origin-draw")
			hinted += n.took("mesh-hint")
		}
		return drawn == 1 && hinted == len(nodes)-1
	})
	// Whoever asks a node again gets what it has.
	for _, n := range nodes {
		before := n.took("mesh-hint")
		if err := n.pull(t.Context(), p, nil); err != nil {
			t.Error(err)
		}
		n.hasTaken(before+1, "mesh-hint")
	}
}

// TestHintWrong: a peer that says of a blob what is true of other bytes, and sends
// those, is found out; the node's caller gets the right bytes, and so does the next node.
func TestHintWrong(t *testing.T) {
	s := newSite(t, []string{"a", "b", "liar"})
	p := s.pushPlain("app", 4<<20, 1)
	wrong := bytes.Clone(p.blob)
	wrong[3<<20] ^= 1
	s.lie(p, wrong)

	a, b := s.newPeer("a"), s.newPeer("b")
	if err := a.pull(t.Context(), p, nil); err != nil {
		t.Fatal(err)
	}
	a.hasTaken(1, "origin-wrong-hint")
	log, err := os.ReadFile(filepath.Join(s.dir, "a.log"))
	if err != nil {
		t.Fatal(err)
	}
	if line := "a hint is wrong and is dropped"; !strings.Contains(string(log), line) || !strings.Contains(string(log), "liar") {
		t.Errorf("the log has no line %q that names the liar:\n%s", line, log)
	}
	if err := b.pull(t.Context(), p, nil); err != nil {
		t.Fatal(err)
	}
	b.hasTaken(1, "mesh-hint")
}

// lie runs a peer that holds other bytes than p's blob and gives a hint of them as if they were it.
func (s *site) lie(p plain, wrong []byte) {
	s.t.Helper()
	check := func(err error) {
		s.t.Helper()
		if err != nil {
			s.t.Fatal(err)
		}
	}
	h := piece.NewHasher(int64(len(wrong)))
	h.Write(wrong)
	sum, err := h.Sum()
	check(err)
	o := sum.Object()
	o.Digest, err = piece.ParseDigest(p.digest().String())
	check(err)
	tree, err := piece.NewTree(o, sum.Layer())
	check(err)

	store, err := cache.Open(filepath.Join(s.dir, "liar"), cache.Options{})
	check(err)
	s.t.Cleanup(func() { store.Close() })
	object, err := store.Open(tree, nil)
	check(err)
	for i := range o.Pieces() {
		off, n := o.Span(i)
		v, err := tree.Verify(i, wrong[off:off+n])
		check(err)
		check(object.Put(v))
	}
	id, err := identity.Load(s.keys.Mesh("liar"))
	check(err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	quiet := slog.New(slog.DiscardHandler)
	engine, err := torrent.New(torrent.Options{Identity: id, Listener: ln, Link: link.New(0, 0), Logger: quiet})
	check(err)
	client := tracker.NewClient(http.DefaultClient, "http://"+s.registry)
	mesh := p2p.New(p2p.Options{Node: id.Name(), Engine: engine, Tracker: client, Logger: quiet})
	ctx, cancel := context.WithCancel(s.t.Context())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return engine.Run(ctx) })
	g.Go(func() error { return mesh.Run(ctx) })
	s.t.Cleanup(func() {
		cancel()
		g.Wait()
	})
	check(mesh.Join(object, p2p.JoinOptions{Origin: p2p.OriginFunc(func(context.Context, int64, int64) (io.ReadCloser, error) {
		return nil, piece.ErrNotHere
	})}))
	hint := &tracker.Hint{Object: o, Layer: tree.Layer()}
	s.eventually("the tracker takes the wrong hint", func() bool {
		a, err := client.Hint(ctx, tracker.HintRequest{Node: id.Name(), Blob: o.Digest, Give: hint})
		check(err)
		return a.Hint != nil
	})
}

// TestHintDrawerDies: when the node that draws a blob is killed, one that waits draws it.
func TestHintDrawerDies(t *testing.T) {
	s := newSite(t, []string{"a", "b"})
	p := s.pushPlain("app", 32<<20, 1) // more than lies between an agent and a caller who stops reading
	a, b := s.newPeer("a"), s.newPeer("b")
	if status, body, err := a.read(t.Context(), p, "manifests/v1", nil); err != nil || status != http.StatusOK {
		t.Fatalf("status %d, %v: %s", status, err, body)
	}
	resp, err := a.ask(t.Context(), p, "blobs/"+p.digest().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 1<<20)); err != nil { // it draws
		t.Fatal(err)
	}
	asked := s.hintsAsked()
	var g errgroup.Group
	g.Go(func() error { return b.pull(t.Context(), p, nil) })
	s.eventually("the other node waits", func() bool { return s.hintsAsked() > asked })
	a.agent.Process.Kill()
	a.agent.Wait()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	b.hasTaken(1, "origin-draw")
}

// hintsAsked returns how often the tracker was asked for hints.
func (s *site) hintsAsked() int {
	s.t.Helper()
	return s.metric(s.registry, `spate_registry_requests_total{code="200",method="post",route="hint"} `)
}

// TestHintLogin: what the mesh has of a private repository is for those alone whom the registry lets in.
func TestHintLogin(t *testing.T) {
	s := newSite(t, []string{"a", "b"})
	p := s.pushPlain("private", 4<<20, 1)
	var blobs atomic.Int64
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: s.registry})
	door := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if user, pass, _ := req.BasicAuth(); strings.HasPrefix(req.URL.Path, "/v2/") && (user != "user" || pass != "pass") {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if strings.HasSuffix(req.URL.Path, "/blobs/"+p.digest().String()) {
			blobs.Add(1)
		}
		proxy.ServeHTTP(w, req)
	}))
	defer door.Close()
	s.registry = strings.TrimPrefix(door.URL, "http://")
	a, b, login := s.newPeer("a"), s.newPeer("b"), url.UserPassword("user", "pass")
	if err := a.pull(t.Context(), p, login); err != nil {
		t.Fatal(err)
	}
	for _, login := range []*url.Userinfo{nil, url.UserPassword("user", "wrong")} {
		if status, _, err := b.read(t.Context(), p, "manifests/v1", login); err != nil || status != http.StatusUnauthorized {
			t.Errorf("a manifest for %v: status %d, %v", login, status, err)
		}
		status, body, err := b.read(t.Context(), p, "blobs/"+p.digest().String(), login)
		if err != nil || status != http.StatusUnauthorized && status != http.StatusForbidden || len(body) >= len(p.blob) {
			t.Errorf("a blob for %v: status %d, %d bytes, %v", login, status, len(body), err)
		}
	}
	if err := b.pull(t.Context(), p, login); err != nil {
		t.Fatal(err)
	}
	b.hasTaken(1, "mesh-hint")
	if blobs.Load() != 1 {
		t.Errorf("the registry was asked %d times for the blob", blobs.Load())
	}
}
