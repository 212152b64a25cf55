package signing_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/memory"
	ocilayout "oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/signing"
	"github.com/spate-project/spate/signing/cosign"
)

const reference = "v1"

// A store is what a repository is kept in.
type store interface {
	oras.Target
	content.PredecessorFinder
}

// stores are the kinds of store that every case runs on.
var stores = map[string]func(testing.TB) store{
	"memory": func(testing.TB) store { return memory.New() },
	"disk":   func(t testing.TB) store { return must(ocilayout.New(t.TempDir())) },
}

// A repository is a store that lists referrers, as a registry does, and that
// can be told to misbehave. A nil func behaves.
type repository struct {
	store
	resolve func(ocispec.Descriptor) (ocispec.Descriptor, error)
	list    func(artifactType string, found []ocispec.Descriptor) ([]ocispec.Descriptor, error)
	fetch   func(ocispec.Descriptor, []byte) ([]byte, error)

	mu      sync.Mutex // held by each request
	fetched int        // documents
	listed  int        // descriptors
}

var _ signing.Repository = (*repository)(nil)

func (r *repository) Resolve(ctx context.Context, reference string) (ocispec.Descriptor, error) {
	desc, err := r.store.Resolve(ctx, reference)
	if err == nil && r.resolve != nil {
		return r.resolve(desc)
	}
	return desc, err
}

func (r *repository) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fetched++
	rc, err := r.store.Fetch(ctx, desc)
	if err != nil || r.fetch == nil {
		return rc, err
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		return nil, err
	}
	b, err = r.fetch(desc, b)
	return io.NopCloser(bytes.NewReader(b)), err
}

func (r *repository) Referrers(ctx context.Context, desc ocispec.Descriptor, artifactType string, fn func([]ocispec.Descriptor) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	found, err := registry.Referrers(ctx, r.store, desc, artifactType)
	if err != nil {
		return err
	}
	slices.SortFunc(found, func(a, b ocispec.Descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	if r.list != nil {
		if found, err = r.list(artifactType, found); err != nil {
			return err
		}
	}
	for page := range slices.Chunk(found, 100) {
		r.listed += len(page)
		if err := fn(page); err != nil {
			return err
		}
	}
	return nil
}

// A key signs and is the policy that accepts it.
type key struct {
	signing.Signer
	verifier signing.Verifier
}

func newKey(t testing.TB, name string) key {
	t.Helper()
	k := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(k))})
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(k.Public()))})
	return key{must(cosign.NewSigner(private, nil)), must(cosign.NewVerifier(public, name))}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A bench is a repository with a tagged manifest, and two keys of which the policy accepts one.
type bench struct {
	t        *testing.T
	repo     *repository
	ours     key
	stranger key
	policy   *signing.Policy
	manifest ocispec.Descriptor
}

func newBench(t *testing.T, s store) *bench {
	b := &bench{t: t, repo: &repository{store: s}, ours: newKey(t, "ours.pub"), stranger: newKey(t, "stranger.pub")}
	b.policy = &signing.Policy{Verifiers: []signing.Verifier{b.ours.verifier}}
	b.manifest = b.image("model")
	b.tag(b.manifest)
	return b
}

func (b *bench) push(mediaType string, data []byte) ocispec.Descriptor {
	b.t.Helper()
	desc := content.NewDescriptorFromBytes(mediaType, data)
	if exists := must(b.repo.Exists(b.t.Context(), desc)); exists {
		return desc
	}
	if err := b.repo.Push(b.t.Context(), desc, bytes.NewReader(data)); err != nil {
		b.t.Fatal(err)
	}
	return desc
}

func (b *bench) pushJSON(mediaType string, v any) ocispec.Descriptor {
	b.t.Helper()
	return b.push(mediaType, must(json.Marshal(v)))
}

func (b *bench) tag(desc ocispec.Descriptor) {
	b.t.Helper()
	if err := b.repo.Tag(b.t.Context(), desc, reference); err != nil {
		b.t.Fatal(err)
	}
}

// artifact returns a manifest with one layer that holds data.
func (b *bench) artifact(mediaType, data string) ocispec.Manifest {
	b.t.Helper()
	return ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    b.push(ocispec.MediaTypeEmptyJSON, []byte("{}")),
		Layers:    []ocispec.Descriptor{b.push(mediaType, []byte(data))},
	}
}

func (b *bench) image(data string) ocispec.Descriptor {
	b.t.Helper()
	return b.pushJSON(ocispec.MediaTypeImageManifest, b.artifact("application/octet-stream", data))
}

// index attaches an index to subject that says created, unless that is empty.
func (b *bench) index(subject ocispec.Descriptor, data, created string) ocispec.Descriptor {
	b.t.Helper()
	m := b.artifact(oci.MediaTypePieceLayer, data)
	m.ArtifactType, m.Subject = oci.ArtifactTypeIndex, &subject
	if created != "" {
		m.Annotations = map[string]string{ocispec.AnnotationCreated: created}
	}
	return b.pushJSON(ocispec.MediaTypeImageManifest, m)
}

// attach attaches a bundle to subject, in a manifest that change may spoil.
func (b *bench) attach(subject ocispec.Descriptor, bundle []byte, change func(*ocispec.Manifest)) ocispec.Descriptor {
	b.t.Helper()
	m := b.artifact(oci.ArtifactTypeBundle, string(bundle))
	m.ArtifactType, m.Subject = oci.ArtifactTypeBundle, &subject
	if change != nil {
		change(&m)
	}
	desc := b.pushJSON(ocispec.MediaTypeImageManifest, m)
	desc.ArtifactType = oci.ArtifactTypeBundle // what a list says of it
	return desc
}

func (b *bench) sign(k key, subject ocispec.Descriptor) []byte {
	b.t.Helper()
	return must(k.Sign(b.t.Context(), must(piece.ParseDigest(subject.Digest.String()))))
}

// signed attaches k's signature as everybody else does, by Attach.
func (b *bench) signed(k key, subject ocispec.Descriptor) ocispec.Descriptor {
	b.t.Helper()
	return must(signing.Attach(b.t.Context(), b.repo, subject, b.sign(k, subject)))
}

// listed makes the repository list descs, whatever they are, of artifactType.
func (b *bench) listed(artifactType string, descs ...ocispec.Descriptor) {
	b.repo.list = func(asked string, found []ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if asked == artifactType {
			return descs, nil
		}
		return found, nil
	}
}

// junk returns n descriptors of nothing.
func junk(artifactType string, n int) []ocispec.Descriptor {
	descs := make([]ocispec.Descriptor, n)
	for i := range descs {
		sum := sha256.Sum256([]byte{byte(i), byte(i >> 8), byte(i >> 16)})
		descs[i] = ocispec.Descriptor{
			MediaType:    ocispec.MediaTypeImageManifest,
			ArtifactType: artifactType,
			Digest:       digest.NewDigestFromBytes(digest.SHA256, sum[:]),
			Size:         100,
		}
	}
	return descs
}
