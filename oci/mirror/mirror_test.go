package mirror

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/signing"
)

func TestManifest(t *testing.T) {
	b := newBench(t, nil)
	img := b.image("v1", random(100))
	b.sign(img.desc)
	d := img.desc.Digest.String()

	first := b.get("manifests/v1")
	first.want(t, 200, first.body)
	if digest.FromBytes(first.body) != img.desc.Digest {
		t.Fatalf("other bytes: %q", first.body)
	}
	for _, rest := range []string{"manifests/v1", "manifests/" + d} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			a := b.do(method, rest)
			body := first.body
			if method == http.MethodHead {
				body = nil
			}
			a.want(t, 200, body)
			for name, want := range map[string]string{
				"Docker-Content-Digest": d, "Etag": `"` + d + `"`, "Content-Type": ocispec.MediaTypeImageManifest,
				"Content-Length": strconv.FormatInt(img.desc.Size, 10),
			} {
				if got := a.header.Get(name); got != want {
					t.Errorf("%s %s: %s is %q, want %q", method, rest, name, got, want)
				}
			}
			b.do(method, rest, "If-None-Match", `"`+d+`"`).want(t, 304, nil)
		}
	}
	b.get("manifests/none").want(t, 404, []byte("MANIFEST_UNKNOWN"))
	b.get("manifests/"+digest.FromString("none").String()).want(t, 404, []byte("MANIFEST_UNKNOWN"))

	// A digest that was admitted needs no origin, and a HEAD of a tag no body.
	b.before(nil)
	b.get("manifests/"+d).want(t, 200, first.body)
	b.do(http.MethodHead, "manifests/v1").want(t, 200, nil)
	if asked := b.asked(); len(asked) != 1 || asked[0].Method != http.MethodHead {
		t.Errorf("the origin was asked %d times", len(asked))
	}
	if s := b.mirror.Stats(); s.Memory.Answers != 5 || s.Memory.Bytes != 2*img.desc.Size || s.Denied.Answers != 0 || s.Failed.Answers != 0 || s.Origin.Answers != 8 {
		t.Errorf("counts %+v", s)
	}
}

// TestDenied holds that nothing of an unsigned image is given out, by whatever name.
func TestDenied(t *testing.T) {
	b := newBench(t, nil)
	layer := random(100)
	img := b.image("v1", layer)
	idx := b.index("multi", img)
	other := b.image("signed", random(100))
	b.sign(other.desc)
	b.mesh.hold(layer)
	b.get("manifests/signed").want(t, 200, must(json.Marshal(manifestOf(t, b, other))))

	for _, rest := range []string{
		"manifests/v1", "manifests/" + img.desc.Digest.String(), "manifests/multi", "manifests/" + idx.Digest.String(),
		"blobs/" + digest.FromBytes(layer).String(), "blobs/" + digest.FromBytes(img.config).String(),
		"blobs/" + img.desc.Digest.String(), "blobs/" + idx.Digest.String(),
		"manifests/" + digest.FromBytes(other.layers[0]).String(), // no manifest at the origin, whoever lists it
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			a := b.do(method, rest)
			if strings.HasSuffix(rest, digest.FromBytes(other.layers[0]).String()) {
				if a.status != 404 {
					t.Errorf("%s %s: status %d", method, rest, a.status)
				}
				continue
			}
			if a.status != 403 || bytes.Contains(a.body, layer) {
				t.Errorf("%s %s: status %d, body %q", method, rest, a.status, a.body)
			}
		}
	}
	if len(b.mesh.asked) > 0 {
		t.Errorf("the mesh was asked for %q", b.mesh.asked)
	}
	var doc struct {
		Errors []struct {
			Code, Message string
			Detail        map[string]string
		}
	}
	if err := json.Unmarshal(b.get("manifests/v1").body, &doc); err != nil || len(doc.Errors) != 1 {
		t.Fatal(doc, err)
	}
	e := doc.Errors[0]
	if e.Code != "DENIED" || e.Detail["reference"] != b.host+"/team/app:v1" || e.Detail["digest"] != img.desc.Digest.String() ||
		!strings.Contains(e.Detail["rule"], "ours.pub") || !strings.Contains(e.Detail["missing"], "no signature") ||
		!strings.Contains(e.Detail["next"], "cosign sign") {
		t.Errorf("error %+v", e)
	}
	for _, part := range []string{e.Detail["reference"], e.Detail["digest"], e.Detail["rule"], e.Detail["missing"], e.Detail["next"]} {
		if !strings.Contains(e.Message, part) {
			t.Errorf("message %q does not hold %q", e.Message, part)
		}
	}
	if s := b.mirror.Stats(); s.Denied.Answers != 17 || s.Mesh.Answers != 0 {
		t.Errorf("counts %+v", s)
	}
	if log := b.log.String(); !strings.Contains(log, "level=WARN msg=\"mirror request\" path=denied") {
		t.Errorf("log %s", log)
	}

	// A refusal is not remembered: signed now, it is admitted now.
	b.sign(img.desc)
	if a := b.get("manifests/v1"); a.status != 200 {
		t.Errorf("signed, and status %d: %s", a.status, a.body)
	}
	b.get("blobs/"+digest.FromBytes(layer).String()).want(t, 200, layer)
}

// manifestOf reads an image's manifest from the registry.
func manifestOf(t *testing.T, b *bench, img image) (m ocispec.Manifest) {
	t.Helper()
	r := must(b.repo.Fetch(t.Context(), img.desc))
	defer r.Close()
	if err := json.NewDecoder(r).Decode(&m); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestMultiPlatform holds that one signature over the image index is enough, for what it lists and no more.
func TestMultiPlatform(t *testing.T) {
	b := newBench(t, nil)
	amd, arm, stranger := b.image("", []byte("amd64 layer")), b.image("", []byte("arm64 layer")), b.image("", []byte("no layer"))
	idx := b.index("v1", amd, arm)
	b.sign(idx)

	// By digest alone, a platform's manifest would need a signature of its own.
	b.get("manifests/"+amd.desc.Digest.String()).want(t, 403, []byte("no signature"))

	// A client that has the manifests from before asks for the name and then for blobs.
	if a := b.do(http.MethodHead, "manifests/v1"); a.status != 200 || a.header.Get("Docker-Content-Digest") != idx.Digest.String() {
		t.Fatalf("status %d, %v", a.status, a.header)
	}
	b.get("blobs/"+digest.FromBytes(arm.layers[0]).String()).want(t, 200, arm.layers[0])
	if want := b.host + "/team/app@" + arm.desc.Digest.String(); len(b.mesh.asked) != 1 || b.mesh.asked[0] != want {
		t.Errorf("the mesh was asked as %q, want %s", b.mesh.asked, want)
	}
	for _, img := range []image{amd, arm} {
		if a := b.get("manifests/" + img.desc.Digest.String()); a.status != 200 || digest.FromBytes(a.body) != img.desc.Digest {
			t.Errorf("status %d, body %s", a.status, a.body)
		}
		b.get("blobs/"+digest.FromBytes(img.config).String()).want(t, 200, img.config)
	}
	b.get("manifests/"+stranger.desc.Digest.String()).want(t, 403, []byte("no signature"))
	b.get("blobs/"+digest.FromBytes(stranger.layers[0]).String()).want(t, 403, []byte("pull the image by its name again"))

	// In another repository nothing of that counts.
	b.raw(http.MethodGet, "/v2/team/other/blobs/"+digest.FromBytes(amd.config).String()+"?ns="+b.host).want(t, 403, []byte("DENIED"))
}

func TestBlobPaths(t *testing.T) {
	b := newBench(t, nil)
	big, small := random(300<<10), random(1000)
	img := b.image("v1", big, small)
	b.sign(img.desc)
	b.mesh.hold(big)
	if a := b.get("manifests/v1"); a.status != 200 {
		t.Fatalf("%s", a.body)
	}
	bigBlob, smallBlob := "blobs/"+digest.FromBytes(big).String(), "blobs/"+digest.FromBytes(small).String()
	before := b.mirror.Stats()

	b.before(nil)
	b.get(bigBlob).want(t, 200, big)
	ranged := b.get(bigBlob, "Range", "bytes=1000-1999")
	ranged.want(t, 206, big[1000:2000])
	if got, want := ranged.header.Get("Content-Range"), fmt.Sprintf("bytes 1000-1999/%d", len(big)); got != want {
		t.Errorf("Content-Range %q, want %q", got, want)
	}
	b.get(bigBlob, "If-None-Match", `"`+digest.FromBytes(big).String()+`"`).want(t, 304, nil)
	b.get(bigBlob, "Range", "bytes=9999999-").want(t, 416, []byte("invalid range"))
	if a := b.do(http.MethodHead, bigBlob); a.status != 200 || a.header.Get("Content-Length") != strconv.Itoa(len(big)) {
		t.Errorf("HEAD: status %d, %v", a.status, a.header)
	}
	if n := len(b.asked()); n > 0 {
		t.Errorf("the origin was asked %d times for what the mesh has", n)
	}

	b.get(smallBlob).want(t, 200, small)
	b.get(smallBlob, "Range", "bytes=10-19").want(t, 200, small) // a part could not be checked
	b.get(smallBlob, "If-None-Match", `"`+digest.FromBytes(small).String()+`"`).want(t, 304, nil)
	if a := b.do(http.MethodHead, smallBlob); a.status != 200 || a.header.Get("Content-Length") != "1000" || a.header.Get("Docker-Content-Digest") != digest.FromBytes(small).String() {
		t.Errorf("HEAD: status %d, %v", a.status, a.header)
	}
	got, want := b.mirror.Stats(), before
	want.Mesh, want.Origin = Count{5, int64(len(big)) + 1000}, Count{before.Origin.Answers + 4, before.Origin.Bytes + 2000}
	want.Mesh.Bytes = got.Mesh.Bytes // 416 has a text of net/http's
	if got != want || got.Mesh.Bytes < int64(len(big))+1000 {
		t.Errorf("counts %+v, want %+v", got, want)
	}
	if log := b.log.String(); !strings.Contains(log, "level=INFO msg=\"mirror request\" path=mesh") || !strings.Contains(log, "level=INFO msg=\"mirror request\" path=origin") {
		t.Errorf("log %s", log)
	}

	// What fails in the mesh before its first byte comes from the origin, what is not trusted from nowhere.
	b.mesh.err = errors.New("the disk is full")
	b.get(bigBlob).want(t, 200, big)
	b.mesh.err = &signing.DeniedError{Reference: "x", Rule: "r", Missing: "quarantined", Next: "n"}
	b.get(bigBlob).want(t, 403, []byte("quarantined"))
	b.mesh.err = fmt.Errorf("open: %w", piece.ErrNotTrusted)
	b.get(bigBlob).want(t, 403, []byte("DENIED"))

	// What fails later is a broken transfer.
	b.mesh.err, b.mesh.cut = nil, 100<<10
	if a := b.get(bigBlob); a.err == nil || len(a.body) >= len(big) || !bytes.HasPrefix(big, a.body) {
		t.Errorf("%d bytes, error %v", len(a.body), a.err)
	}
	if s := b.mirror.Stats(); s.Failed.Answers != 1 {
		t.Errorf("counts %+v", s)
	}
}

// TestOriginDown holds that what was admitted and is in the mesh needs no registry.
func TestOriginDown(t *testing.T) {
	b := newBench(t, nil)
	layer := random(100 << 10)
	img := b.image("v1", layer)
	b.sign(img.desc)
	b.mesh.hold(layer)
	manifest := b.get("manifests/v1").body
	b.server.Close()

	b.get("blobs/"+digest.FromBytes(layer).String()).want(t, 200, layer)
	b.get("manifests/"+img.desc.Digest.String()).want(t, 200, manifest)
	for _, rest := range []string{"manifests/v1", "blobs/" + digest.FromBytes(img.config).String(), "tags/list"} {
		b.get(rest).want(t, 502, []byte("connection refused"))
	}
}

// TestTampered holds that an origin's wrong bytes never look like the right ones.
func TestTampered(t *testing.T) {
	b := newBench(t, nil)
	layer := random(300 << 10)
	img := b.image("v1", layer)
	b.sign(img.desc)
	right := b.get("manifests/v1").body
	blob := "/blobs/" + digest.FromBytes(layer).String()
	lie := func(suffix string, header map[string]string, body []byte) {
		b.before(func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if !strings.HasSuffix(req.URL.Path, suffix) {
					next.ServeHTTP(w, req)
					return
				}
				for k, v := range header {
					w.Header().Set(k, v)
				}
				_, _ = w.Write(body)
			})
		})
	}
	flip := func(data []byte, i int) []byte {
		data = bytes.Clone(data)
		data[i] ^= 1
		return data
	}
	for name, bad := range map[string][]byte{
		"first byte": flip(layer, 0), "last byte": flip(layer, len(layer)-1), "other size": layer[:len(layer)-1], "longer": append(bytes.Clone(layer), 0),
	} {
		for _, chunked := range []bool{false, true} {
			header := map[string]string{"Content-Length": strconv.Itoa(len(bad))}
			if chunked {
				header = map[string]string{"Transfer-Encoding": "chunked"}
			}
			lie(blob, header, bad)
			if a := b.get(strings.TrimPrefix(blob, "/")); a.err == nil && a.status == 200 || len(a.body) >= len(layer) {
				t.Errorf("%s, chunked %t: status %d, %d bytes, error %v", name, chunked, a.status, len(a.body), a.err)
			}
		}
	}
	// A small blob is not even begun.
	lie("/blobs/"+digest.FromBytes(img.config).String(), nil, flip(img.config, 0))
	b.get("blobs/"+digest.FromBytes(img.config).String()).want(t, 502, []byte("does not match its digest"))

	unseen := b.image("v2", random(10))
	b.sign(unseen.desc)
	m := must(json.Marshal(manifestOf(t, b, unseen)))
	isManifest := map[string]string{"Content-Type": ocispec.MediaTypeImageManifest}
	lie("/manifests/"+unseen.desc.Digest.String(), isManifest, flip(m, len(m)-5))
	b.get("manifests/"+unseen.desc.Digest.String()).want(t, 502, []byte("does not match its digest"))
	lie("/manifests/v2", isManifest, bytes.Replace(m, []byte(`"layers"`), []byte(`"Layers"`), 1)) // another document, which nobody signed
	b.get("manifests/v2").want(t, 403, []byte("no signature"))
	lie("/manifests/v2", map[string]string{"Content-Type": ocispec.MediaTypeImageIndex}, m)
	b.get("manifests/v2").want(t, 502, []byte("itself says"))
	lie("/manifests/v2", map[string]string{"Content-Type": "text/html"}, []byte("<html>"))
	b.get("manifests/v2").want(t, 502, []byte("not the JSON of a manifest"))
	lie("/manifests/v2", isManifest, bytes.Repeat([]byte(" "), maxManifest+1))
	b.get("manifests/v2").want(t, 502, []byte("more than 4194304 bytes"))

	b.before(nil)
	b.get("manifests/v1").want(t, 200, right)
	b.get(strings.TrimPrefix(blob, "/")).want(t, 200, layer)
}

// TestMemory holds the two bounds of what is remembered, and that an eviction is only a new admission.
func TestMemory(t *testing.T) {
	b := newBench(t, nil)
	b.mirror.memory = newMemory(2, maxMemory)
	images := []image{b.image("a", []byte("aaaa")), b.image("b", []byte("bbbb")), b.image("c", []byte("cccc"))}
	for _, img := range images {
		b.sign(img.desc)
		if a := b.get("manifests/" + img.desc.Digest.String()); a.status != 200 {
			t.Fatalf("%s", a.body)
		}
	}
	b.get("blobs/"+digest.FromBytes(images[0].config).String()).want(t, 403, []byte("DENIED"))
	b.get("blobs/"+digest.FromBytes(images[2].config).String()).want(t, 200, images[2].config)
	b.get("manifests/a").want(t, 200, must(json.Marshal(manifestOf(t, b, images[0]))))
	b.get("blobs/"+digest.FromBytes(images[0].config).String()).want(t, 200, images[0].config)
	if m := b.mirror.memory; m.last.Len() != 2 || len(m.byKey) != 2 || m.bytes != images[0].desc.Size+images[2].desc.Size {
		t.Errorf("%d manifests, %d keys, %d bytes", m.last.Len(), len(m.byKey), m.bytes)
	}

	m := newMemory(10, 2*images[0].desc.Size)
	for _, img := range images {
		m.add(&manifest{repository: "r", desc: img.desc})
	}
	if m.last.Len() != 2 || m.get("r", images[0].desc.Digest) != nil || m.get("r", images[2].desc.Digest) == nil {
		t.Errorf("%d manifests", m.last.Len())
	}
}

// TestReplacedPolicy: what an earlier policy admitted is asked of the new one, blobs too.
func TestReplacedPolicy(t *testing.T) {
	b := newBench(t, nil)
	img := b.image("v1", []byte("layer"))
	b.sign(img.desc)
	manifest, blob := "manifests/"+img.desc.Digest.String(), "blobs/"+digest.FromBytes(img.config).String()
	before := b.mirror.opts.Policy
	b.get(manifest).want(t, 200, must(json.Marshal(manifestOf(t, b, img))))
	b.get(blob).want(t, 200, img.config)
	admitting := &signing.Policy{Verifiers: before.Verifiers}
	before.Replace(&signing.Policy{})
	b.get(blob).want(t, 403, []byte("DENIED"))
	b.get(manifest).want(t, 403, []byte("accepts no identity"))
	before.Replace(admitting)
	b.get(manifest).want(t, 200, must(json.Marshal(manifestOf(t, b, img))))
	b.get(blob).want(t, 200, img.config)
}
