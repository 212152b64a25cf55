package agent

import (
	"bytes"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/lab"
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

// TestShelfBroken: a broken document is a miss. It is fetched again, and while
// nobody has it nothing is admitted by it.
func TestShelfBroken(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	if err := lab.Synthesize(t.Context(), source, 2<<20, lab.ModelOptions{Shards: 1}); err != nil {
		t.Fatal(err)
	}
	name := newRegistry(t)
	policy := push(t, source, name+"/m:v1")
	node := filepath.Join(dir, "node")
	pull := func() error { return pullOnce(t, node, policy, name+"/m:v1", filepath.Join(t.TempDir(), "out")) }
	if err := pull(); err != nil {
		t.Fatal(err)
	}
	kept := storedFiles(t, filepath.Join(node, "admitted", "blobs"))
	if len(kept) < 5 { // a manifest, an index with its config, and two signatures
		t.Errorf("%d documents are kept, want at least 5", len(kept))
	}
	for _, path := range kept {
		right, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		flipAt(t, path, len(right)/2)
		if err := pull(); err != nil {
			t.Errorf("%s is altered: %v", path, err)
		}
		if b, err := os.ReadFile(path); !bytes.Equal(b, right) {
			t.Errorf("%s is altered, and stays so: %v", path, err)
		}
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
