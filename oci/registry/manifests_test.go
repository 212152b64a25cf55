package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/oci"
)

func TestManifestRoundTrip(t *testing.T) {
	c, _, _ := serve(t, t.TempDir(), Options{})
	config, layer := []byte(`{}`), noise(1, 100)
	c.pushBlob("r", config)
	c.pushBlob("r", layer)
	img := marshal(t, image(config, layer))
	index := marshal(t, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{descriptor(ocispec.MediaTypeImageManifest, img)},
	})
	docker := bytes.Replace(img, []byte(ocispec.MediaTypeImageManifest), []byte(oci.MediaTypeDockerManifest), 1)
	list := bytes.Replace(index, []byte(ocispec.MediaTypeImageIndex), []byte(oci.MediaTypeDockerList), 1)
	bare := bytes.Replace(img, []byte(`"mediaType":"`+ocispec.MediaTypeImageManifest+`",`), nil, 1)
	bareIndex := bytes.Replace(index, []byte(`"mediaType":"`+ocispec.MediaTypeImageIndex+`",`), nil, 1)
	spaced := append([]byte("\n  "), append(img, " \t\n"...)...)

	for _, tt := range []struct {
		name, mediaType string
		raw             []byte
	}{
		{"image", ocispec.MediaTypeImageManifest, img},
		{"index", ocispec.MediaTypeImageIndex, index},
		{"docker-image", oci.MediaTypeDockerManifest, docker},
		{"docker-list", oci.MediaTypeDockerList, list},
		{"no-media-type", ocispec.MediaTypeImageManifest, bare},
		{"no-media-type-index", ocispec.MediaTypeImageIndex, bareIndex},
		{"spaces", ocispec.MediaTypeImageManifest, spaced},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := digest.FromBytes(tt.raw)
			c.want(201, "PUT", "/v2/r/manifests/"+tt.name, tt.raw, "Content-Type", tt.mediaType+"; charset=utf-8")
			c.want(201, "PUT", "/v2/r/manifests/"+d.String(), tt.raw)
			for _, reference := range []string{tt.name, d.String()} {
				r := c.want(200, "GET", "/v2/r/manifests/"+reference, nil)
				if !bytes.Equal(r.body, tt.raw) {
					t.Errorf("%s: %q", reference, r.body)
				}
				head := c.want(200, "HEAD", "/v2/r/manifests/"+reference, nil)
				for name, want := range map[string]string{
					"Content-Type": tt.mediaType, "Content-Length": fmt.Sprint(len(tt.raw)),
					"Docker-Content-Digest": d.String(), "Etag": `"` + d.String() + `"`,
				} {
					if got := r.header.Get(name); got != want {
						t.Errorf("%s %q, want %q", name, got, want)
					}
					if got := head.header.Get(name); got != want {
						t.Errorf("head: %s %q, want %q", name, got, want)
					}
				}
				c.want(304, "GET", "/v2/r/manifests/"+reference, nil, "If-None-Match", `"`+d.String()+`"`)
			}
		})
	}

	t.Run("sha512", func(t *testing.T) {
		d := digest.SHA512.FromBytes(img)
		r := c.want(201, "PUT", "/v2/r/manifests/"+d.String(), img)
		if got := r.header.Get("Location"); got != "/v2/r/manifests/"+d.String() {
			t.Errorf("Location %q", got)
		}
		c.want(200, "GET", "/v2/r/manifests/"+d.String(), nil)
	})
	t.Run("tags beside a digest", func(t *testing.T) {
		d := digest.FromBytes(img)
		r := c.want(201, "PUT", "/v2/r/manifests/"+d.String()+"?tag=one&tag=two", img)
		if got := r.header.Get("OCI-Tag"); got != "one, two" {
			t.Errorf("OCI-Tag %q", got)
		}
		c.want(200, "GET", "/v2/r/manifests/two", nil)
		c.want(400, "PUT", "/v2/r/manifests/"+d.String()+"?tag=-no", img)
	})
}

func TestManifestRefusals(t *testing.T) {
	c, _, _ := serve(t, t.TempDir(), Options{MaxManifestBytes: 4096})
	config, layer := []byte(`{}`), noise(1, 100)
	c.pushBlob("r", config)
	c.pushBlob("r", layer)
	good := image(config, layer)
	edit := func(f func(m map[string]any)) []byte {
		var m map[string]any
		if err := json.Unmarshal(marshal(t, good), &m); err != nil {
			t.Fatal(err)
		}
		f(m)
		return marshal(t, m)
	}
	absent := noise(2, 10)

	for _, tt := range []struct {
		name, reference, contentType string
		raw                          []byte
		status                       int
		code                         string
	}{
		{"no JSON", "t", "", []byte("{"), 400, codeManifestInvalid},
		{"nothing", "t", "", nil, 400, codeManifestInvalid},
		{"list", "t", "", []byte("[]"), 400, codeManifestInvalid},
		{"schema 1", "t", "", edit(func(m map[string]any) { m["schemaVersion"] = 1 }), 400, codeManifestInvalid},
		{"unknown type", "t", "", edit(func(m map[string]any) { m["mediaType"] = "text/plain" }), 400, codeManifestInvalid},
		{"another Content-Type", "t", ocispec.MediaTypeImageIndex, marshal(t, good), 400, codeManifestInvalid},
		{"no Content-Type at all", "t", ";", marshal(t, good), 400, codeManifestInvalid},
		{"no config", "t", "", edit(func(m map[string]any) { delete(m, "config") }), 400, codeManifestInvalid},
		{"image and index", "t", "", edit(func(m map[string]any) { m["manifests"] = []any{} }), 400, codeManifestInvalid},
		{"index with layers", "t", "", edit(func(m map[string]any) {
			m["mediaType"], m["manifests"] = ocispec.MediaTypeImageIndex, []any{}
			delete(m, "config")
		}), 400, codeManifestInvalid},
		{"bad digest within", "t", "", edit(func(m map[string]any) {
			m["config"].(map[string]any)["digest"] = "sha256:../../x"
		}), 400, codeManifestInvalid},
		{"bad subject", "t", "", edit(func(m map[string]any) {
			m["subject"] = map[string]any{"digest": "../x"}
		}), 400, codeManifestInvalid},
		{"wrong size", "t", "", edit(func(m map[string]any) {
			m["config"].(map[string]any)["size"] = 3
		}), 400, codeManifestInvalid},
		{"blobs unknown", "t", "", marshal(t, image(config, absent, noise(3, 10))), 400, codeManifestBlobUnknown},
		{"manifest unknown", "t", "", marshal(t, ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2},
			Manifests: []ocispec.Descriptor{descriptor(ocispec.MediaTypeImageManifest, absent)},
		}), 400, codeManifestBlobUnknown},
		{"too large", "t", "", edit(func(m map[string]any) { m["x"] = strings.Repeat("x", 4096) }), 413, codeSizeInvalid},
		{"another digest", digest.FromString("x").String(), "", marshal(t, good), 400, codeDigestInvalid},
		{"bad digest", "sha256:xyz", "", marshal(t, good), 400, codeDigestInvalid},
		{"bad tag", "-t", "", marshal(t, good), 400, codeManifestInvalid},
		{"long tag", strings.Repeat("t", 129), "", marshal(t, good), 400, codeManifestInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := c.want(tt.status, "PUT", "/v2/r/manifests/"+tt.reference, tt.raw, "Content-Type", tt.contentType)
			if r.code() != tt.code {
				t.Errorf("code %q, want %q: %s", r.code(), tt.code, r.body)
			}
		})
	}
	c.want(404, "GET", "/v2/r/manifests/t", nil)

	r := c.want(400, "PUT", "/v2/r/manifests/t", marshal(t, image(config, absent, noise(3, 10))))
	var doc struct {
		Errors []struct {
			Detail struct{ Digest digest.Digest }
		}
	}
	if err := json.Unmarshal(r.body, &doc); err != nil || len(doc.Errors) != 2 || doc.Errors[0].Detail.Digest != digest.FromBytes(absent) {
		t.Errorf("each missing blob is an error of its own: %s", r.body)
	}
}

func TestManifestNeedsNotEverything(t *testing.T) {
	c, _, _ := serve(t, t.TempDir(), Options{})
	config := []byte(`{}`)
	c.pushBlob("r", config)
	m := image(config)
	subject := descriptor(ocispec.MediaTypeImageManifest, []byte("never pushed"))
	m.Subject = &subject
	m.Layers = []ocispec.Descriptor{
		{MediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Digest: digest.FromString("elsewhere"), Size: 9},
		{MediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Digest: digest.FromString("elsewhere"), Size: 9},
	}
	raw := marshal(t, m)
	r := c.want(201, "PUT", "/v2/r/manifests/t", raw)
	if got := r.header.Get("OCI-Subject"); got != subject.Digest.String() {
		t.Errorf("OCI-Subject %q", got)
	}
	// An index may list blobs: builders keep their cache so.
	c.pushManifest("r", "cache", ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		Manifests: []ocispec.Descriptor{descriptor("application/x-layer", config), descriptor(ocispec.MediaTypeImageManifest, raw)},
	})
}

func TestManifestDelete(t *testing.T) {
	c, _, _ := serve(t, t.TempDir(), Options{})
	config := []byte(`{}`)
	c.pushBlob("r", config)
	d := c.pushManifest("r", "one", image(config))
	c.pushManifest("r", "two", image(config))
	other := c.pushManifest("r", "three", image(config, config))

	c.want(202, "DELETE", "/v2/r/manifests/one", nil)
	c.want(404, "GET", "/v2/r/manifests/one", nil)
	c.want(404, "DELETE", "/v2/r/manifests/one", nil)
	c.want(200, "GET", "/v2/r/manifests/two", nil)
	c.want(202, "DELETE", "/v2/r/manifests/"+d.String(), nil)
	c.want(404, "GET", "/v2/r/manifests/two", nil)
	c.want(404, "GET", "/v2/r/manifests/"+d.String(), nil)
	c.want(404, "DELETE", "/v2/r/manifests/"+d.String(), nil)
	if r := c.want(200, "GET", "/v2/r/tags/list", nil); string(r.body) != `{"name":"r","tags":["three"]}` {
		t.Errorf("tags %s", r.body)
	}
	c.want(202, "DELETE", "/v2/r/manifests/"+other.String(), nil)
	if r := c.want(200, "GET", "/v2/r/tags/list", nil); string(r.body) != `{"name":"r","tags":[]}` {
		t.Errorf("tags %s", r.body)
	}
}
