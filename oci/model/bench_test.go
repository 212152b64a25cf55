package model

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// benchSize is how large the model of a benchmark is, in bytes.
const benchSize = 1 << 30

// benchDir makes a model of four files that are neither sparse nor compressible.
func benchDir(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	for i := range byte(4) {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("model-%05d-of-00004.gguf", i+1)))
		if err != nil {
			b.Fatal(err)
		}
		for j := range byte(benchSize / 4 >> 24) {
			if _, err := f.Write(bytesOf(i*64+j, 1<<24)); err != nil {
				b.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
	}
	return dir
}

// BenchmarkPack pushes 1 GiB over loopback and compares with what sha256sum and
// cp of the same files take, one after the other, in the same run.
func BenchmarkPack(b *testing.B) {
	dir := benchDir(b)
	baseline := hashAndCopy(b, dir)
	b.Run("registry", func(b *testing.B) {
		benchPack(b, dir, baseline, func() Target { return openRegistry(b, nil) })
	})
	b.Run("discard", func(b *testing.B) {
		server := httptest.NewServer(http.HandlerFunc(discard))
		defer server.Close()
		benchPack(b, dir, baseline, func() Target { return openRepository(b, strings.TrimPrefix(server.URL, "http://")) })
	})
}

func benchPack(b *testing.B, dir string, baseline time.Duration, open func() Target) {
	b.SetBytes(benchSize)
	var peak runtime.MemStats
	for b.Loop() {
		if _, err := Pack(b.Context(), dir, open(), Options{}); err != nil {
			b.Fatal(err)
		}
		runtime.ReadMemStats(&peak)
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/baseline.Seconds(), "x-sha256sum+cp")
	b.ReportMetric(float64(peak.HeapSys)/(1<<20), "MiB-heap")
}

// discard answers as a registry does that takes any blob and keeps none.
func discard(w http.ResponseWriter, req *http.Request) {
	io.Copy(io.Discard, req.Body)
	switch req.Method {
	case http.MethodHead:
		w.WriteHeader(http.StatusNotFound)
	case http.MethodPut:
		w.WriteHeader(http.StatusCreated)
	case http.MethodGet: // of referrers
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		io.WriteString(w, `{"schemaVersion":2}`)
	default:
		w.Header().Set("Location", "/v2/models/qwen/blobs/uploads/1")
		w.WriteHeader(http.StatusAccepted)
	}
}

func hashAndCopy(b *testing.B, dir string) time.Duration {
	b.Helper()
	for _, tool := range []string{"sha256sum", "cp"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.Fatal(err)
		}
	}
	to := b.TempDir()
	start := time.Now()
	for _, line := range []string{"sha256sum * >/dev/null", "cp * " + to} {
		cmd := exec.CommandContext(b.Context(), "sh", "-c", line)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%s: %v: %s", line, err, out)
		}
	}
	took := time.Since(start)
	b.Logf("sha256sum and cp: %v", took)
	if err := os.RemoveAll(to); err != nil {
		b.Fatal(err)
	}
	return took
}

// BenchmarkStream reads and hashes a file as Pack does and sends it nowhere.
func BenchmarkStream(b *testing.B) {
	dir := benchDir(b)
	f, err := os.Open(filepath.Join(dir, "model-00001-of-00004.gguf"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.SetBytes(benchSize / 4)
	for b.Loop() {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			b.Fatal(err)
		}
		if _, err := send(b.Context(), f, benchSize/4, nowhere{}, func(int64) {}); err != nil {
			b.Fatal(err)
		}
	}
}

// nowhere is a target that reads as fast as it is given.
type nowhere struct{ Target }

func (nowhere) Upload(_ context.Context, src io.Reader, _ int64, digest func() digest.Digest) error {
	if _, err := io.Copy(io.Discard, src); err != nil {
		return err
	}
	digest()
	return nil
}

// BenchmarkUnpack pulls 1 GiB over loopback.
func BenchmarkUnpack(b *testing.B) {
	repo := openRegistry(b, nil)
	packed, err := Pack(b.Context(), benchDir(b), repo, Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(benchSize)
	for b.Loop() {
		dir, err := os.MkdirTemp("", "unpack")
		if err != nil {
			b.Fatal(err)
		}
		if err := Unpack(b.Context(), repo, packed.Files, dir, Options{}); err != nil {
			b.Fatal(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
	}
}
