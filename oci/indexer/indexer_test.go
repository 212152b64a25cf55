package indexer

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/image"
	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/signing"
)

// What a client pushes is indexed as `spate index` would, signed, and otherwise as it was.
func TestPush(t *testing.T) {
	s := newServer(t)
	ctx := t.Context()
	local := memory.New()
	amd, amdText := pushImage(t, local, archive(t, noise(1, 700_000)), archive(t, []byte("a")))
	arm, armText := pushImage(t, local, archive(t, noise(2, 300_000)), archive(t, []byte("b")))
	amd.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	arm.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm64"}
	list := push(t, local, ocispec.MediaTypeImageIndex, marshal(t, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{amd, arm},
	}))
	if err := local.Tag(ctx, list, "v1"); err != nil {
		t.Fatal(err)
	}
	repo := s.open("apps/web")
	if _, err := oras.Copy(ctx, local, "v1", repo, "v1", oras.DefaultCopyOptions); err != nil {
		t.Fatal(err)
	}
	s.settled(2, 0, 0)

	for _, m := range []image.Manifest{{Descriptor: amd, Bytes: amdText}, {Descriptor: arm, Bytes: armText}} {
		want, err := image.Build(ctx, local, m, image.Options{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		found := indexes(t, repo, m.Descriptor)
		if len(found) != 1 || found[0].Digest != want.Index.Descriptor.Digest {
			t.Fatalf("the indexes of %s are %v, want %s", m.Descriptor.Digest, found, want.Index.Descriptor.Digest)
		}
		if got := fetch(t, repo, found[0]); !bytes.Equal(got, want.Index.Manifest) {
			t.Errorf("the index is %s, want %s", got, want.Index.Manifest)
		}
		// All that it lists is there: nothing is to be sent for it again.
		if again, err := image.Build(ctx, repo, m, image.Options{Dir: t.TempDir()}); err != nil || again.Index.Descriptor.Digest != found[0].Digest {
			t.Errorf("the index built by a client: %v, %v", again, err)
		}
		policy := &signing.Policy{Verifiers: []signing.Verifier{s.opts.Verifier}}
		if _, _, err := policy.Admit(ctx, repo, found[0].Digest.String()); err != nil {
			t.Errorf("the index: %v", err)
		}
		if _, _, err := policy.Admit(ctx, repo, m.Descriptor.Digest.String()); !errors.Is(err, piece.ErrNotTrusted) {
			t.Errorf("the registry's key admits the image: %v", err)
		}
		if got := fetch(t, repo, m.Descriptor); !bytes.Equal(got, m.Bytes) {
			t.Errorf("the image is %s, want %s", got, m.Bytes)
		}
	}
	if found := referrers(t, repo, list, ""); len(found) > 0 {
		t.Errorf("the list of images has %v", found)
	}
	s.clean()

	// Once more: it has an index already.
	if err := repo.PushReference(ctx, amd, bytes.NewReader(amdText), "again"); err != nil {
		t.Fatal(err)
	}
	s.settled(2, 0, 1)
	if found := referrers(t, repo, indexes(t, repo, amd)[0], oci.ArtifactTypeBundle); len(found) != 1 {
		t.Errorf("the index has the signatures %v, want one", found)
	}
}

// What is no image, or is about another manifest, is left alone.
func TestLeftAlone(t *testing.T) {
	s := newServer(t)
	repo := s.open("apps/web")
	subject, _ := pushImage(t, repo, archive(t, noise(1, 1000)))
	s.settled(1, 0, 0)

	layer := push(t, repo, ocispec.MediaTypeImageLayerGzip, gzipped(t, archive(t, noise(2, 1000))))
	config := push(t, repo, ocispec.MediaTypeImageConfig, []byte(`{"rootfs":{"type":"layers","diff_ids":["`+digest.FromBytes(archive(t, noise(2, 1000))).String()+`"]}}`))
	weight := push(t, repo, oci.LayerWeight+oci.PackingRaw, noise(3, 1000))
	modelConfig := push(t, repo, oci.MediaTypeModelConfig, []byte(`{"modelfs":{"type":"layers"}}`))
	for name, m := range map[string]ocispec.Manifest{
		"a referrer":  {Config: config, Layers: []ocispec.Descriptor{layer}, Subject: &subject},
		"an artifact": {ArtifactType: "application/vnd.example", Config: config, Layers: []ocispec.Descriptor{layer}},
		"a model":     {ArtifactType: oci.ArtifactTypeModel, Config: modelConfig, Layers: []ocispec.Descriptor{weight}},
	} {
		m.Versioned, m.MediaType = specs.Versioned{SchemaVersion: 2}, ocispec.MediaTypeImageManifest
		desc := push(t, repo, m.MediaType, marshal(t, m))
		s.settled(1, 0, 0)
		if found := indexes(t, repo, desc); len(found) > 0 {
			t.Errorf("%s has %v", name, found)
		}
	}

	// An attestation has the config of an image, but no layers of one.
	statement := push(t, repo, "application/vnd.in-toto+json", []byte(`{}`))
	push(t, repo, ocispec.MediaTypeImageManifest, marshal(t, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: []ocispec.Descriptor{statement},
	}))
	s.settled(1, 0, 1)
}

// Images that cannot be indexed stay as they are, and others get their index all the same.
func TestBroken(t *testing.T) {
	s := newServer(t)
	repo := s.open("apps/web")
	noTar, _ := pushImage(t, repo, noise(1, 5000))
	s.settled(0, 1, 0)
	bomb, text := pushImage(t, repo, archive(t, make([]byte, 2<<20)))
	s.settled(0, 2, 0)
	for _, desc := range []ocispec.Descriptor{noTar, bomb} {
		if found := referrers(t, repo, desc, ""); len(found) > 0 {
			t.Errorf("%s has %v", desc.Digest, found)
		}
	}
	s.clean()
	if got := fetch(t, repo, bomb); !bytes.Equal(got, text) {
		t.Errorf("the image is %s, want %s", got, text)
	}
	good, _ := pushImage(t, repo, archive(t, noise(2, 5000)))
	s.settled(1, 2, 0)
	if found := indexes(t, repo, good); len(found) != 1 {
		t.Errorf("a good image has %v", found)
	}
}

// Of layers that a disk has spoiled, none is taken for the right one.
func TestDamaged(t *testing.T) {
	signer, verifier := newKey(t)
	opts := Options{Signer: signer, Verifier: verifier, Logger: logger(t)}
	s := serve(t, t.TempDir(), opts)
	desc, text := pushImage(t, s.open("apps/web"), archive(t, noise(1, 300_000)))
	s.end()
	m, err := registry.ParseManifest(text, digest.Canonical)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.dir, "blobs", "sha256", m.Blobs[1].Digest.Encoded())
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s = serve(t, s.dir, opts)
	s.run()
	s.settled(0, 1, 0)
	if found := referrers(t, s.open("apps/web"), desc, ""); len(found) > 0 {
		t.Errorf("a damaged image has %v", found)
	}
	s.clean()
}

// What was pushed while no indexer ran, or is signed by nobody, or by another,
// or lacks a part, gets its index; what has one keeps it.
func TestRestart(t *testing.T) {
	signer, verifier := newKey(t)
	other, _ := newKey(t)
	opts := Options{Signer: signer, Verifier: verifier, Logger: logger(t)}
	dir := t.TempDir()
	s := serve(t, dir, opts)
	ctx := t.Context()
	pushed := map[string]ocispec.Descriptor{}
	build := func(name string, seed byte, signers ...signing.Signer) {
		repo := s.open(name)
		desc, text := pushImage(t, repo, archive(t, noise(seed, 300_000)))
		pushed[name] = desc
		if name == "none" {
			return
		}
		built, err := image.Build(ctx, repo, image.Manifest{Descriptor: desc, Bytes: text}, image.Options{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		for _, signer := range signers {
			if _, err := signing.Sign(ctx, repo, signer, built.Index.Descriptor); err != nil {
				t.Fatal(err)
			}
		}
	}
	build("none", 1)
	build("unsigned", 2)
	build("another", 3, other)
	build("signed", 4, signer)
	build("lacking/a/part", 5, signer)
	if err := s.reg.Store().DeleteBlob("lacking/a/part", digest.FromBytes(archive(t, noise(5, 300_000)))); err != nil {
		t.Fatal(err)
	}
	s.end()

	for _, want := range []Stats{{Indexed: 4, Skipped: 1}, {Skipped: 5}} {
		s = serve(t, dir, opts)
		s.run()
		s.settled(want.Indexed, 0, want.Skipped)
		for name, desc := range pushed {
			repo := s.open(name)
			found := indexes(t, repo, desc)
			if len(found) != 1 {
				t.Errorf("%s: indexes %v, want one", name, found)
				continue
			}
			policy := &signing.Policy{Verifiers: []signing.Verifier{verifier}}
			if _, _, err := policy.Admit(ctx, repo, found[0].Digest.String()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		s.clean()
		s.end()
	}
}

// A slowSigner calls a function before it signs.
type slowSigner struct {
	signing.Signer
	before func(context.Context)
}

func (s slowSigner) Sign(ctx context.Context, d piece.Digest) ([]byte, error) {
	s.before(ctx)
	return s.Signer.Sign(ctx, d)
}

// An image that is deleted while it is being indexed leaves nothing behind.
func TestDeletedMeanwhile(t *testing.T) {
	signer, verifier := newKey(t)
	reached, deleted := make(chan bool), make(chan bool)
	s := serve(t, t.TempDir(), Options{Verifier: verifier, Logger: logger(t), Signer: slowSigner{signer, func(context.Context) {
		reached <- true
		<-deleted
	}}})
	s.run()
	s.settled(0, 0, 0)
	repo := s.open("apps/web")
	object := archive(t, noise(1, 300_000))
	desc, _ := pushImage(t, repo, object)
	<-reached
	if n := s.indexer.Stats().Pending; n != 1 {
		t.Errorf("%d images are pending, want 1", n)
	}
	if err := repo.Delete(t.Context(), desc); err != nil {
		t.Error(err)
	}
	deleted <- true
	s.settled(0, 0, 0)
	s.clean()
	if found := referrers(t, repo, desc, ""); len(found) > 0 {
		t.Errorf("%v is left", found)
	}
	if ok, err := repo.Exists(t.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(object), Size: int64(len(object))}); ok || err != nil {
		t.Errorf("its object is left: %v, %v", ok, err)
	}
}

// A registry that ends gives up what is under way, and its successor does it.
func TestEnd(t *testing.T) {
	signer, verifier := newKey(t)
	dir, reached := t.TempDir(), make(chan bool)
	s := serve(t, dir, Options{Verifier: verifier, Logger: logger(t), Signer: slowSigner{signer, func(ctx context.Context) {
		close(reached)
		<-ctx.Done()
	}}})
	s.run()
	s.settled(0, 0, 0)
	desc, _ := pushImage(t, s.open("apps/web"), archive(t, noise(1, 300_000)))
	<-reached
	s.end()
	s.clean()
	if stats := s.indexer.Stats(); stats.Failed != 0 {
		t.Errorf("an image that was given up is counted: %+v", stats)
	}

	s = serve(t, dir, Options{Signer: signer, Verifier: verifier, Logger: logger(t)})
	s.run()
	s.settled(1, 0, 0)
	if found := indexes(t, s.open("apps/web"), desc); len(found) != 1 {
		t.Errorf("there are the indexes %v, want one", found)
	}
	s.clean()
}

// More is pushed than the queue holds: the store remembers it.
func TestOverflow(t *testing.T) {
	q := newQueue()
	if !q.takeLook() || q.takeLook() {
		t.Error("a new queue asks not once for a look over the store")
	}
	q.done()
	numbered := func(i int) task { return task{"r", digest.FromString(strconv.Itoa(i))} }
	for i := range maxQueued {
		q.add(numbered(i))
	}
	q.add(numbered(0)) // is there already
	if q.takeLook() || q.pending() != maxQueued {
		t.Errorf("the queue holds %d", q.pending())
	}
	q.add(numbered(maxQueued))
	if q.pending() != maxQueued+1 || !q.takeLook() {
		t.Errorf("a full queue does not ask for a look over the store, or holds %d", q.pending())
	}
	q.done()
	for i := range maxQueued {
		if got, ok := q.take(); !ok || got != numbered(i) {
			t.Fatalf("task %d is %v, %v, want %v", i, got, ok, numbered(i))
		}
		q.done()
	}
	if _, ok := q.take(); ok || q.pending() != 0 {
		t.Error("an empty queue has a task")
	}
}
