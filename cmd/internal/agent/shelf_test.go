package agent

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/lab"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/p2p/link"
)

// TestRegistryAway: what was admitted once is admitted again by its digest while
// the registry is away, by the same policy and no other, and no altered document is.
func TestRegistryAway(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	source := filepath.Join(dir, "source")
	if err := lab.Synthesize(ctx, source, 2<<20, lab.ModelOptions{Shards: 1}); err != nil {
		t.Fatal(err)
	}
	reg, err := registry.Open(filepath.Join(dir, "registry"), registry.Options{Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	srv := httptest.NewServer(reg)
	defer srv.Close()
	name := strings.TrimPrefix(srv.URL, "http://") + "/m"
	policy := push(t, source, name+":v1")
	repo, err := remote.Open(name, remote.Options{})
	if err != nil {
		t.Fatal(err)
	}
	desc, err := repo.Resolve(ctx, "v1")
	if err != nil {
		t.Fatal(err)
	}
	ref := name + "@" + desc.Digest.String()
	node := filepath.Join(dir, "node")
	if err := pullOnce(t, node, policy, ref, filepath.Join(dir, "first")); err != nil {
		t.Fatal(err)
	}

	srv.Close()
	again := filepath.Join(dir, "again")
	if err := pullOnce(t, node, policy, ref, again); err != nil {
		t.Fatalf("the registry is away: %v", err)
	}
	same(t, source, again)
	if err := pullOnce(t, node, policy, name+":v1", filepath.Join(dir, "tag")); err == nil {
		t.Error("a tag was resolved by nobody")
	}
	stranger := push(t, source, newRegistry(t)+"/m:v1")
	a, _, end := running(t, Options{Data: node, Policy: stranger, Link: link.New(0, 0)})
	if _, err := a.admit(ctx, ref, fromShelf); !errors.Is(err, piece.ErrNotTrusted) {
		t.Errorf("another policy: %v, want that it is not trusted", err)
	}
	end()
}

// admitted returns a running agent that has admitted a model of a registry, and
// what it takes to do so again.
func admitted(t *testing.T) (a *Agent, name string, want digest.Digest) {
	t.Helper()
	source := filepath.Join(t.TempDir(), "source")
	if err := lab.Synthesize(t.Context(), source, 1<<20, lab.ModelOptions{Shards: 1}); err != nil {
		t.Fatal(err)
	}
	name = newRegistry(t) + "/m"
	a, _, _ = running(t, Options{Data: t.TempDir(), Policy: push(t, source, name+":v1"), Link: link.New(0, 0)})
	admission, err := a.admit(t.Context(), name+":v1", online)
	if err != nil {
		t.Fatal(err)
	}
	return a, name, admission.Trusted.Manifest().Descriptor.Digest
}

// TestShelfBroken: a broken document is a miss. It is fetched again, costs no
// other, and while nobody has it nothing is admitted by it.
func TestShelfBroken(t *testing.T) {
	a, name, manifest := admitted(t)
	dir := a.shelf.dir
	whole := files(t, dir)
	if len(whole) < 7 { // a manifest, an index with its config and a piece layer, and two signatures of two documents each
		t.Errorf("%d documents are kept, want at least 7", len(whole))
	}
	breaks := map[string]func(b []byte) []byte{
		"checksum":   func(b []byte) []byte { b[0] ^= 1; return b },
		"media type": func(b []byte) []byte { b[len(`00000000 {"mediaType":"a`)] ^= 1; return b },
		"bytes":      func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"cut":        func(b []byte) []byte { return b[:len(b)-1] },
		"too long":   func(b []byte) []byte { return append(b, 0) },
		"cut header": func(b []byte) []byte { return b[:20] },
		"zeros":      func(b []byte) []byte { clear(b); return b },
		"empty":      func([]byte) []byte { return nil },
	}
	for file, right := range whole {
		for what, damage := range breaks {
			if err := os.WriteFile(filepath.Join(dir, file), damage(bytes.Clone(right)), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := a.admit(t.Context(), name+"@"+manifest.String(), fromShelf); err == nil {
				t.Errorf("%s, %s: admitted by it", file, what)
			}
			rest := maps.Clone(whole)
			delete(rest, file)
			if got := files(t, dir); !maps.EqualFunc(got, rest, bytes.Equal) && !maps.EqualFunc(got, with(rest, file, damage(bytes.Clone(right))), bytes.Equal) {
				t.Errorf("%s, %s: others are gone with it", file, what)
			}
			if _, err := a.admit(t.Context(), name+":v1", online); err != nil {
				t.Errorf("%s, %s: %v", file, what, err)
			}
			if !maps.EqualFunc(files(t, dir), whole, bytes.Equal) {
				t.Errorf("%s, %s: not healed", file, what)
			}
			if _, err := a.admit(t.Context(), name+"@"+manifest.String(), fromShelf); err != nil {
				t.Errorf("%s, %s: healed: %v", file, what, err)
			}
		}
	}
}

func with(m map[string][]byte, file string, b []byte) map[string][]byte {
	m = maps.Clone(m)
	m[file] = b
	return m
}

// TestShelfOpen: what a crash or a stranger leaves in the directory is gone, and
// what is whole stays.
func TestShelfOpen(t *testing.T) {
	a, _, _ := admitted(t)
	whole := files(t, a.shelf.dir)
	dir := t.TempDir()
	put := func(file string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, file), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var one []byte
	for file, b := range whole {
		put(file, b)
		one = b
	}
	name := func(digit string) string { return strings.Repeat(digit, 64) }
	put("new-123", one[:len(one)/2])
	put("new-456", nil)
	put(name("0"), nil)
	put(name("1"), one[:len(one)-1])
	put(name("2"), one[:10])
	put(name("A"), one)
	put("index.json", []byte("{}"))
	manifest := append(try(writeHeader(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Size: 2}))(t), "{}"...)
	put(name("3"), manifest) // of another digest
	for _, path := range []string{"blobs/sha256/x", name("4") + "/x"} {
		if err := os.MkdirAll(filepath.Join(dir, path), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, name("5")), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := openShelf(dir, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if !maps.EqualFunc(files(t, dir), whole, bytes.Equal) {
		t.Errorf("it holds %v, want %v", slices.Sorted(maps.Keys(files(t, dir))), slices.Sorted(maps.Keys(whole)))
	}
	want := make(map[digest.Digest][]listedEntry)
	for subject, list := range a.shelf.referrers {
		want[subject] = list
	}
	if len(want) != 2 || len(s.referrers) != 2 {
		t.Errorf("the referrers of %d and %d manifests are listed, want 2", len(want), len(s.referrers))
	}
	for subject, list := range want {
		slices.SortFunc(list, func(a, b listedEntry) int { return cmp.Compare(a.desc.Digest, b.desc.Digest) })
		got := slices.Clone(s.referrers[subject])
		slices.SortFunc(got, func(a, b listedEntry) int { return cmp.Compare(a.desc.Digest, b.desc.Digest) })
		if !slices.EqualFunc(list, got, func(a, b listedEntry) bool { return reflect.DeepEqual(a.desc, b.desc) }) {
			t.Errorf("referrers of %s: %v, want %v", subject, got, list)
		}
	}
	if _, err := openShelf(filepath.Join(dir, slices.Sorted(maps.Keys(whole))[0]), quiet()); err == nil || !strings.Contains(err.Error(), "open the admitted documents in") {
		t.Errorf("a file in place of the directory: %v", err)
	}
}

// TestShelfKilled: what was kept when the process was killed is kept, whole, and nothing else.
func TestShelfKilled(t *testing.T) {
	const env = "SPATE_TEST_SHELF"
	body := func(i int) []byte { return bytes.Repeat(fmt.Append(nil, i, " "), 20_000) }
	if dir := os.Getenv(env); dir != "" {
		s, err := openShelf(dir, quiet())
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; ; i++ {
			s.keep(content.NewDescriptorFromBytes("a/b", body(i)), body(i))
			fmt.Println("kept", i)
		}
	}
	dir := t.TempDir()
	for round := range 5 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestShelfKilled$")
		cmd.Env = append(os.Environ(), env+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kept := 0
		lines := bufio.NewScanner(out)
		for lines.Scan() && kept < 20+7*round {
			kept++
		}
		cmd.Process.Kill()
		for lines.Scan() {
			kept++
		}
		cmd.Wait()
		s, err := openShelf(dir, quiet())
		if err != nil {
			t.Fatal(err)
		}
		for i := range kept - 1 { // the last line may be half
			if _, err := s.fetch(content.NewDescriptorFromBytes("", body(i))); err != nil {
				t.Errorf("document %d of %d: %v", i, kept, err)
			}
		}
		for file, b := range files(t, dir) {
			if _, text, _ := bytes.Cut(b, []byte("\n")); digest.FromBytes(text).Encoded() != file {
				t.Errorf("%s is there, and broken", file)
			}
		}
	}
}

// TestShelfOnlyAdmitted: what others attach, and what is refused, does not come onto a node's disk.
func TestShelfOnlyAdmitted(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	if err := lab.Synthesize(t.Context(), source, 1<<20, lab.ModelOptions{Shards: 1}); err != nil {
		t.Fatal(err)
	}
	ref := newRegistry(t) + "/m:v1"
	policy := push(t, source, ref)
	a, _, _ := running(t, Options{Data: filepath.Join(dir, "a"), Policy: policy, Link: link.New(0, 0)})
	if _, err := a.admit(t.Context(), ref, online); err != nil {
		t.Fatal(err)
	}
	want := files(t, a.shelf.dir)

	push(t, source, ref) // the same, by a stranger, whose signatures are tried first
	b, _, _ := running(t, Options{Data: filepath.Join(dir, "b"), Policy: policy, Link: link.New(0, 0)})
	admission, err := b.admit(t.Context(), ref, online)
	if err != nil {
		t.Fatal(err)
	}
	repo, err := remote.Open(ref, remote.Options{})
	if err != nil {
		t.Fatal(err)
	}
	attached := 0
	if err := repo.Referrers(t.Context(), admission.Trusted.Manifest().Descriptor, oci.ArtifactTypeBundle, func(d []ocispec.Descriptor) error {
		attached += len(d)
		return nil
	}); err != nil || attached != 2 {
		t.Fatalf("%d signatures, %v: the stranger signed something else", attached, err)
	}
	if got := files(t, b.shelf.dir); !maps.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("%d documents are kept, want the %d that count", len(got), len(want))
	}

	stranger := push(t, source, newRegistry(t)+"/m:v1")
	c, _, _ := running(t, Options{Data: filepath.Join(dir, "c"), Policy: stranger, Link: link.New(0, 0)})
	if _, err := c.admit(t.Context(), ref, online); !errors.Is(err, piece.ErrNotTrusted) {
		t.Errorf("not trusted: %v", err)
	}
	if got := files(t, c.shelf.dir); len(got) != 0 {
		t.Errorf("%d documents of what was refused are kept", len(got))
	}
}

// TestShelfMediaTypes: of bytes that were kept as several things the manifest counts.
func TestShelfMediaTypes(t *testing.T) {
	s, err := openShelf(t.TempDir(), quiet())
	if err != nil {
		t.Fatal(err)
	}
	b := []byte(`{"subject":{"digest":"` + digest.FromString("x").String() + `"},"artifactType":"a/b"}`)
	desc := content.NewDescriptorFromBytes("", b)
	for _, step := range []struct{ kept, want string }{
		{"application/octet-stream", ""},
		{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageManifest},
		{"application/json", ocispec.MediaTypeImageManifest},
		{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageIndex},
	} {
		desc.MediaType = step.kept
		s.keep(desc, b)
		got, err := s.Resolve(t.Context(), "host/name@"+desc.Digest.String())
		if got.MediaType != step.want && err == nil || (step.want == "") != errors.Is(err, errdef.ErrNotFound) {
			t.Errorf("kept as %s: it is %q, %v, want %q", step.kept, got.MediaType, err, step.want)
		}
		if got, err := s.fetch(desc); !bytes.Equal(got, b) {
			t.Errorf("kept as %s: %q, %v", step.kept, got, err)
		}
	}
	listed := 0
	for _, artifactType := range []string{"", "a/b", "b/c"} {
		if err := s.Referrers(t.Context(), ocispec.Descriptor{Digest: digest.FromString("x")}, artifactType, func(d []ocispec.Descriptor) error {
			listed += len(d)
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	if listed != 2 {
		t.Errorf("it is listed %d times, want twice", listed)
	}
	for _, d := range []digest.Digest{"v1", "", "sha256:../../x", digest.SHA512.FromBytes(b)} {
		desc.Digest = d
		s.keep(desc, b)
		if _, err := s.fetch(desc); !errors.Is(err, errdef.ErrNotFound) {
			t.Errorf("digest %q: %v, want that it is not found", d, err)
		}
	}
	if got := files(t, s.dir); len(got) != 1 {
		t.Errorf("%d files, want 1", len(got))
	}
}

// TestShelfConcurrently: documents are kept, broken, listed and fetched at once.
func TestShelfConcurrently(t *testing.T) {
	s, err := openShelf(t.TempDir(), quiet())
	if err != nil {
		t.Fatal(err)
	}
	subject := ocispec.Descriptor{Digest: digest.FromString("x")}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			b := fmt.Appendf(nil, `{"subject":{"digest":"%s"},"artifactType":"a/b","n":%d}`, subject.Digest, i/2)
			desc := content.NewDescriptorFromBytes(ocispec.MediaTypeImageManifest, b)
			for n := range 100 {
				s.keep(desc, b)
				if got, err := s.fetch(desc); err == nil && !bytes.Equal(got, b) {
					t.Errorf("%q instead of %q", got, b)
				}
				if n%7 == 0 {
					path, _ := s.path(desc.Digest)
					os.Truncate(path, int64(n))
				}
				if err := s.Referrers(t.Context(), subject, "", func([]ocispec.Descriptor) error { return nil }); err != nil {
					t.Error(err)
				}
			}
			s.fetch(desc)
			s.keep(desc, b)
		})
	}
	all.Wait()
	if n := len(s.referrers[subject.Digest]); n != 4 {
		t.Errorf("%d referrers, want 4", n)
	}
}

// TestRegistryAnswers: what is kept stands in for a registry that cannot be
// asked, and for none that answers.
func TestRegistryAnswers(t *testing.T) {
	a, name, manifest := admitted(t)
	host, _, _ := strings.Cut(name, "/")
	target, err := url.Parse("http://" + host)
	if err != nil {
		t.Fatal(err)
	}
	through := httputil.NewSingleHostReverseProxy(target)
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	part := func(path string, h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, path) {
				h(w, r)
			} else {
				through.ServeHTTP(w, r)
			}
		}
	}
	lost := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	short := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		w.Header().Set("Content-Length", "100")
		w.Write([]byte(`{"manifests":[`))
	}
	silent := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc // nil when nobody listens
		away   bool
		want   error
	}{
		{"refused connection", nil, true, nil},
		{"lost connection", lost, true, nil},
		{"lost at the referrers", part("/referrers/", lost), true, nil},
		{"cut answer", part("/referrers/", short), true, nil},
		{"silence", silent, true, nil},
		{"503", status(503), true, nil},
		{"503 at the referrers", part("/referrers/", status(503)), true, nil},
		{"429", status(429), true, nil},
		{"401", status(401), false, nil},
		{"403", status(403), false, nil},
		{"403 at the referrers", part("/referrers/", status(403)), false, nil},
		{"404", status(404), false, piece.ErrNotHere},
		{"another digest", part("/manifests/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
		}), false, nil},
		{"no signature", part("/referrers/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			w.Write([]byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `","manifests":[]}`))
		}), false, piece.ErrNotTrusted},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(c.answer)
			t.Cleanup(srv.Close)
			if c.answer == nil {
				srv.Close()
			}
			admission, err := a.admit(t.Context(), strings.TrimPrefix(srv.URL, "http://")+"/m@"+manifest.String(), online)
			switch {
			case c.away && err != nil:
				t.Errorf("%v, want that what is kept is used", err)
			case c.away && admission.Trusted.Manifest().Descriptor.Digest != manifest:
				t.Error("something else is admitted")
			case !c.away && err == nil:
				t.Error("admitted against the registry's answer")
			case c.want != nil && !errors.Is(err, c.want):
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}

	t.Run("wrong bytes", func(t *testing.T) {
		t.Parallel()
		srv := httptest.NewServer(part("/blobs/", func(w http.ResponseWriter, r *http.Request) {
			rec := httptest.NewRecorder()
			through.ServeHTTP(rec, r)
			b := rec.Body.Bytes()
			b[0] ^= 1
			maps.Copy(w.Header(), rec.Header())
			w.Write(b)
		}))
		t.Cleanup(srv.Close)
		ref := strings.TrimPrefix(srv.URL, "http://") + "/m@" + manifest.String()
		_, _, err := Admit(t.Context(), a.opts.Policy, remote.Options{}, ref)
		if err == nil || isAway(err) {
			t.Errorf("%v, want that it is no absence", err)
		}
	})

	t.Run("slow, and what is kept does not do", func(t *testing.T) {
		t.Parallel()
		var asked atomic.Bool
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !asked.Swap(true) {
				<-r.Context().Done()
				return
			}
			through.ServeHTTP(w, r)
		}))
		t.Cleanup(srv.Close)
		b, _, _ := running(t, Options{Data: t.TempDir(), Policy: a.opts.Policy, Link: link.New(0, 0)})
		desc, err := a.shelf.Resolve(t.Context(), manifest.String())
		if err != nil {
			t.Fatal(err)
		}
		b.shelf.keep(desc, try(a.shelf.fetch(desc))(t))
		ref := strings.TrimPrefix(srv.URL, "http://") + "/m@" + manifest.String()
		if _, err := b.admit(t.Context(), ref, online); err != nil {
			t.Error(err)
		}
	})
}

// FuzzDocument: a document's file is read as it was written, or not at all.
func FuzzDocument(f *testing.F) {
	for _, mediaType := range []string{"", "a/b", ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex} {
		for _, b := range []string{"", "x\n", `{"subject":{"digest":"` + digest.FromString("x").String() + `"},"config":{"mediaType":"a/b"}}`} {
			head, err := writeHeader(ocispec.Descriptor{MediaType: mediaType, Size: int64(len(b))})
			if err != nil {
				f.Fatal(err)
			}
			f.Add(append(head, b...))
		}
	}
	f.Add([]byte("00000000 \n"))
	f.Add([]byte("\n"))
	f.Add(bytes.Repeat([]byte("0"), maxHeader+1))
	f.Fuzz(func(t *testing.T, file []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(file), maxHeader)
		desc, err := readHeader(r, int64(len(file)))
		if err != nil {
			return
		}
		b, err := io.ReadAll(r)
		if err != nil || int64(len(b)) != desc.Size {
			t.Fatalf("%d bytes of %d: %v", len(b), desc.Size, err)
		}
		head, err := writeHeader(desc)
		if err != nil {
			return // it was written by somebody else, with shorter escapes
		}
		again, err := readHeader(bufio.NewReaderSize(bytes.NewReader(head), maxHeader), int64(len(head)+len(b)))
		if err != nil || !reflect.DeepEqual(again, desc) {
			t.Fatalf("%v is read as %v: %v", desc, again, err)
		}
		for _, mediaType := range []string{desc.MediaType, ocispec.MediaTypeImageManifest} {
			desc.MediaType = mediaType
			subject, entry, ok := referrer(desc, b)
			if ok && (subject.Validate() != nil || len(entry.ArtifactType) > maxHeader || len(entry.Annotations) > 1) {
				t.Fatalf("%q refers to %q as %v", b, subject, entry)
			}
		}
	})
}

// try fails the test that its result is given to when err is not nil.
func try[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// newRegistry returns the address of a registry that ends with the test.
func newRegistry(t *testing.T) string {
	t.Helper()
	reg, err := registry.Open(t.TempDir(), registry.Options{Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reg.Close() })
	srv := httptest.NewServer(reg)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}
