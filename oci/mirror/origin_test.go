package mirror

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestRedirect holds that a blob is had from where the registry keeps it, and
// that the credential stays at the registry.
func TestRedirect(t *testing.T) {
	layer := random(100 << 10)
	var got []*http.Request
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		got = append(got, req)
		_, _ = w.Write(layer)
	}))
	defer store.Close()
	b := newBench(t, func(b *bench, opts *Options) {
		opts.Local = append(opts.Local, strings.TrimPrefix(store.URL, "http://"))
	})
	img := b.image("v1", layer)
	b.sign(img.desc)
	blob := "blobs/" + digest.FromBytes(layer).String()
	b.get("manifests/v1", "Authorization", "Basic c2VjcmV0").want(t, 200, must(json.Marshal(manifestOf(t, b, img))))
	b.before(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, store.URL+"/bucket?signature=secret", http.StatusTemporaryRedirect)
		})
	})
	b.get(blob, "Authorization", "Basic c2VjcmV0").want(t, 200, layer)
	if asked := b.asked(); len(asked) != 1 || asked[0].Header.Get("Authorization") != "Basic c2VjcmV0" {
		t.Errorf("the registry was asked %v", asked)
	}
	if len(got) != 1 || got[0].Header.Get("Authorization") != "" {
		t.Errorf("the store was asked %v", got)
	}
	b.before(func(http.Handler) http.Handler { return http.RedirectHandler("/", http.StatusFound) })
	b.get(blob).want(t, 502, []byte("redirects without end"))
	store.Close()
	b.before(func(http.Handler) http.Handler {
		return http.RedirectHandler(store.URL+"/bucket?signature=secret", http.StatusFound)
	})
	b.get(blob).want(t, 502, []byte("connection refused"))
	if log := b.log.String(); strings.Contains(log, "secret") || strings.Contains(log, "c2VjcmV0") {
		t.Errorf("the log holds a secret: %s", log)
	}
}

// TestLocal holds that the mirror is no way to this machine's own services.
func TestLocal(t *testing.T) {
	reached := false
	service := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer service.Close()
	port := service.URL[strings.LastIndexByte(service.URL, ':'):]
	b := newBench(t, nil)
	img := b.image("v1", random(10))
	b.sign(img.desc)
	for _, ns := range []string{"127.0.0.1" + port, "localhost" + port, "[::ffff:127.0.0.1]" + port, "127.1" + port, "0.0.0.0" + port} {
		a := b.raw(http.MethodGet, "/v2/team/app/tags/list?ns="+ns)
		if a.status != 403 && a.status != 502 { // 502 where the resolver does not know the spelling
			t.Errorf("ns=%s: status %d, %s", ns, a.status, a.body)
		}
	}
	b.raw(http.MethodGet, "/v2/team/app/tags/list?ns=127.0.0.1"+port).want(t, 403, []byte("this machine's own services"))
	b.before(func(http.Handler) http.Handler { return http.RedirectHandler(service.URL, http.StatusFound) })
	b.get("tags/list").want(t, 403, []byte("this machine's own services"))
	if reached {
		t.Error("a service was reached")
	}

	b = newBench(t, func(b *bench, opts *Options) { opts.Registries, opts.Local = []string{"ghcr.io"}, nil })
	b.get("tags/list").want(t, 403, []byte("not among those that are mirrored"))
}

func TestBadRequests(t *testing.T) {
	b := newBench(t, nil)
	for _, tt := range []struct {
		method, target string
		status         int
		text           string
	}{
		{"POST", "/v2/team/app/blobs/uploads/", 404, "no path that images are pulled by"},
		{"PUT", "/v2/team/app/manifests/v1?ns=ghcr.io", 405, "a mirror is read only"},
		{"DELETE", "/v2/team/app/manifests/v1?ns=ghcr.io", 405, "a mirror is read only"},
		{"POST", "/v2/?ns=ghcr.io", 405, "UNSUPPORTED"},
		{"GET", "/", 404, "UNSUPPORTED"},
		{"GET", "/v2/app", 404, "UNSUPPORTED"},
		{"GET", "/v2/app/tags/all", 404, "UNSUPPORTED"},
		{"GET", "/v2/App/tags/list", 400, "no repository name"},
		{"GET", "/v2/a/../b/tags/list", 400, "no repository name"},
		{"GET", "/v2/" + strings.Repeat("a", 256) + "/tags/list", 400, "no repository name"},
		{"GET", "/v2/app/manifests/.v1", 400, "neither a digest nor a tag"},
		{"GET", "/v2/app/manifests/sha256:12", 400, "parse digest"},
		{"GET", "/v2/app/blobs/v1", 400, "parse digest"},
		{"GET", "/v2/app/manifests/v1", 404, "names no registry"},
		{"GET", "/v2/", 404, "names no registry"},
		{"GET", "/v2/app/manifests/v1?ns=", 400, "is no registry"},
		{"GET", "/v2/app/manifests/v1?ns=a.example&ns=b.example", 400, "ns names 2 registries"},
		{"GET", "/v2/app/manifests/v1?ns=user:pass@ghcr.io", 400, "is no registry"},
		{"GET", "/v2/app/manifests/v1?ns=ghcr.io/x", 400, "is no registry"},
		{"GET", "/v2/app/manifests/v1?ns=ghcr.io:0", 400, "is no registry"},
		{"GET", "/v2/app/manifests/v1?ns=%5Bfe80::1%25eth0%5D", 400, "is no registry"},
	} {
		a := b.raw(tt.method, tt.target)
		if a.status != tt.status || !strings.Contains(string(a.body), tt.text) {
			t.Errorf("%s %s: status %d, %s; want %d, %s", tt.method, tt.target, a.status, a.body, tt.status, tt.text)
		}
		if tt.status == 405 && a.header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s %s: Allow %q", tt.method, tt.target, a.header.Get("Allow"))
		}
	}
	if n := len(b.asked()); n > 0 {
		t.Errorf("the registry was asked %d times", n)
	}
	for _, opts := range []Options{{Default: "http://x"}, {Registries: []string{"a b"}}, {Local: []string{""}}, {PlainHTTP: []string{"x/y"}}} {
		if _, err := New(opts); err == nil || !strings.Contains(err.Error(), "is no registry") {
			t.Errorf("New(%+v): %v", opts, err)
		}
	}
}

// TestLists passes lists through, page by page by way of the mirror.
func TestLists(t *testing.T) {
	b := newBench(t, func(b *bench, opts *Options) { opts.Default = b.host })
	img := b.image("v1", random(10))
	b.tag(img.desc, "v2")
	b.sign(img.desc)

	a := b.get("tags/list?n=1")
	a.want(t, 200, a.body)
	link := a.header.Get("Link")
	if !strings.Contains(string(a.body), `["v1"]`) || !strings.HasPrefix(link, "</v2/team/app/tags/list?") || !strings.Contains(link, "ns="+strings.ReplaceAll(b.host, ":", "%3A")) {
		t.Fatalf("body %s, Link %q", a.body, link)
	}
	next, _, _ := strings.Cut(link[1:], ">")
	if a := b.raw(http.MethodGet, next); !strings.Contains(string(a.body), `["v2"]`) {
		t.Errorf("next page %s: %s", next, a.body)
	}
	if a := b.get("referrers/" + img.desc.Digest.String()); a.status != 200 || !strings.Contains(string(a.body), "sigstore.bundle") {
		t.Errorf("referrers: %d, %s", a.status, a.body)
	}
	if a := b.get("referrers/" + img.desc.Digest.String() + "?artifactType=other"); !strings.Contains(string(a.body), `"manifests":[]`) || a.header.Get("Oci-Filters-Applied") != "artifactType" {
		t.Errorf("referrers: %v, %s", a.header, a.body)
	}
	// Without ns the default registry is meant.
	b.raw(http.MethodGet, "/v2/").want(t, 200, []byte("{}"))
	b.raw(http.MethodHead, "/v2/?ns="+b.host).want(t, 200, nil)
	if a := b.raw(http.MethodGet, "/v2/team/app/tags/list"); !strings.Contains(string(a.body), `["v1","v2"]`) {
		t.Errorf("default registry: %s", a.body)
	}
}
