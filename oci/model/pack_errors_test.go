package model

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPackRefuses(t *testing.T) {
	file := map[string]string{"model.gguf": "x"}
	for name, tt := range map[string]struct {
		make func(t *testing.T) string
		want string
	}{
		"a missing directory": {func(t *testing.T) string { return filepath.Join(t.TempDir(), "nowhere") }, "no such file or directory"},
		"a file":              {func(t *testing.T) string { return filepath.Join(writeFiles(t, file), "model.gguf") }, "it is a file"},
		"no files":            {func(t *testing.T) string { return t.TempDir() }, "it has no files"},
		"directories only": {func(t *testing.T) string {
			dir := t.TempDir()
			os.MkdirAll(filepath.Join(dir, "a/b"), 0o755)
			return dir
		}, "it has no files"},
		"hidden files only": {func(t *testing.T) string { return writeFiles(t, map[string]string{".x": "x"}) }, "no files but hidden ones"},
		"a link out": {func(t *testing.T) string {
			dir := writeFiles(t, file)
			link(t, "/etc/passwd", filepath.Join(dir, "x.json"))
			return dir
		}, "x.json is a link out of the directory, to /etc/passwd"},
		"a link to a sibling with the same start": {func(t *testing.T) string {
			dir := filepath.Join(t.TempDir(), "model")
			writeFile(t, filepath.Join(dir, "x"), "x")
			writeFile(t, filepath.Join(dir+"s", "y"), "y")
			link(t, filepath.Join(dir+"s", "y"), filepath.Join(dir, "y"))
			return dir
		}, "y is a link out of the directory"},
		"a link to nothing": {func(t *testing.T) string {
			dir := writeFiles(t, file)
			link(t, filepath.Join(dir, "gone"), filepath.Join(dir, "x"))
			return dir
		}, "x is a link to gone, which does not exist"},
		"a link to itself": {func(t *testing.T) string {
			dir := writeFiles(t, file)
			link(t, filepath.Join(dir, "x"), filepath.Join(dir, "x"))
			return dir
		}, "x is a link that cannot be followed"},
		"a link to a directory": {func(t *testing.T) string {
			dir := writeFiles(t, map[string]string{"sub/model.gguf": "x"})
			link(t, filepath.Join(dir, "sub"), filepath.Join(dir, "x"))
			return dir
		}, "x is neither a file nor a directory but a link to a directory"},
		"a pipe": {func(t *testing.T) string {
			dir := writeFiles(t, file)
			if err := syscall.Mkfifo(filepath.Join(dir, "x"), 0o644); err != nil {
				t.Fatal(err)
			}
			return dir
		}, "x is neither a file nor a directory but a named pipe"},
		"a backslash": {func(t *testing.T) string { return writeFiles(t, map[string]string{`a\b`: "x"}) }, "backslash"},
		"no UTF-8":    {func(t *testing.T) string { return writeFiles(t, map[string]string{"a\xff": "x"}) }, "not a clean relative one"},
		"too many files": {func(t *testing.T) string {
			dir := t.TempDir()
			for i := range MaxFiles + 1 {
				writeFile(t, filepath.Join(dir, fmt.Sprint(i)), "")
			}
			return dir
		}, "it has 2049 files, more than the 2048"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tt.make(t)
			store := &counting{place: newLayout(t)}
			_, err := Pack(t.Context(), dir, store, Options{})
			checkError(t, err, "pack "+dir+": ", tt.want)
			if store.uploads > 0 {
				t.Errorf("%d files were sent", store.uploads)
			}
		})
	}
}

// counting counts uploads.
type counting struct {
	place
	uploads int
}

func (c *counting) Upload(ctx context.Context, src io.Reader, size int64, digest func() digest.Digest) error {
	c.uploads++
	return c.place.Upload(ctx, src, size, digest)
}

func TestPackNeedsPermission(t *testing.T) {
	dir, err := os.MkdirTemp("", "model")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	writeFile(t, filepath.Join(dir, "model.gguf"), "x")
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Join(dir, "model.gguf"), 0)); err != nil {
		t.Fatal(err)
	}
	asNobody(t)
	_, err = Pack(t.Context(), dir, newLayout(t), Options{})
	checkError(t, err, "pack "+dir+": model.gguf: ", "permission denied")
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("error %v does not match fs.ErrPermission", err)
	}
}

// asNobody gives root's rights up until the end of the test.
func asNobody(t *testing.T) {
	if os.Geteuid() != 0 {
		return
	}
	if err := syscall.Setreuid(-1, 65534); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Setreuid(-1, 0); err != nil {
			panic(err)
		}
	})
}

// A file that changes on the way makes no model: not its old bytes, not its new ones, no mixture.
func TestPackChangedFile(t *testing.T) {
	const name = "model.safetensors"
	for what, change := range map[string]func(path string) error{
		"appended": func(path string) error {
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteString("more")
			return err
		},
		"truncated": func(path string) error { return os.Truncate(path, 5<<20) },
		"overwritten": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte("other"), 6<<20)
			return errors.Join(err, os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0))) // and its time set back
		},
		"replaced": func(path string) error {
			if err := os.WriteFile(path+".new", bytesOf(2, 6<<20), 0o644); err != nil {
				return err
			}
			return errors.Join(os.Chtimes(path+".new", time.Unix(1, 0), time.Unix(1, 0)), os.Rename(path+".new", path))
		},
		"removed": os.Remove,
	} {
		t.Run(what, func(t *testing.T) {
			places(t, func(t *testing.T, p place) {
				dir := writeFiles(t, map[string]string{"config.json": "{}", name: string(bytesOf(1, 8<<20)), "z.md": "x"})
				path := filepath.Join(dir, name)
				if err := os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
					t.Fatal(err)
				}
				changing := &changing{place: p, change: func() {
					if err := change(path); err != nil {
						t.Error(err)
					}
				}}
				_, err := Pack(t.Context(), dir, changing, Options{})
				checkError(t, err, name, "changed while it was being packed")
				if changing.manifests > 0 {
					t.Error("a manifest was stored")
				}
			})
		})
	}
}

// A file that changes after it was sent, while others are, is noticed too.
func TestPackChangedEarlier(t *testing.T) {
	dir := writeFiles(t, map[string]string{"config.json": "{}", "model.gguf": string(bytesOf(1, 8<<20))})
	changing := &changing{place: newLayout(t), change: func() { writeFile(t, filepath.Join(dir, "config.json"), "[]") }}
	_, err := Pack(t.Context(), dir, changing, Options{Concurrency: 1})
	checkError(t, err, "config.json", "changed while it was being packed")
	if changing.manifests > 0 {
		t.Error("a manifest was stored")
	}
}

// changing makes a change in the middle of the upload of a large file.
type changing struct {
	place
	change    func()
	manifests int
}

func (c *changing) Upload(ctx context.Context, src io.Reader, size int64, digest func() digest.Digest) error {
	if size < 1<<20 {
		return c.place.Upload(ctx, src, size, digest)
	}
	start := make([]byte, 1000)
	if _, err := io.ReadFull(src, start); err != nil {
		return err
	}
	c.change()
	return c.place.Upload(ctx, io.MultiReader(bytes.NewReader(start), src), size, digest)
}

func (c *changing) Push(ctx context.Context, desc ocispec.Descriptor, r io.Reader) error {
	if desc.MediaType == ocispec.MediaTypeImageManifest {
		c.manifests++
	}
	return c.place.Push(ctx, desc, r)
}

// A registry that fails says which file it was about; nothing is left under way.
func TestPackFailingRegistry(t *testing.T) {
	dir := writeFiles(t, map[string]string{"config.json": "{}", "model.gguf": string(bytesOf(1, 8<<20)), "z.md": "x"})
	for name, answer := range map[string]func(w http.ResponseWriter, req *http.Request){
		"drops": func(w http.ResponseWriter, req *http.Request) {
			io.CopyN(io.Discard, req.Body, 1<<20)
			panic(http.ErrAbortHandler)
		},
		"is full": func(w http.ResponseWriter, req *http.Request) { w.WriteHeader(http.StatusInsufficientStorage) },
	} {
		t.Run(name, func(t *testing.T) {
			repo := openRegistry(t, func(h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
					if req.Method == http.MethodPatch && req.ContentLength > 1<<20 {
						answer(w, req)
						return
					}
					h.ServeHTTP(w, req)
				})
			})
			_, err := Pack(t.Context(), dir, repo, Options{})
			checkError(t, err, "pack "+dir+": model.gguf: upload a blob to "+repo.Reference.Registry)
			err = repo.Tags(t.Context(), "", func(tags []string) error {
				if len(tags) > 0 {
					t.Errorf("there are tags: %q", tags)
				}
				return nil
			})
			if err != nil && !strings.Contains(err.Error(), "name unknown") {
				t.Error(err)
			}
		})
	}
}

func TestPackCanceled(t *testing.T) {
	dir := writeFiles(t, map[string]string{"model.gguf": string(bytesOf(1, 8<<20))})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := Pack(ctx, dir, &changing{place: openRegistry(t, nil), change: cancel}, Options{})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
}
