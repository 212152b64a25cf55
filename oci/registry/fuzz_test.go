package registry

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/spate-project/spate/oci"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// path writes a route as parseRoute reads it.
func (rt route) path() string {
	switch rt.kind {
	case kindBlob:
		return "/v2/" + rt.name + "/blobs/" + rt.digest.String()
	case kindUploads:
		return "/v2/" + rt.name + "/blobs/uploads/"
	case kindUpload:
		return "/v2/" + rt.name + "/blobs/uploads/" + rt.id
	case kindManifest:
		return "/v2/" + rt.name + "/manifests/" + rt.tag + rt.digest.String()
	case kindTags:
		return "/v2/" + rt.name + "/tags/list"
	case kindReferrers:
		return "/v2/" + rt.name + "/referrers/" + rt.digest.String()
	default:
		return "/v2/"
	}
}

// A path has one reading, and nothing in it leads out of the store.
func FuzzRoute(f *testing.F) {
	for _, p := range []string{
		"/v2/", "/v2", "/v2/a/blobs/" + someDigest, "/v2/a/b/blobs/uploads/", "/v2/a/blobs/uploads/ID",
		"/v2/a/manifests/latest", "/v2/a/manifests/" + someDigest, "/v2/a/tags/list", "/v2/a/referrers/" + someDigest,
		"/v2/blobs/uploads/blobs/uploads/x", "/v2/a/../../etc/manifests/x", "/v2/a/manifests/..", "/v2/a/blobs/uploads/..",
	} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p string) {
		rt, err := parseRoute(p)
		if err != nil {
			if status, code, _ := answer(err); status < 400 || status > 404 || code == "" {
				t.Errorf("%q: status %d, code %q", p, status, code)
			}
			return
		}
		if rt.kind == kindPing {
			return
		}
		if got := rt.path(); got != p {
			t.Errorf("%q was read as %q", p, got)
		}
		if rt.digest != "" && rt.digest.Validate() != nil || rt.tag != "" && (rt.tag[0] == '.' || strings.Contains(rt.tag, "/")) {
			t.Errorf("%q: %+v", p, rt)
		}
		if name := filepath.FromSlash(rt.name); !filepath.IsLocal(name) || filepath.Clean(name) != name || strings.Contains(rt.name, "/_") || rt.name[0] == '_' {
			t.Errorf("%q: repository %q", p, rt.name)
		}
	})
}

func FuzzChunk(f *testing.F) {
	for _, s := range []string{"0-0", "0-499", "500-999", "007-08", "9-1", "-", "1-", "bytes 0-1/2", "0-9223372036854775807", "+1-2"} {
		f.Add(s)
	}
	grammar := regexp.MustCompile(`^[0-9]+-[0-9]+$`)
	f.Fuzz(func(t *testing.T, s string) {
		c, err := parseChunk(s)
		if err != nil {
			return
		}
		if !grammar.MatchString(s) || c.first < 0 || c.size() < 1 {
			t.Errorf("%q: %+v", s, c)
		}
		if again, err := parseChunk(fmt.Sprintf("%d-%d", c.first, c.last)); err != nil || again != c {
			t.Errorf("%q: %+v, then %+v, %v", s, c, again, err)
		}
	})
}

func FuzzManifest(f *testing.F) {
	img := image([]byte(`{}`), []byte("layer"))
	f.Add(marshal(f, img))
	subject := descriptor("x/y", nil)
	img.Subject = &subject
	f.Add(marshal(f, img))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"` + someDigest + `"}]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":null,"config":null}`))
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"` + oci.MediaTypeDockerList + `","manifests":[],"layers":[]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := ParseManifest(raw, digest.SHA256)
		if err != nil {
			return
		}
		if !bytes.Equal(m.Bytes, raw) || m.Descriptor.Digest != digest.FromBytes(raw) || m.Descriptor.Size != int64(len(raw)) {
			t.Errorf("%q: descriptor %+v", raw, m.Descriptor)
		}
		if (m.Blobs == nil) == (m.Manifests == nil) {
			t.Errorf("%q is an image and an index, or neither", raw)
		}
		for _, d := range append(m.Blobs, m.Manifests...) {
			if d.Digest.Validate() != nil || d.Size < 0 {
				t.Errorf("%q refers to %+v", raw, d)
			}
		}
		if m.Subject != "" && m.Subject.Validate() != nil {
			t.Errorf("%q has subject %q", raw, m.Subject)
		}
	})
}

// Whatever is asked, the registry does not fail by itself.
func FuzzRequest(f *testing.F) {
	f.Add("GET", "/v2/r/blobs/"+someDigest, "", "bytes=0-1,-3", "", []byte{})
	f.Add("POST", "/v2/r/blobs/uploads/", "mount="+someDigest+"&from=r", "", "", []byte{})
	f.Add("POST", "/v2/r/blobs/uploads/", "digest="+someDigest, "", "", []byte{})
	f.Add("PATCH", "/v2/r/blobs/uploads/UPLOAD", "", "", "0-3", []byte("1234"))
	f.Add("PUT", "/v2/r/blobs/uploads/UPLOAD", "digest="+someDigest, "", "", []byte("1234"))
	f.Add("PUT", "/v2/r/manifests/latest", "", "", "", []byte(`{"schemaVersion":2,"manifests":[]}`))
	f.Add("GET", "/v2/r/tags/list", "n=1&last=a", "", "", []byte{})
	f.Add("GET", "/v2/r/referrers/"+someDigest, "artifactType=x&last=%00", "", "", []byte{})
	reg, err := Open(f.TempDir(), Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { reg.Close() })
	f.Fuzz(func(t *testing.T, method, path, query, rng, contentRange string, body []byte) {
		w := httptest.NewRecorder()
		reg.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "POST", "/v2/r/blobs/uploads/", nil))
		id := w.Header().Get("Location")[len("/v2/r/blobs/uploads/"):]

		req := httptest.NewRequestWithContext(t.Context(), "GET", "/", bytes.NewReader(body))
		req.Method, req.URL.Path, req.URL.RawQuery = method, strings.Replace(path, "UPLOAD", id, 1), query
		req.Header = http.Header{"Range": {rng}, "Content-Range": {contentRange}}
		w = httptest.NewRecorder()
		reg.ServeHTTP(w, req)
		if w.Code >= 500 {
			t.Errorf("%s %q?%q: status %d: %s", method, path, query, w.Code, w.Body)
		}
		if u, err := reg.Store().Upload("r", id); err == nil {
			u.Cancel()
		}
	})
}
