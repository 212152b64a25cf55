package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/oci/snapshot/containerdtest"
	"github.com/spate-project/spate/signing"
	"github.com/spate-project/spate/signing/cosign"
)

// newIndexKey makes the key pair of a registry, and returns its files.
func newIndexKey(t *testing.T) (private, public string) {
	t.Helper()
	key, pub, err := cosign.GenerateKeyPair(nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	private, public = filepath.Join(dir, "registry.key"), filepath.Join(dir, "registry.pub")
	for path, b := range map[string][]byte{private: key, public: pub} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("COSIGN_PASSWORD", "")
	return private, public
}

// signImage signs what ref names, and nothing else, as cosign would.
func (s *site) signImage(ref string) {
	s.t.Helper()
	key, err := os.ReadFile(s.keys.Sign())
	if err != nil {
		s.t.Fatal(err)
	}
	signer, err := cosign.NewSigner(key, func() ([]byte, error) { return nil, nil })
	if err != nil {
		s.t.Fatal(err)
	}
	repo, desc := s.resolve(ref)
	if _, err := signing.Sign(s.t.Context(), repo, signer, desc); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) resolve(ref string) (*remote.Repository, ocispec.Descriptor) {
	s.t.Helper()
	repo, err := remote.Open(ref, remote.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	desc, err := repo.Resolve(s.t.Context(), repo.Reference.Reference)
	if err != nil {
		s.t.Fatal(err)
	}
	return repo, desc
}

// until waits for a condition.
func (s *site) until(what string, ok func() bool) {
	s.t.Helper()
	for start := time.Now(); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 2*time.Minute {
			s.t.Fatalf("%s: not after two minutes", what)
		}
	}
}

// indexOf waits until ref has an index, and returns its digest.
func (s *site) indexOf(ref string) (index string) {
	s.t.Helper()
	repo, desc := s.resolve(ref)
	s.until("the registry indexes "+ref, func() bool {
		err := repo.Referrers(s.t.Context(), desc, oci.ArtifactTypeIndex, func(page []ocispec.Descriptor) error {
			for _, d := range page {
				index = d.Digest.String()
			}
			return nil
		})
		if err != nil {
			s.t.Fatal(err)
		}
		return index != ""
	})
	return index
}

// TestRegistryIndexes: an image that is pushed to a registry with a key starts
// lazily where that key counts, and is unpacked as any other where it does not.
func TestRegistryIndexes(t *testing.T) {
	private, public := newIndexKey(t)
	s := newSite(t, nil, "--index-key", private)
	ref := s.push("app", map[string][]byte{"etc/greeting": []byte("hello\n")}, map[string][]byte{"data/weights": noise(2<<20, 1)})
	s.signImage(ref)
	index := s.indexOf(ref)

	var x indexed
	if out, err := s.spate("index", ref, "--output", "json"); err != nil {
		t.Fatal(err)
	} else if err := json.Unmarshal([]byte(out), &x); err != nil {
		t.Fatal(err)
	}
	if len(x.Manifests) != 1 || x.Manifests[0].Index != index {
		t.Errorf("a client makes the indexes %+v, the registry %s", x.Manifests, index)
	}
	s.until("the index is counted", func() bool {
		resp, err := http.Get("http://" + s.registry + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(b), `spate_registry_index_images_total{result="indexed"} 1`+"\n")
	})
	var exit *exec.ExitError
	if out, err := s.spate("verify", ref, "--key", public); !errors.As(err, &exit) || exit.ExitCode() != ui.ExitNotTrusted {
		t.Errorf("the registry's key alone admits an image: %s, %v", out, err)
	}
	for _, tt := range []struct {
		name, path string
		flags      []string
	}{
		{"trusting", "lazy-file", []string{"--key", public}},
		{"other", "unpacked", nil},
	} {
		n := s.newNode(tt.name, tt.flags...)
		c := containerdtest.Start(t, containerdtest.Modern(t), n.socket())
		c.Pull(ref)
		if out := c.Run(ref, filepath.Base(s.dir)+"-"+tt.name, "/bin/busybox", "cat", "/etc/greeting"); out != "hello\n" {
			t.Errorf("%s: a container reads %q", tt.name, out)
		}
		layers := n.status().Layers
		if len(layers) != 2 {
			t.Errorf("%s: there are layers %+v, want 2", tt.name, layers)
		}
		for _, l := range layers {
			if l.Path != tt.path {
				t.Errorf("%s: a layer is %+v, want %s", tt.name, l, tt.path)
			}
		}
	}
}

// TestRegistryIndexKilled: a registry that is killed while it makes an index
// makes it after its restart, and nothing is left of the first try.
func TestRegistryIndexKilled(t *testing.T) {
	private, _ := newIndexKey(t)
	flags := []string{"--index-key", private}
	s := newSite(t, nil, flags...)
	data := filepath.Join(s.dir, "registry")
	names := func(room string) []string {
		paths, err := filepath.Glob(filepath.Join(data, room, "*"))
		if err != nil {
			t.Fatal(err)
		}
		return paths
	}
	// The first layer's object waits in tmp/ for the index, while the second one, which takes long, is expanded.
	for try := 0; ; try++ {
		name := fmt.Sprintf("app%d", try)
		ref := s.push(name, map[string][]byte{}, map[string][]byte{"data/weights": noise(48<<20, uint64(try))})
		indexed := func() bool { return len(names("repositories/"+name+"/_referrers/sha256")) > 0 }
		s.until("an image is being indexed", func() bool { return len(names("tmp")) > 0 || indexed() })
		s.server.Process.Kill()
		s.server.Wait()
		midway := len(names("tmp")) > 0 && !indexed()
		s.server = s.start("registry", append([]string{"registry", "--data", data, "--listen", s.registry}, flags...)...)
		s.answers(s.registry)
		s.indexOf(ref)
		if midway {
			break
		}
		if try == 5 {
			t.Fatal("the registry was never killed while it made an index")
		}
	}
	s.until("nothing temporary is left", func() bool { return len(names("tmp"))+len(names("uploads")) == 0 })
}
