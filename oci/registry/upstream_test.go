package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/oci/remote"
)

// A home is a registry that others follow, whose answers a test may count and change.
type home struct {
	*client
	host   string
	reg    *Registry
	asked  atomic.Int64 // requests
	mu     sync.Mutex
	blobs  map[string]int // GETs of blobs by path
	change func(w http.ResponseWriter, r *http.Request) http.ResponseWriter
	down   atomic.Bool
}

func newHome(t *testing.T) *home {
	t.Helper()
	reg, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	h := &home{reg: reg, blobs: map[string]int{}}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.asked.Add(1)
		if h.down.Load() {
			panic(http.ErrAbortHandler)
		}
		h.mu.Lock()
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			h.blobs[r.URL.Path]++
		}
		change := h.change
		h.mu.Unlock()
		if change != nil {
			w = change(w, r)
		}
		reg.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = nil
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
		reg.Close()
	})
	h.client = &client{t: t, base: srv.URL, http: srv.Client()}
	h.host = strings.TrimPrefix(srv.URL, "http://")
	return h
}

func (h *home) alter(change func(http.ResponseWriter, *http.Request) http.ResponseWriter) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.change = change
}

// follow returns the options of a registry that has h's repositories below hub/.
func (h *home) follow() Options {
	return Options{Upstreams: upstreamAt(h.host), UpstreamStale: time.Hour}
}

func upstreamAt(host string) []Upstream {
	opts := remote.Options{Transport: &http.Transport{DisableKeepAlives: true}}
	return []Upstream{{Prefix: "hub/", Open: func(name string) (UpstreamRepository, error) { return remote.Open(host+"/"+name, opts) }}}
}

// pushImage pushes an image of one layer, and a signature as its referrer.
func (h *home) pushImage(layer []byte) (d digest.Digest) {
	h.t.Helper()
	config := []byte("{}")
	h.pushBlob("team/app", config)
	h.pushBlob("team/app", layer)
	m := image(config, layer)
	d = h.pushManifest("team/app", "v1", m)
	sig := image(config)
	subject := descriptor(m.MediaType, marshal(h.t, m))
	sig.Subject = &subject
	sig.ArtifactType = "application/vnd.example.signature"
	h.pushManifest("team/app", digest.FromBytes(marshal(h.t, sig)).String(), sig)
	return d
}

// TestFollow takes an image with its referrers from an upstream and serves all of it without.
func TestFollow(t *testing.T) {
	h := newHome(t)
	layer := noise(1, 3<<20)
	d := h.pushImage(layer)
	dir := t.TempDir()
	c, _, stop := serve(t, dir, h.follow())

	read := func(c *client) {
		t.Helper()
		if got := digest.FromBytes(c.want(200, "GET", "/v2/hub/team/app/manifests/v1", nil).body); got != d {
			t.Fatalf("the tag names %s, want %s", got, d)
		}
		var list ocispec.Index
		if err := json.Unmarshal(c.want(200, "GET", "/v2/hub/team/app/referrers/"+d.String(), nil).body, &list); err != nil {
			t.Fatal(err)
		}
		if len(list.Manifests) != 1 {
			t.Fatalf("%d referrers, want the signature", len(list.Manifests))
		}
		c.want(200, "GET", "/v2/hub/team/app/manifests/"+list.Manifests[0].Digest.String(), nil)
		if got := c.want(200, "GET", "/v2/hub/team/app/blobs/"+digest.FromBytes(layer).String(), nil).body; !bytes.Equal(got, layer) {
			t.Fatal("other bytes than the upstream's")
		}
	}
	c.want(404, "GET", "/v2/other/manifests/v1", nil)
	c.want(404, "GET", "/v2/hub/team/app/manifests/v2", nil)
	c.want(404, "GET", "/v2/hub/team/app/blobs/"+digest.FromString("nowhere").String(), nil)
	read(c)
	stop()
	h.down.Store(true)
	c, _, _ = serve(t, dir, h.follow())
	read(c)

	// What the upstream last said counts no longer than it may.
	old := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(filepath.Join(dir, followedPath("hub/team/app", "v1")), old, old); err != nil {
		t.Fatal(err)
	}
	r := c.want(502, "GET", "/v2/hub/team/app/manifests/v1", nil)
	if !strings.Contains(string(r.body), "upstream") {
		t.Errorf("the answer does not name the cause: %s", r.body)
	}
	c.want(200, "GET", "/v2/hub/team/app/manifests/"+d.String(), nil)
}

// TestFollowTag moves a tag with the upstream's, unless it was pushed here.
func TestFollowTag(t *testing.T) {
	h := newHome(t)
	h.pushImage(noise(1, 100))
	c, _, _ := serve(t, t.TempDir(), h.follow())
	c.want(200, "GET", "/v2/hub/team/app/manifests/v1", nil)
	moved := h.pushImage(noise(2, 100))
	if got := c.want(200, "HEAD", "/v2/hub/team/app/manifests/v1", nil).header.Get("Docker-Content-Digest"); got != moved.String() {
		t.Fatalf("the tag names %s, the upstream's %s", got, moved)
	}
	c.pushBlob("hub/team/app", []byte("own"))
	own := c.pushManifest("hub/team/app", "v1", image([]byte("own")))
	if got := digest.FromBytes(c.want(200, "GET", "/v2/hub/team/app/manifests/v1", nil).body); got != own {
		t.Fatalf("the tag names %s, not %s, which was pushed here", got, own)
	}
}

// TestFollowRests leaves an upstream alone that failed, and one that was just
// asked, where there is an answer here; for what is missing it is asked.
func TestFollowRests(t *testing.T) {
	h := newHome(t)
	d := h.pushImage(noise(1, 100))
	c, reg, _ := serve(t, t.TempDir(), h.follow())
	read := func(want int64) {
		t.Helper()
		before := h.asked.Load()
		c.want(200, "GET", "/v2/hub/team/app/manifests/v1", nil)
		c.want(200, "GET", "/v2/hub/team/app/referrers/"+d.String(), nil)
		if got := h.asked.Load() - before; want >= 0 && got != want {
			t.Errorf("%d requests to the upstream, want %d", got, want)
		}
	}
	read(-1)
	h.down.Store(true)
	read(-1) // it fails, which is noted
	read(0)
	before := h.asked.Load()
	c.want(502, "GET", "/v2/hub/team/app/manifests/v2", nil)
	if h.asked.Load() == before {
		t.Error("the upstream was not asked for what is not here")
	}
	h.down.Store(false)
	c.want(404, "GET", "/v2/hub/team/app/manifests/v2", nil) // it answers, which is noted too
	read(2)
	reg.follower.opts.UpstreamFresh = time.Hour
	read(0)
}

// TestFollowOnce lets many ask for ranges of one blob that is not here.
func TestFollowOnce(t *testing.T) {
	h := newHome(t)
	layer := noise(1, 5<<20)
	h.pushImage(layer)
	d := digest.FromBytes(layer)
	c, _, _ := serve(t, t.TempDir(), h.follow())
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			off := i * 100_000
			r := c.do("GET", "/v2/hub/team/app/blobs/"+d.String(), nil, "Range", fmt.Sprintf("bytes=%d-%d", off, off+99_999))
			if r.status != 206 || !bytes.Equal(r.body, layer[off:off+100_000]) {
				t.Errorf("range at %d: status %d, %d bytes", off, r.status, len(r.body))
			}
		})
	}
	wg.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := h.blobs["/v2/team/app/blobs/"+d.String()]; n != 1 {
		t.Errorf("the upstream was asked %d times for the blob, want once", n)
	}
}

// A cutter breaks the connection once an answer has n bytes.
type cutter struct {
	http.ResponseWriter
	n int
}

func (c *cutter) Write(b []byte) (int, error) {
	if len(b) > c.n {
		c.ResponseWriter.Write(b[:c.n])
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	c.n -= len(b)
	return c.ResponseWriter.Write(b)
}

// TestFollowResume goes on where a broken connection ended.
func TestFollowResume(t *testing.T) {
	h := newHome(t)
	layer := noise(1, 3<<20)
	h.pushImage(layer)
	var ranges []string
	h.alter(func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
		if r.Method != http.MethodGet {
			return w
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if ranges = append(ranges, r.Header.Get("Range")); len(ranges) == 1 {
			return &cutter{w, 1 << 20}
		}
		return w
	})
	c, _, _ := serve(t, t.TempDir(), h.follow())
	if got := c.want(200, "GET", "/v2/hub/team/app/blobs/"+digest.FromBytes(layer).String(), nil).body; !bytes.Equal(got, layer) {
		t.Fatal("other bytes than the upstream's")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(ranges) != 2 || strings.HasPrefix(ranges[1], "bytes=0-") {
		t.Errorf("asked for %q, want the rest alone after the break", ranges)
	}
}

// A liar changes the first byte of an answer.
type liar struct {
	http.ResponseWriter
	lied bool
}

func (l *liar) Write(b []byte) (int, error) {
	if !l.lied && len(b) > 0 {
		l.lied = true
		b = append([]byte{b[0] ^ 1}, b[1:]...)
	}
	return l.ResponseWriter.Write(b)
}

// TestFollowWrong has an upstream send other bytes than it says: none of them
// is kept, no reader gets a whole answer, and the right ones are taken later.
func TestFollowWrong(t *testing.T) {
	h := newHome(t)
	layer := noise(1, 2<<20)
	m := h.pushImage(layer)
	d := digest.FromBytes(layer)
	h.alter(func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
		if r.Method == http.MethodGet {
			return &liar{ResponseWriter: w}
		}
		return w
	})
	c, reg, _ := serve(t, t.TempDir(), h.follow())
	if r := c.do("GET", "/v2/hub/team/app/blobs/"+d.String(), nil); r.status == 200 {
		t.Error("a whole answer of wrong bytes")
	}
	if _, err := reg.Store().BlobSize("hub/team/app", d); err == nil {
		t.Error("wrong bytes are in the store")
	}
	c.want(502, "GET", "/v2/hub/team/app/manifests/"+m.String(), nil)
	h.alter(nil)
	if got := c.want(200, "GET", "/v2/hub/team/app/blobs/"+d.String(), nil).body; !bytes.Equal(got, layer) {
		t.Fatal("other bytes than the upstream's")
	}
	c.want(200, "GET", "/v2/hub/team/app/manifests/"+m.String(), nil)
}

// A staller holds an answer up once it has n bytes, until its client is gone.
type staller struct {
	http.ResponseWriter
	n    int
	gone <-chan struct{}
}

func (s *staller) Write(b []byte) (int, error) {
	if len(b) > s.n {
		s.ResponseWriter.Write(b[:s.n])
		s.ResponseWriter.(http.Flusher).Flush()
		<-s.gone
		panic(http.ErrAbortHandler)
	}
	s.n -= len(b)
	return s.ResponseWriter.Write(b)
}

// kill -9 while a blob is on its way and its start is read: nothing half is in
// the repository, what is left over is collected, and the blob can be had again.
func TestKillDuringFill(t *testing.T) {
	h := newHome(t)
	layer := noise(1, 4<<20)
	h.pushImage(layer)
	d := digest.FromBytes(layer)
	h.alter(func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
		if r.Method != http.MethodGet {
			return w
		}
		return &staller{w, 3 << 20, r.Context().Done()}
	})
	dir := t.TempDir()
	ch := startChild(t, dir, "REGISTRY_TEST_UPSTREAM="+h.host)
	if got := ch.want(206, "GET", "/v2/hub/team/app/blobs/"+d.String(), nil, "Range", "bytes=0-99999").body; !bytes.Equal(got, layer[:100_000]) {
		t.Fatal("other bytes than the upstream's")
	}
	ch.kill()
	h.alter(nil)

	c, reg, _ := serve(t, dir, h.follow())
	if _, err := reg.Store().BlobSize("hub/team/app", d); err == nil {
		t.Error("half a blob is in the repository")
	}
	if left, err := os.ReadDir(filepath.Join(dir, "uploads")); err != nil || len(left) != 1 {
		t.Errorf("%d uploads are left, want the one that was killed: %v", len(left), err)
	}
	if err := reg.Store().Sweep(time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "uploads")); err != nil || len(left) != 0 {
		t.Errorf("%d uploads are left: %v", len(left), err)
	}
	if got := c.want(200, "GET", "/v2/hub/team/app/blobs/"+d.String(), nil).body; !bytes.Equal(got, layer) {
		t.Fatal("other bytes than the upstream's")
	}
}
