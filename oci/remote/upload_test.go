package remote

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/memory"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci/registry"
)

// newRegistry returns a real registry, to be served as it is or behind something.
func newRegistry(t testing.TB) http.Handler {
	t.Helper()
	handler, err := registry.Open(t.TempDir(), registry.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return handler
}

// relocated rewrites the Location of h's answers.
func relocated(h http.Handler, rewrite func(location string, req *http.Request) string) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		h.ServeHTTP(&locationWriter{ResponseWriter: w, rewrite: func(location string) string { return rewrite(location, req) }}, req)
	}
}

type locationWriter struct {
	http.ResponseWriter
	rewrite func(string) string
}

func (w *locationWriter) WriteHeader(status int) {
	if location := w.Header().Get("Location"); location != "" {
		w.Header().Set("Location", w.rewrite(location))
	}
	w.ResponseWriter.WriteHeader(status)
}

func random(size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func TestUpload(t *testing.T) {
	path := func(location string) string {
		if i := strings.Index(location, "/v2/"); i >= 0 {
			return location[i:]
		}
		return location
	}
	for name, rewrite := range map[string]func(string, *http.Request) string{
		"as it is": func(location string, _ *http.Request) string { return location },
		"absolute": func(location string, req *http.Request) string { return "http://" + req.Host + path(location) },
		"relative": func(location string, _ *http.Request) string { return path(location) },
		"query": func(location string, _ *http.Request) string {
			separator := "?"
			if strings.Contains(location, "?") {
				separator = "&"
			}
			return location + separator + "state=a%2Fb"
		},
	} {
		t.Run(name, func(t *testing.T) {
			repo := open(t, serve(t, relocated(newRegistry(t), rewrite))+"/models/qwen", Options{})
			for _, size := range []int{0, 1, 1000, 1<<20 + 7} {
				data := random(size)
				desc := describe(data)
				whole := digest.Canonical.Digester()
				err := repo.Upload(t.Context(), io.TeeReader(bytes.NewReader(data), whole.Hash()), desc.Size, whole.Digest)
				if err != nil {
					t.Fatalf("%d bytes: %v", size, err)
				}
				got, err := content.FetchAll(t.Context(), repo, desc)
				if err != nil || !bytes.Equal(got, data) {
					t.Fatalf("%d bytes came back as %d, %v", size, len(got), err)
				}
			}
		})
	}
}

// A token or password is asked for before the stream starts, which cannot start twice.
func TestUploadWithLogin(t *testing.T) {
	h := newRegistry(t)
	host := serve(t, func(w http.ResponseWriter, req *http.Request) {
		if _, password, _ := req.BasicAuth(); password != secret {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, req)
	})
	data := random(1 << 20)
	put := func(repo *Repository) error {
		return repo.Upload(t.Context(), bytes.NewReader(data), int64(len(data)), func() digest.Digest { return digest.FromBytes(data) })
	}
	if err := put(open(t, host+"/qwen", Options{Credential: login})); err != nil {
		t.Fatal(err)
	}
	err := put(open(t, host+"/qwen", Options{}))
	checkError(t, err, errAny, "start an upload to "+host+"/qwen", "log in first: docker login "+host)
}

// A blob that is not what was promised is refused, and the registry is told to forget it.
func TestUploadRefuses(t *testing.T) {
	data := random(1 << 20)
	broken := errors.New("the disk is broken")
	sized := func(err error) bool { return errors.As(err, new(*piece.SizeError)) }
	for _, tt := range []struct {
		name   string
		src    io.Reader
		size   int64
		digest digest.Digest
		want   func(error) bool
	}{
		{"too short", bytes.NewReader(data[:1000]), int64(len(data)), digest.FromBytes(data), sized},
		{"too long", bytes.NewReader(data), int64(len(data)) - 1, digest.FromBytes(data), sized},
		{"not empty", bytes.NewReader(data), 0, digest.FromBytes(nil), sized},
		{"unreadable", io.MultiReader(bytes.NewReader(data[:1000]), iotest.ErrReader(broken)), int64(len(data)), digest.FromBytes(data),
			func(err error) bool { return errors.Is(err, broken) }},
		{"unreadable end", io.MultiReader(bytes.NewReader(data), iotest.ErrReader(broken)), int64(len(data)), digest.FromBytes(data),
			func(err error) bool { return errors.Is(err, broken) }},
		{"wrong digest", bytes.NewReader(data), int64(len(data)), digest.FromString("x"),
			func(err error) bool { return strings.Contains(err.Error(), "digest") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var dropped atomic.Bool
			h := newRegistry(t)
			host := serve(t, func(w http.ResponseWriter, req *http.Request) {
				dropped.Store(dropped.Load() || req.Method == http.MethodDelete)
				h.ServeHTTP(w, req)
			})
			repo := open(t, host+"/qwen", Options{})
			err := repo.Upload(t.Context(), tt.src, tt.size, func() digest.Digest { return tt.digest })
			if err == nil || !tt.want(err) {
				t.Fatalf("Upload: %v", err)
			}
			checkError(t, err, errAny, "upload a blob to "+host+"/qwen")
			if ok, err := repo.Exists(t.Context(), describe(data)); ok || err != nil {
				t.Errorf("the blob is there: %v, %v", ok, err)
			}
			if !dropped.Load() {
				t.Error("the registry was not told to forget the upload")
			}
		})
	}
}

// Registries that fail on an upload. src must be left alone once Upload is back.
func TestUploadZoo(t *testing.T) {
	data := random(8 << 20)
	accept := func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodPost {
			return false
		}
		w.Header().Set("Location", "/v2/qwen/blobs/uploads/1")
		w.WriteHeader(http.StatusAccepted)
		return true
	}
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		text   string
	}{
		{"drops in the middle", func(w http.ResponseWriter, req *http.Request) {
			if !accept(w, req) {
				io.CopyN(io.Discard, req.Body, 1<<20)
				panic(http.ErrAbortHandler)
			}
		}, "upload a blob to"},
		{"answers early", func(w http.ResponseWriter, req *http.Request) {
			if !accept(w, req) {
				w.WriteHeader(http.StatusRequestEntityTooLarge)
			}
		}, "upload a blob to"},
		{"accepts early", func(w http.ResponseWriter, req *http.Request) {
			if !accept(w, req) {
				w.Header().Set("Location", "/v2/qwen/blobs/uploads/1")
				w.WriteHeader(http.StatusAccepted)
			}
		}, "upload a blob to"},
		{"names no place", func(w http.ResponseWriter, req *http.Request) { w.WriteHeader(http.StatusAccepted) }, "no usable place"},
		{"names another place", func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Location", "http://elsewhere.example/v2/qwen/blobs/uploads/1")
			w.WriteHeader(http.StatusAccepted)
		}, "at another place, http://elsewhere.example"},
		{"stores another blob", func(w http.ResponseWriter, req *http.Request) {
			switch {
			case accept(w, req):
			case req.Method == http.MethodPatch:
				io.Copy(io.Discard, req.Body)
				w.WriteHeader(http.StatusAccepted)
			default:
				w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
				w.WriteHeader(http.StatusCreated)
			}
		}, "as " + digest.FromString("x").String()},
		{"is read-only", func(w http.ResponseWriter, req *http.Request) { w.WriteHeader(http.StatusMethodNotAllowed) }, "answered 405"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			repo := open(t, serve(t, tt.answer)+"/qwen", Options{})
			src := &ownedReader{Reader: bytes.NewReader(data)}
			err := repo.Upload(t.Context(), src, int64(len(data)), func() digest.Digest { return digest.FromBytes(data) })
			src.reads = -1 // found by the race detector when anyone else still reads
			checkError(t, err, errAny, tt.text)
		})
	}
}

// An ownedReader counts its reads without a lock.
type ownedReader struct {
	io.Reader
	reads int
}

func (r *ownedReader) Read(p []byte) (int, error) {
	r.reads++
	return r.Reader.Read(p)
}

func TestUploadCanceled(t *testing.T) {
	repo := open(t, serve(t, newRegistry(t).ServeHTTP)+"/qwen", Options{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	data := random(4 << 20)
	src := io.MultiReader(bytes.NewReader(data[:2<<20]), readerFunc(func([]byte) (int, error) {
		cancel()
		return 0, ctx.Err()
	}))
	err := repo.Upload(ctx, src, int64(len(data)), func() digest.Digest { return digest.FromBytes(data) })
	checkError(t, err, context.Canceled, "upload a blob to")
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// oras-go can copy to and from a repository: it is a whole target.
func TestCopy(t *testing.T) {
	ctx := t.Context()
	local := memory.New()
	layer := describe(blob)
	if err := local.Push(ctx, layer, bytes.NewReader(blob)); err != nil {
		t.Fatal(err)
	}
	manifest, err := oras.PackManifest(ctx, local, oras.PackManifestVersion1_1, "application/x", oras.PackManifestOptions{Layers: []ocispec.Descriptor{layer}})
	if err != nil {
		t.Fatal(err)
	}
	if err := local.Tag(ctx, manifest, "v1"); err != nil {
		t.Fatal(err)
	}
	repo := open(t, serve(t, newRegistry(t).ServeHTTP)+"/qwen", Options{})
	if _, err := oras.Copy(ctx, local, "v1", repo, "v1", oras.DefaultCopyOptions); err != nil {
		t.Fatal(err)
	}
	if err := repo.Tag(ctx, manifest, "v2"); err != nil {
		t.Fatal(err)
	}
	back := memory.New()
	if got, err := oras.Copy(ctx, repo, "v2", back, "", oras.DefaultCopyOptions); err != nil || got.Digest != manifest.Digest {
		t.Fatalf("Copy: %v, %v", got, err)
	}
	desc, r, err := repo.FetchReference(ctx, "v2")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || desc.Digest != digest.FromBytes(b) {
		t.Fatalf("FetchReference: %v, %v", desc, err)
	}
}
