package mirror

import (
	"bytes"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A sink notes what it was given, and what was said of it last.
type sink struct {
	bytes.Buffer
	whole, closed bool
}

func (s *sink) Commit() { s.whole = true }
func (s *sink) Close()  { s.closed = true }

// TestPassed gives out what the mesh passes on, or the origin's bytes, which a sink takes too, and tells why.
func TestPassed(t *testing.T) {
	layer := random(100 << 10)
	wrong := slices.Clone(layer)
	wrong[50<<10] ^= 1
	for name, tt := range map[string]struct {
		reason Reason
		mesh   bool   // it has the blob
		origin []byte // what the origin sends
		sink   bool
		header []string
		status int
		body   []byte
		whole  bool // the sink is told so
	}{
		"hint":          {reason: ByHint, mesh: true, status: 200, body: layer},
		"range of it":   {reason: ByHint, mesh: true, header: []string{"Range", "bytes=1000-2999"}, status: 206, body: layer[1000:3000]},
		"draw":          {reason: Draws, origin: layer, sink: true, status: 200, body: layer, whole: true},
		"range of that": {reason: Draws, origin: layer, sink: true, header: []string{"Range", "bytes=1000-2999"}, status: 200, body: layer, whole: true},
		"no bytes":      {reason: Draws, origin: layer, sink: true, header: []string{"If-None-Match", etag(digest.FromBytes(layer))}, status: 304},
		"wrong bytes":   {reason: WrongHint, origin: wrong, sink: true, status: 200, body: wrong[:len(wrong)-maxTail]},
		"alone":         {reason: NoTracker, origin: layer, status: 200, body: layer},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			img := b.image("v1", layer)
			b.sign(img.desc)
			if a := b.get("manifests/v1"); a.status != 200 {
				t.Fatalf("%s", a.body)
			}
			taken, asked := &sink{}, 0
			b.mesh.pass = func(blob ocispec.Descriptor) Passed {
				if asked++; blob.Digest != digest.FromBytes(layer) || blob.Size != int64(len(layer)) {
					t.Errorf("the mesh is asked for %+v", blob)
				}
				p := Passed{Reason: tt.reason}
				if tt.mesh {
					p.Reader = &held{Reader: bytes.NewReader(layer)}
				}
				if tt.sink {
					p.Sink = taken
				}
				return p
			}
			b.before(func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
					if tt.origin == nil {
						t.Errorf("the origin is asked for %s", req.URL)
					}
					if req.Method == http.MethodGet {
						w.Header().Set("Content-Length", strconv.Itoa(len(tt.origin)))
						w.Write(tt.origin)
					}
				})
			})
			a := b.get("blobs/"+digest.FromBytes(layer).String(), tt.header...)
			if broken := name == "wrong bytes"; a.status != tt.status || (a.err != nil) != broken || !bytes.Equal(a.body, tt.body[:len(a.body)]) || !broken && len(a.body) < len(tt.body) {
				t.Fatalf("status %d, %d bytes, error %v; want %d, %d bytes", a.status, len(a.body), a.err, tt.status, len(tt.body))
			}
			b.front.Close() // the request is over
			if asked != 1 {
				t.Errorf("the mesh is asked %d times", asked)
			}
			if tt.sink && (!taken.closed || taken.whole != tt.whole || tt.whole && !bytes.Equal(taken.Bytes(), layer)) {
				t.Errorf("the sink has %d bytes, closed %v, whole %v; want whole %v", taken.Len(), taken.closed, taken.whole, tt.whole)
			}
			given := int64(1)
			if len(tt.body) == 0 || a.err != nil {
				given = 0
			}
			if n := b.mirror.Blobs(); n[tt.reason] != given || len(n) != len(Reasons()) {
				t.Errorf("counts %v, want %d of %s", n, given, tt.reason)
			}
			if log := b.log.String(); !strings.Contains(log, "why="+string(tt.reason)) {
				t.Errorf("the log does not say why: %s", log)
			}
		})
	}
}

// TestPassedHead: who only asks whether a blob is there makes no node draw it.
func TestPassedHead(t *testing.T) {
	b := newBench(t, nil)
	layer := random(1000)
	img := b.image("v1", layer)
	b.sign(img.desc)
	if a := b.get("manifests/v1"); a.status != 200 {
		t.Fatalf("%s", a.body)
	}
	b.mesh.pass = func(ocispec.Descriptor) Passed {
		t.Error("the mesh is asked")
		return Passed{Reason: NoMesh}
	}
	b.do(http.MethodHead, "blobs/"+digest.FromBytes(layer).String()).want(t, 200, nil)
	for r, n := range b.mirror.Blobs() {
		if n != 0 {
			t.Errorf("%d blobs are counted as %s", n, r)
		}
	}
}
