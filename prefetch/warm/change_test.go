package warm_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/prefetch/warm"
	"github.com/spate-project/spate/signing"
	"github.com/spate-project/spate/signing/cosign"
)

// A bench is the warm sets of a registry, and two keys of which the policy accepts one.
type bench struct {
	t                *testing.T
	host             string
	repo             *remote.Repository
	signer, stranger signing.Signer
	policy, theirs   *signing.Policy
}

func newBench(t *testing.T) *bench {
	t.Helper()
	reg, err := registry.Open(t.TempDir(), registry.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reg.Close() })
	srv := httptest.NewServer(reg)
	t.Cleanup(srv.Close)
	b := &bench{t: t, host: strings.TrimPrefix(srv.URL, "http://")}
	if b.repo, err = remote.Open(b.set("gpu"), remote.Options{}); err != nil {
		t.Fatal(err)
	}
	b.signer, b.policy = newKey(t, "ours.pub")
	b.stranger, b.theirs = newKey(t, "stranger.pub")
	return b
}

func newKey(t *testing.T, name string) (signing.Signer, *signing.Policy) {
	t.Helper()
	k := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(k))})
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(k.Public()))})
	return must(cosign.NewSigner(private, nil)), &signing.Policy{Verifiers: []signing.Verifier{must(cosign.NewVerifier(public, name))}}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func (b *bench) set(pool string) string { return warm.ReferenceOf(b.host, pool) }

func (b *bench) read(pool string) (warm.Signed, error) {
	return warm.Read(b.t.Context(), b.policy, b.repo, b.set(pool), pool)
}

func (b *bench) change(target warm.Target, edit func(*warm.Set) error) (warm.Signed, error) {
	return warm.Change(b.t.Context(), target, b.policy, b.signer, b.set("gpu"), "gpu", edit)
}

func adding(e warm.Entry) func(*warm.Set) error {
	return func(s *warm.Set) error { return s.Add(e) }
}

// add adds the model called name to the set of the pool gpu.
func (b *bench) add(name string) warm.Signed {
	b.t.Helper()
	s, err := b.change(b.repo, adding(entry(name, name, 0, 0)))
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// tagSigned puts a document in the place of the set of the pool gpu, signed by ours unless it is unsigned.
func (b *bench) tagSigned(artifactType, mediaType, document string, annotations map[string]string, signed bool) digest.Digest {
	b.t.Helper()
	ctx := b.t.Context()
	layer, err := oras.PushBytes(ctx, b.repo, mediaType, []byte(document))
	if err != nil {
		b.t.Fatal(err)
	}
	desc, err := oras.PackManifest(ctx, b.repo, oras.PackManifestVersion1_1, artifactType,
		oras.PackManifestOptions{Layers: []ocispec.Descriptor{layer}, ManifestAnnotations: annotations})
	if err == nil && signed {
		_, err = signing.Sign(ctx, b.repo, b.signer, desc)
	}
	if err == nil {
		err = b.repo.Tag(ctx, desc, "gpu")
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return desc.Digest
}

// TestHistory: each version names the one before and who signed it, and the registry keeps all of them.
func TestHistory(t *testing.T) {
	b := newBench(t)
	if _, err := b.read("gpu"); !errors.Is(err, errdef.ErrNotFound) || errors.Is(err, piece.ErrNotTrusted) {
		t.Errorf("before the first set: %v, want that it is not found", err)
	}
	made := []warm.Signed{b.add("a"), b.add("b"), b.add("c")}
	same, err := b.change(b.repo, adding(entry("c", "c", 0, 5)))
	if err != nil || same.Digest != made[2].Digest {
		t.Errorf("a change of nothing made version %d, %v", same.Version, err)
	}
	refusing := errors.New("no")
	if _, err := b.change(b.repo, func(*warm.Set) error { return refusing }); !errors.Is(err, refusing) {
		t.Errorf("the error of the edit came back as %v", err)
	}
	latest, err := b.read("gpu")
	if err != nil {
		t.Fatal(err)
	}
	list, err := warm.History(t.Context(), b.policy, b.repo, b.set("gpu"), latest)
	if err != nil || len(list) != 3 {
		t.Fatalf("%d versions, %v; want 3", len(list), err)
	}
	for i, s := range list {
		want := made[2-i]
		if s.Version != int64(3-i) || s.Digest != want.Digest || len(s.Entries) != 3-i || !strings.Contains(s.SignedBy, "ours.pub") {
			t.Errorf("version %d: %+v", 3-i, s)
		}
	}
	if list[2].Previous != "" || list[0].Previous != list[1].Digest {
		t.Errorf("the first one replaced %q, the last one %q", list[2].Previous, list[0].Previous)
	}
	if err := b.repo.Delete(t.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: list[1].Digest}); err != nil {
		t.Fatal(err)
	}
	if list, err := warm.History(t.Context(), b.policy, b.repo, b.set("gpu"), latest); err != nil || len(list) != 1 {
		t.Errorf("%d versions, %v after one was deleted; want 1", len(list), err)
	}
}

// TestReadRefuses: the set of another pool, an unsigned one and one by a stranger
// are not trusted, and nobody signs on top of them; what is no set is an error.
func TestReadRefuses(t *testing.T) {
	b := newBench(t)
	denied := func(what string) {
		t.Helper()
		if s, err := b.read("gpu"); !errors.Is(err, piece.ErrNotTrusted) || s.Digest != "" {
			t.Errorf("%s: read as %+v, %v", what, s.Set, err)
		}
		if _, err := b.change(b.repo, adding(entry("a", "a", 0, 0))); !errors.Is(err, piece.ErrNotTrusted) {
			t.Errorf("%s: changed, %v", what, err)
		}
	}
	const good = `{"pool":"gpu","version":9,"entries":[]}`
	b.tagSigned(oci.ArtifactTypeWarmSet, oci.MediaTypeWarmSet, good, nil, false)
	denied("unsigned")
	b.tagSigned(oci.ArtifactTypeWarmSet, oci.MediaTypeWarmSet, strings.Replace(good, "gpu", "cpu", 1), nil, true)
	denied("of another pool")
	if err := b.repo.Delete(t.Context(), must(b.repo.Resolve(t.Context(), "gpu"))); err != nil {
		t.Fatal(err)
	}
	if _, err := warm.Change(t.Context(), b.repo, b.theirs, b.stranger, b.set("gpu"), "gpu", adding(entry("a", "a", 0, 0))); err != nil {
		t.Fatal(err)
	}
	denied("by a stranger")

	for what, put := range map[string]func() digest.Digest{
		"another artifact": func() digest.Digest { return b.tagSigned("text/x", oci.MediaTypeWarmSet, good, nil, true) },
		"another layer":    func() digest.Digest { return b.tagSigned(oci.ArtifactTypeWarmSet, "text/x", good, nil, true) },
		"beyond bounds": func() digest.Digest {
			return b.tagSigned(oci.ArtifactTypeWarmSet, oci.MediaTypeWarmSet, good+strings.Repeat(" ", 1<<20), nil, true)
		},
		"version 0": func() digest.Digest {
			return b.tagSigned(oci.ArtifactTypeWarmSet, oci.MediaTypeWarmSet, strings.Replace(good, "9", "0", 1), nil, true)
		},
		"a version before that is no digest": func() digest.Digest {
			return b.tagSigned(oci.ArtifactTypeWarmSet, oci.MediaTypeWarmSet, good, map[string]string{oci.AnnotationWarmSetPrevious: "../x"}, true)
		},
	} {
		d := put()
		_, err := b.read("gpu")
		if err == nil || errors.Is(err, piece.ErrNotTrusted) || errors.Is(err, errdef.ErrNotFound) || !strings.Contains(err.Error(), d.String()) {
			t.Errorf("%s: %v", what, err)
		}
	}
	b.tagSigned(oci.ArtifactTypeWarmSet, oci.MediaTypeWarmSet, good, nil, true)
	if s, err := b.read("gpu"); err != nil || s.Version != 9 {
		t.Errorf("a signed set of version 9: %+v, %v", s.Set, err)
	}
}

// A contended target has another writer act before each of the first n tags are written.
type contended struct {
	warm.Target
	n     atomic.Int64
	other func(i int64)
}

func (c *contended) Resolve(ctx context.Context, reference string) (ocispec.Descriptor, error) {
	// The look before a tag is written is the one by the tag alone.
	if reference == "gpu" {
		if i := c.n.Add(-1); i >= 0 {
			c.other(i)
		}
	}
	return c.Target.Resolve(ctx, reference)
}

// TestChangeContended: what another writer does between the read and the write of
// a change is kept, and the change is made on top of it; one that is never let in says so.
func TestChangeContended(t *testing.T) {
	b := newBench(t)
	c := &contended{Target: b.repo, other: func(i int64) { b.add(fmt.Sprint("other", i)) }}
	c.n.Store(2)
	edits := 0
	s, err := b.change(c, func(s *warm.Set) error {
		edits++
		return s.Add(entry("mine", "mine", 1, 0))
	})
	if err != nil || s.Version != 3 || len(s.Entries) != 3 || names(s.Set)[0] != "mine:v1" {
		t.Errorf("version %d has %v, %v", s.Version, names(s.Set), err)
	}
	if edits != 4 { // twice in vain, then written, then found to be there
		t.Errorf("%d edits, want 4", edits)
	}
	c.n.Store(1 << 20)
	if _, err := b.change(c, adding(entry("never", "n", 0, 0))); err == nil || !strings.Contains(err.Error(), "try again") {
		t.Errorf("a change that was never let in: %v", err)
	}
	if s, err := b.read("gpu"); err != nil || slices.Contains(names(s.Set), "never:v1") || s.Version != 13 {
		t.Errorf("the set is %v, version %d, %v", names(s.Set), s.Version, err)
	}
}

// A conditional target closes the gap between a look and a write: a tag is
// written only if it still names what this writer saw last.
type conditional struct {
	warm.Target
	tag  *sync.Mutex // of all writers
	seen digest.Digest
}

func (c *conditional) Resolve(ctx context.Context, reference string) (ocispec.Descriptor, error) {
	desc, err := c.Target.Resolve(ctx, reference)
	c.seen = desc.Digest
	return desc, err
}

func (c *conditional) Tag(ctx context.Context, desc ocispec.Descriptor, reference string) error {
	c.tag.Lock()
	defer c.tag.Unlock()
	if now, _ := c.Target.Resolve(ctx, reference); now.Digest != c.seen {
		return nil
	}
	return c.Target.Tag(ctx, desc, reference)
}

// TestChangeTogether: of writers at once each one's change is there in the end.
func TestChangeTogether(t *testing.T) {
	b := newBench(t)
	var (
		group sync.WaitGroup
		tag   sync.Mutex
		want  []string
	)
	for i := range 4 {
		name := fmt.Sprint("m", i)
		want = append(want, name+":v1")
		group.Go(func() {
			if _, err := b.change(&conditional{Target: b.repo, tag: &tag}, adding(entry(name, name, 0, i))); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	group.Wait()
	s, err := b.read("gpu")
	if err != nil || !slices.Equal(names(s.Set), want) || s.Version != 4 {
		t.Errorf("version %d has %v, %v; want %v", s.Version, names(s.Set), err, want)
	}
}

// TestChangeFails: a registry that fails is not one without a set, and a pool
// whose name is no tag has none.
func TestChangeFails(t *testing.T) {
	b := newBench(t)
	if _, err := warm.Change(t.Context(), b.repo, b.policy, b.signer, b.set("gpu"), "a/b", adding(entry("a", "a", 0, 0))); err == nil {
		t.Error("a pool a/b has a set")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := warm.Change(ctx, b.repo, b.policy, b.signer, b.set("gpu"), "gpu", adding(entry("a", "a", 0, 0))); !errors.Is(err, context.Canceled) {
		t.Errorf("after its context ended: %v", err)
	}
	if _, err := b.read("gpu"); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("it wrote %v", err)
	}
}
