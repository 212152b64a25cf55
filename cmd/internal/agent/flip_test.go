package agent

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/lab"
	"github.com/spate-project/spate/oci/model"
	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/p2p/link"
	"github.com/spate-project/spate/signing"
	"github.com/spate-project/spate/signing/cosign"
)

// TestFlipEveryStoredByte alters, one at a time, every kind of file that a
// registry and an agent keep, and pulls the model each time: it comes right, or
// not at all.
func TestFlipEveryStoredByte(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	source := filepath.Join(dir, "source")
	if err := lab.Synthesize(ctx, source, 2<<20, lab.ModelOptions{Shards: 2}); err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(dir, "registry")
	reg, err := registry.Open(store, registry.Options{Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	srv := httptest.NewServer(reg)
	defer srv.Close()
	ref := strings.TrimPrefix(srv.URL, "http://") + "/m:v1"
	policy := push(t, source, ref)

	node := filepath.Join(dir, "node")
	pull := func(to string) error { return pullOnce(t, node, policy, ref, to) }
	right := filepath.Join(dir, "right")
	if err := pull(right); err != nil {
		t.Fatal(err)
	}
	same(t, source, right)

	for _, kept := range []struct{ name, dir string }{{"agent", filepath.Join(node, "cache")}, {"registry", store}} {
		refused, healed := 0, 0
		for _, path := range storedFiles(t, kept.dir) {
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			offsets := []int{len(whole) / 2}
			if kept.name == "agent" {
				offsets = append(offsets, 0, len(whole)-1)
			}
			for _, off := range offsets {
				if kept.name == "registry" {
					// Nothing that the node has may help.
					if err := os.RemoveAll(node); err != nil {
						t.Fatal(err)
					}
				}
				flipAt(t, path, off)
				to := filepath.Join(t.TempDir(), "out")
				switch err := pull(to); {
				case err != nil && kept.name == "agent":
					t.Errorf("%s, byte %d: an agent did not recover: %v", path, off, err)
				case err != nil:
					refused++
					if !strings.Contains(err.Error(), ref) {
						t.Errorf("%s, byte %d: the error does not say what could not be pulled: %v", path, off, err)
					}
				default:
					healed++
					same(t, source, to)
				}
				subset(t, source, to)
				if kept.name == "registry" {
					flipAt(t, path, off)
				} else if err := os.WriteFile(path, whole, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
			}
		}
		t.Logf("%s: %d altered bytes refused, %d without effect", kept.name, refused, healed)
		if kept.name == "registry" && refused == 0 || healed == 0 {
			t.Errorf("%s: %d refused, %d without effect: the test alters nothing that counts", kept.name, refused, healed)
		}
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// push packs, pushes and signs source as ref and returns the policy that admits it.
func push(t *testing.T, source, ref string) *signing.Policy {
	t.Helper()
	private, public, err := cosign.GenerateKeyPair(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := cosign.NewSigner(private, func() ([]byte, error) { return nil, nil })
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := cosign.NewVerifier(public, "test")
	if err != nil {
		t.Fatal(err)
	}
	repo, err := remote.Open(ref, remote.Options{})
	if err != nil {
		t.Fatal(err)
	}
	packed, err := model.Pack(t.Context(), source, repo, model.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []ocispec.Descriptor{packed.Descriptor, packed.Index.Descriptor} {
		digest, err := piece.ParseDigest(d.Digest.String())
		if err != nil {
			t.Fatal(err)
		}
		bundle, err := signer.Sign(t.Context(), digest)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := signing.Attach(t.Context(), repo, d, bundle); err != nil {
			t.Fatal(err)
		}
	}
	if err := repo.Tag(t.Context(), packed.Descriptor, "v1"); err != nil {
		t.Fatal(err)
	}
	return &signing.Policy{Verifiers: []signing.Verifier{verifier}}
}

// pullOnce runs an agent of its own for one pull.
func pullOnce(t *testing.T, data string, policy *signing.Policy, ref, to string) error {
	t.Helper()
	_, _, end := running(t, Options{Data: data, Policy: policy, Link: link.New(0, 0)})
	defer end()
	c := NewClient(data)
	defer c.Close()
	return c.Pull(t.Context(), PullRequest{Reference: ref, Dir: to}, func(Event) {})
}

// storedFiles returns the files below dir that hold bytes.
func storedFiles(t *testing.T, dir string) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path == filepath.Join(dir, "blobs"):
			return fs.SkipDir // the same files as those of the repositories
		case !d.Type().IsRegular() || d.Name() == "lock":
			return nil
		}
		if info, err := d.Info(); err != nil || info.Size() == 0 {
			return err
		}
		paths = append(paths, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func flipAt(t *testing.T, path string, off int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], int64(off)); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], int64(off)); err != nil {
		t.Fatal(err)
	}
}

// files returns what is in the files of dir, by name; nothing when it is absent.
func files(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	m := map[string][]byte{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		m[e.Name()] = b
	}
	return m
}

func same(t *testing.T, want, got string) {
	t.Helper()
	if !maps.EqualFunc(files(t, want), files(t, got), bytes.Equal) {
		t.Errorf("%s is not %s", got, want)
	}
}

// subset fails when a file of got is not the one of want.
func subset(t *testing.T, want, got string) {
	t.Helper()
	source := files(t, want)
	for name, b := range files(t, got) {
		if !bytes.Equal(b, source[name]) {
			t.Errorf("%s in %s is altered", name, got)
		}
	}
}
