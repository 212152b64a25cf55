package model

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	ocistore "oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/oci/remote"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A place is what a model is packed into and unpacked from.
type place interface {
	Target
	oras.Target
}

// places runs test over every kind of place.
func places(t *testing.T, test func(t *testing.T, p place)) {
	t.Run("layout", func(t *testing.T) { test(t, newLayout(t)) })
	t.Run("registry", func(t *testing.T) { test(t, openRegistry(t, nil)) })
}

// newLayout makes an OCI image layout on disk.
func newLayout(t testing.TB) place {
	t.Helper()
	store, err := ocistore.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return uploads{store}
}

// uploads adds Upload to a store that wants digests beforehand.
type uploads struct{ oras.Target }

func (u uploads) Upload(ctx context.Context, src io.Reader, size int64, digest func() digest.Digest) error {
	b, err := io.ReadAll(io.LimitReader(src, size+1))
	if err != nil {
		return err
	}
	if int64(len(b)) != size {
		return errors.New("another size")
	}
	desc := content.NewDescriptorFromBytes("application/octet-stream", b)
	if got := digest(); got != desc.Digest {
		return errors.New("another digest")
	}
	if err := u.Push(ctx, desc, bytes.NewReader(b)); !errors.Is(err, errdef.ErrAlreadyExists) {
		return err
	}
	return nil
}

// openRegistry runs a registry, behind wrap unless that is nil, and opens a repository in it.
func openRegistry(t testing.TB, wrap func(http.Handler) http.Handler) *remote.Repository {
	t.Helper()
	r, err := registry.Open(t.TempDir(), registry.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	var handler http.Handler = r
	if wrap != nil {
		handler = wrap(handler)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return openRepository(t, strings.TrimPrefix(server.URL, "http://"))
}

func openRepository(t testing.TB, host string) *remote.Repository {
	t.Helper()
	transport := remote.NewTransport()
	t.Cleanup(transport.CloseIdleConnections)
	repo, err := remote.Open(host+"/models/qwen", remote.Options{Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// bytesOf returns size bytes that depend on seed alone.
func bytesOf(seed byte, size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// safetensors returns a safetensors file of the given tensors' bytes, all BF16 and flat.
func safetensors(t testing.TB, tensors map[string][]byte) []byte {
	t.Helper()
	header := make(map[string]any)
	var data []byte
	for _, name := range slices.Sorted(maps.Keys(tensors)) {
		b := tensors[name]
		header[name] = map[string]any{"dtype": "BF16", "shape": []int{len(b) / 2}, "data_offsets": []int{len(data), len(data) + len(b)}}
		data = append(data, b...)
	}
	return safetensorsOf(t, header, data)
}

func safetensorsOf(t testing.TB, header any, data []byte) []byte {
	t.Helper()
	text, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	return append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), text...), data...)
}

// modelDir makes a directory with the files of a small model, and returns them too.
func modelDir(t testing.TB) (dir string, files map[string]string) {
	files = map[string]string{
		"config.json":                      `{"model_type":"qwen2","_name_or_path":"Qwen/Qwen2.5","torch_dtype":"float16","num_attention_heads":8}`,
		"generation_config.json":           `{}`,
		"tokenizer.json":                   `{"tokens":[]}`,
		"merges.txt":                       "a b\n",
		"model.safetensors.index.json":     `{"weight_map":{}}`,
		"model-00001-of-00010.safetensors": string(safetensors(t, map[string][]byte{"a": bytesOf(1, 1<<20)})),
		"model-00002-of-00010.safetensors": string(safetensors(t, map[string][]byte{"b": bytesOf(2, 3<<20), "c": nil})),
		"model-00010-of-00010.safetensors": string(safetensors(t, map[string][]byte{"d": bytesOf(3, 100)})),
		"modeling_qwen.py":                 "pass\n",
		"run.sh":                           "#!/bin/sh\n",
		"LICENSE":                          "yes\n",
		"README.md":                        "# Qwen\n",
		"empty.bin":                        "",
		"sub/dir/a file of größe ≠ 0.bin":  "x",
		"copy of LICENSE.md":               "yes\n",
	}
	return writeFiles(t, files), files
}

func writeFiles(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		writeFile(t, filepath.Join(dir, name), text)
	}
	return dir
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	mode := os.FileMode(0o644)
	if strings.HasSuffix(path, ".sh") {
		mode = 0o755
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// readFiles returns all that is below dir, directories too: their names end in a slash.
func readFiles(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			files[name+"/"] = ""
			return nil
		}
		b, err := os.ReadFile(path)
		files[name] = string(b)
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return files
}

// checkFiles compares what is below dir with files.
func checkFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	got := readFiles(t, dir)
	for name, text := range got {
		if want, ok := files[name]; !strings.HasSuffix(name, "/") && !ok {
			t.Errorf("%s is there", name)
		} else if text != want {
			t.Errorf("%s has other bytes", name)
		}
	}
	for name := range files {
		if _, ok := got[name]; !ok {
			t.Errorf("%s is missing", name)
		}
	}
}
