package mirror

import (
	"net/url"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/oci"
)

// FuzzRoute holds that a path says one thing, which leads to the same path at the origin.
func FuzzRoute(f *testing.F) {
	for _, s := range []string{
		"/v2/", "/v2", "/v2/a/b/manifests/v1", "/v2/tags/list/tags/list", "/v2/a/blobs/" + digest.FromString("x").String(),
		"/v2/a/referrers/" + digest.FromString("x").String(), "/v2/a//manifests/v1", "/v2/../../manifests/v1", "/v2/a/manifests/v1?x", "//v2/a",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		rt, err := parseRoute(path)
		if err != nil || rt.what == ping {
			return
		}
		if got := "/v2/" + rt.name + "/" + rt.rest(); got != path {
			t.Errorf("%q became %q", path, got)
		}
		u, err := url.Parse("https://ghcr.io/v2/" + rt.name + "/" + rt.rest())
		if err != nil || u.Path != path || u.RawQuery != "" || u.Fragment != "" || u.Host != "ghcr.io" || strings.Contains(path, "..") && strings.Contains(path, "/../") {
			t.Errorf("%q leads to %v, %v", path, u, err)
		}
	})
}

// FuzzHost holds that a registry's name is a host and nothing else of an address.
func FuzzHost(f *testing.F) {
	for _, s := range []string{"ghcr.io", "127.0.0.1:5000", "[::1]:5000", "[::1]", "LOCALHOST", "a:b@c", "a/b", "a?b", "a#b", "::1", "a:65536", "a.:1", "xn--a.b", "[fe80::1%1]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, err := parseHost(s)
		if err != nil {
			return
		}
		u, err := url.Parse("https://" + host + "/v2/")
		if err != nil || u.Host != host || u.Path != "/v2/" || u.User != nil || !strings.EqualFold(host, s) {
			t.Errorf("%q became %q: %v, %v", s, host, u, err)
		}
		if again, err := parseHost(host); again != host || err != nil {
			t.Errorf("%q became %q, then %q, %v", s, host, again, err)
		}
	})
}

// FuzzManifest holds that a manifest is an image or an index, never both, and lists what has a digest.
func FuzzManifest(f *testing.F) {
	d := `{"digest":"` + digest.FromString("x").String() + `","size":1}`
	for _, s := range []string{`{"config":` + d + `,"layers":[` + d + `]}`, `{"manifests":[` + d + `]}`, `{"config":` + d + `,"manifests":[]}`, `{}`, `null`, `[`, `{"config":{"digest":"x"}}`, `{"config":{"size":-1}}`} {
		f.Add(ocispec.MediaTypeImageManifest, []byte(s))
		f.Add(oci.MediaTypeDockerList, []byte(s))
	}
	f.Fuzz(func(t *testing.T, mediaType string, raw []byte) {
		m, err := parseManifest("r", mediaType, digest.SHA256, raw)
		if err != nil {
			return
		}
		other := map[bool]string{true: ocispec.MediaTypeImageManifest, false: ocispec.MediaTypeImageIndex}[m.index]
		if o, err := parseManifest("r", other, digest.SHA256, raw); err == nil {
			t.Errorf("%s is a %s and a %s", raw, m.desc.MediaType, o.desc.MediaType)
		}
		for _, d := range m.lists {
			if d.Digest.Validate() != nil || d.Size < 0 {
				t.Errorf("it lists %+v", d)
			}
		}
	})
}

// FuzzNextPage holds that the next page is asked of the mirror, of the same registry.
func FuzzNextPage(f *testing.F) {
	for _, s := range []string{`</v2/a/tags/list?last=x&n=1>; rel="next"`, `<https://evil.example/?ns=evil.example>; rel=next`, `</>; rel="prev"`, `<`, "</%zz>; rel=next", "<\n?a>; rel=next"} {
		f.Add(s)
	}
	asked := &url.URL{Path: "/v2/a/tags/list", RawQuery: "ns=ghcr.io"}
	f.Fuzz(func(t *testing.T, link string) {
		next := nextPage(link, asked)
		if next == "" {
			return
		}
		target, ok := strings.CutSuffix(next, `>; rel="next"`)
		u, err := url.Parse(strings.TrimPrefix(target, "<"))
		if !ok || err != nil || u.Host != "" || u.Path != asked.Path || len(u.Query()["ns"]) != 1 || u.Query().Get("ns") != "ghcr.io" || strings.ContainsAny(next, "\r\n") {
			t.Errorf("%q became %q: %v", link, next, err)
		}
	})
}
