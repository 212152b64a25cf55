package registry

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// nextPage returns where an answer's Link header leads; empty when there is none.
func (r response) nextPage(t *testing.T) string {
	t.Helper()
	link := r.header.Get("Link")
	if link == "" {
		return ""
	}
	rest, ok := strings.CutSuffix(link, `>; rel="next"`)
	if !ok || !strings.HasPrefix(rest, "</v2/") {
		t.Fatalf("Link %q", link)
	}
	return rest[1:]
}

func TestTags(t *testing.T) {
	c, _, _ := serve(t, t.TempDir(), Options{})
	if r := c.want(404, "GET", "/v2/r/tags/list", nil); r.code() != codeNameUnknown {
		t.Errorf("code %s", r.code())
	}
	c.pushBlob("r/inner", []byte(`{}`))
	c.want(404, "GET", "/v2/r/tags/list", nil) // r/inner does not make r a repository
	c.pushBlob("r", []byte(`{}`))
	c.want(200, "GET", "/v2/r/tags/list", nil)
	for _, tag := range []string{"b", "a", "_x", "v1.10", "v1.2", "Z"} {
		c.pushManifest("r", tag, image([]byte(`{}`)))
	}
	all := []string{"Z", "_x", "a", "b", "v1.10", "v1.2"}

	list := func(path string) (tags []string, next string) {
		t.Helper()
		r := c.want(200, "GET", path, nil)
		var doc struct{ Tags []string }
		if err := json.Unmarshal(r.body, &doc); err != nil {
			t.Fatal(err)
		}
		return doc.Tags, r.nextPage(t)
	}
	for _, tt := range []struct {
		query string
		want  []string
		more  bool
	}{
		{"", all, false},
		{"?last=a", all[3:], false},
		{"?last=aa", all[3:], false},
		{"?last=v1.2", nil, false},
		{"?n=2", all[:2], true},
		{"?n=2&last=_x", all[2:4], true},
		{"?n=6", all, false},
		{"?n=100", all, false},
		{"?n=0", nil, false},
	} {
		tags, next := list("/v2/r/tags/list" + tt.query)
		if !slices.Equal(tags, tt.want) || tags == nil || (next != "") != tt.more {
			t.Errorf("%q: %q, next %q; want %q", tt.query, tags, next, tt.want)
		}
	}
	for n := 1; n <= 4; n++ {
		var got []string
		for path := fmt.Sprintf("/v2/r/tags/list?n=%d", n); path != ""; {
			var tags []string
			tags, path = list(path)
			got = append(got, tags...)
		}
		if !slices.Equal(got, all) {
			t.Errorf("pages of %d: %q", n, got)
		}
	}
	c.want(400, "GET", "/v2/r/tags/list?n=-1", nil)
	c.want(400, "GET", "/v2/r/tags/list?n=x", nil)
}

func TestReferrers(t *testing.T) {
	c, _, _ := serve(t, t.TempDir(), Options{})
	config := []byte(`{}`)
	subject := descriptor(ocispec.MediaTypeImageManifest, marshal(t, image(config)))
	list := func(path string) (index ocispec.Index, r response) {
		t.Helper()
		r = c.want(200, "GET", path, nil)
		if got := r.header.Get("Content-Type"); got != ocispec.MediaTypeImageIndex {
			t.Errorf("Content-Type %q", got)
		}
		if err := json.Unmarshal(r.body, &index); err != nil {
			t.Fatal(err)
		}
		if index.Manifests == nil || index.SchemaVersion != 2 || index.MediaType != ocispec.MediaTypeImageIndex {
			t.Errorf("no index: %s", r.body)
		}
		return index, r
	}
	path := "/v2/r/referrers/" + subject.Digest.String()
	if index, _ := list(path); len(index.Manifests) > 0 {
		t.Errorf("referrers in an unknown repository: %v", index.Manifests)
	}

	c.pushBlob("r", config)
	var want []ocispec.Descriptor
	for i, artifactType := range []string{"", "x/a", "x/b", "x/a"} {
		m := image(config)
		m.Subject, m.ArtifactType = &subject, artifactType
		m.Annotations = map[string]string{"i": fmt.Sprint(i)}
		d := descriptor(ocispec.MediaTypeImageManifest, marshal(t, m))
		d.Annotations, d.ArtifactType = m.Annotations, artifactType
		if artifactType == "" {
			d.ArtifactType = m.Config.MediaType
		}
		c.pushManifest("r", d.Digest.String(), m)
		c.pushManifest("r", fmt.Sprint("t", i), m) // again: still one referrer
		want = append(want, d)
	}
	slices.SortFunc(want, func(a, b ocispec.Descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })

	index, r := list(path)
	if got, want := marshal(t, index.Manifests), marshal(t, want); string(got) != string(want) {
		t.Errorf("referrers\n%s\nwant\n%s", got, want)
	}
	if r.header.Get("OCI-Filters-Applied") != "" {
		t.Error("a filter applied that nobody asked for")
	}
	index, r = list(path + "?artifactType=x/a")
	if len(index.Manifests) != 2 || r.header.Get("OCI-Filters-Applied") != "artifactType" {
		t.Errorf("filtered: %d, %q", len(index.Manifests), r.header.Get("OCI-Filters-Applied"))
	}
	if index, _ := list(strings.Replace(path, "/r/", "/other/", 1)); len(index.Manifests) > 0 {
		t.Error("referrers show in another repository")
	}
	c.want(400, "GET", "/v2/r/referrers/sha256:x", nil)

	c.want(202, "DELETE", "/v2/r/manifests/"+want[0].Digest.String(), nil)
	if index, _ = list(path); len(index.Manifests) != 3 || index.Manifests[0].Digest != want[1].Digest {
		t.Errorf("after a delete: %v", index.Manifests)
	}
}

// Many referrers come in pages that clients with a limit of 4 MiB can read.
func TestReferrersPages(t *testing.T) {
	c, _, _ := serve(t, t.TempDir(), Options{})
	config := []byte(`{}`)
	c.pushBlob("r", config)
	subject := descriptor(ocispec.MediaTypeImageManifest, []byte("subject"))
	var want []digest.Digest
	for i := range 7 {
		m := image(config)
		m.Subject = &subject
		m.ArtifactType = "x/even"
		if i%2 == 1 {
			m.ArtifactType = "x/odd"
		}
		m.Annotations = map[string]string{"i": strings.Repeat(fmt.Sprint(i), referrersPageBytes*2/5)}
		want = append(want, c.pushManifest("r", fmt.Sprint("t", i), m))
	}
	slices.Sort(want)
	for query, n := range map[string]int{"": 7, "?artifactType=x/odd": 3, "?artifactType=x%2Feven": 4} {
		var got []digest.Digest
		pages := 0
		for path := "/v2/r/referrers/" + subject.Digest.String() + query; path != ""; pages++ {
			r := c.want(200, "GET", path, nil)
			if len(r.body) > 4<<20 {
				t.Errorf("a page of %d bytes", len(r.body))
			}
			var index ocispec.Index
			if err := json.Unmarshal(r.body, &index); err != nil {
				t.Fatal(err)
			}
			for _, d := range index.Manifests {
				got = append(got, d.Digest)
			}
			path = r.nextPage(t)
		}
		if len(got) != n || pages != (n+1)/2 || !slices.IsSorted(got) || n == 7 && !slices.Equal(got, want) {
			t.Errorf("%q: %d referrers on %d pages", query, len(got), pages)
		}
	}
}
