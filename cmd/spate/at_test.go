package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/spate-project/spate/cmd/internal/lab"
	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/prefetch/orders"
)

// A distant is a registry in another cluster, which counts the bytes of blobs that leave it.
type distant struct {
	address string
	sent    atomic.Int64
}

func newDistant(t *testing.T) *distant {
	t.Helper()
	r, err := registry.Open(t.TempDir(), registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := &distant{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
			w = &sentWriter{w, &d.sent}
		}
		r.ServeHTTP(w, req)
	}))
	t.Cleanup(func() {
		s.Close()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	d.address = strings.TrimPrefix(s.URL, "http://")
	return d
}

type sentWriter struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (w *sentWriter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	w.sent.Add(int64(n))
	return n, err
}

// TestPrefetchAt: nodes of another cluster fetch what this one has, and its bytes
// cross the link between the two once, whoever carries them.
func TestPrefetchAt(t *testing.T) {
	const size = 8_000_000
	for name, follows := range map[string]bool{"copied": false, "followed": true} {
		t.Run(name, func(t *testing.T) {
			home := newDistant(t)
			var flags []string
			if follows {
				flags = append(flags, "--upstream", "=http://"+home.address)
			}
			names := []string{"one", "two"}
			s := newSite(t, names, flags...)
			dir, ref := filepath.Join(s.dir, "source"), home.address+"/models/qwen:v1"
			if err := lab.Synthesize(t.Context(), dir, size, lab.ModelOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.spate("push", dir, ref, "--sign-key", s.keys.Sign()); err != nil {
				t.Fatal(err)
			}
			s.newPool(names)
			for again := range 2 {
				out, err := s.spate("prefetch", ref, "--pool", "gpu", "--ready", "2", "--at", "http://"+s.registry, "--output", "json")
				if err != nil {
					t.Fatal(err)
				}
				var list []cluster
				if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 || len(list[0].Moved) != 1 {
					t.Fatalf("%v in %s", err, out)
				}
				c := list[0]
				if c.Order.State != orders.Done || c.Order.Holding != 2 || !strings.HasPrefix(c.Order.References[0], s.registry+"/models/qwen@sha256:") {
					t.Errorf("the order is %+v", c.Order)
				}
				if moved := c.Moved[0].Bytes; (moved > size) != (!follows && again == 0) {
					t.Errorf("the command moved %d bytes", moved)
				}
				sent := home.sent.Load()
				t.Logf("%d bytes of blobs crossed the link, %.4f of the model", sent, float64(sent)/size)
				if sent < size || sent > size*105/100 {
					t.Errorf("%d bytes of blobs crossed the link for a model of %d", sent, size)
				}
			}
			if _, err := s.spate("verify", s.registry+"/models/qwen:v1", "--key", s.keys.Verify()); err != nil {
				t.Error(err)
			}
			// What agents there do not trust is refused, as it is at home.
			unsigned := home.address + "/models/unsigned:v1"
			if _, err := s.spate("push", dir, unsigned); err != nil {
				t.Fatal(err)
			}
			_, err := s.spate("prefetch", unsigned, "--pool", "gpu", "--ready", "2", "--at", "http://"+s.registry)
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != ui.ExitNotTrusted {
				t.Errorf("an unsigned model: %v", err)
			}
		})
	}
}
