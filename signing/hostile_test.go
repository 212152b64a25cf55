package signing_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/signing"
)

// TestFailures holds that a registry that fails is never taken for one that has no signature.
func TestFailures(t *testing.T) {
	down := errors.New("connection refused")
	failList := func(failing string) func(string, []ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		return func(asked string, found []ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			if asked == failing {
				return nil, down
			}
			return found, nil
		}
	}
	failFetch := func(failing digest.Digest) func(ocispec.Descriptor, []byte) ([]byte, error) {
		return func(d ocispec.Descriptor, b []byte) ([]byte, error) {
			if d.Digest == failing {
				return nil, down
			}
			return b, nil
		}
	}
	for name, spoil := range map[string]func(b *bench, signature, index ocispec.Descriptor){
		"resolve": func(b *bench, _, _ ocispec.Descriptor) {
			b.repo.resolve = func(ocispec.Descriptor) (ocispec.Descriptor, error) { return ocispec.Descriptor{}, down }
		},
		"manifest":        func(b *bench, _, _ ocispec.Descriptor) { b.repo.fetch = failFetch(b.manifest.Digest) },
		"signature list":  func(b *bench, _, _ ocispec.Descriptor) { b.repo.list = failList(oci.ArtifactTypeBundle) },
		"signature":       func(b *bench, s, _ ocispec.Descriptor) { b.repo.fetch = failFetch(s.Digest) },
		"index list":      func(b *bench, _, _ ocispec.Descriptor) { b.repo.list = failList(oci.ArtifactTypeIndex) },
		"index":           func(b *bench, _, i ocispec.Descriptor) { b.repo.fetch = failFetch(i.Digest) },
		"index signature": func(b *bench, _, i ocispec.Descriptor) { b.repo.fetch = failFetch(b.signed(b.ours, i).Digest) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, stores["memory"](t))
			signature, index := b.signed(b.ours, b.manifest), b.index(b.manifest, "a", "")
			spoil(b, signature, index)
			trusted, chain, err := b.policy.Admit(t.Context(), b.repo, reference)
			if !errors.Is(err, down) || errors.Is(err, piece.ErrNotTrusted) || trusted.Valid() || chain.Admitted {
				t.Errorf("%v, valid %t\n%s", err, trusted.Valid(), chain)
			}
			if err != nil && !strings.Contains(err.Error(), reference) {
				t.Errorf("error %q does not name the reference", err)
			}
		})
	}
	t.Run("another signature is there", func(t *testing.T) {
		b := newBench(t, stores["memory"](t))
		b.repo.fetch = failFetch(b.signed(b.stranger, b.manifest).Digest)
		b.signed(b.ours, b.manifest)
		if _, _, err := b.policy.Admit(t.Context(), b.repo, reference); err != nil {
			t.Error(err)
		}
	})
	t.Run("context", func(t *testing.T) {
		b := newBench(t, stores["memory"](t))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		trusted, _, err := b.policy.Admit(ctx, b.repo, reference)
		if !errors.Is(err, context.Canceled) || errors.Is(err, piece.ErrNotTrusted) || trusted.Valid() {
			t.Error(err)
		}
		// It ends when the one bundle has come, and the verifier is not asked.
		ctx, cancel = context.WithCancel(t.Context())
		b.signed(b.ours, b.manifest)
		b.repo.fetch = func(d ocispec.Descriptor, data []byte) ([]byte, error) {
			if d.MediaType == oci.ArtifactTypeBundle {
				cancel()
			}
			return data, nil
		}
		trusted, _, err = b.policy.Admit(ctx, b.repo, reference)
		if !errors.Is(err, context.Canceled) || errors.Is(err, piece.ErrNotTrusted) || trusted.Valid() {
			t.Error(err)
		}
	})
}

// TestAltered flips a bit in each document that an admission reads.
func TestAltered(t *testing.T) {
	b := newBench(t, stores["memory"](t))
	signature, index := b.signed(b.ours, b.manifest), b.index(b.manifest, "a", "")
	indexSignature := b.signed(b.ours, index)
	layer := func(desc ocispec.Descriptor) digest.Digest {
		var m ocispec.Manifest
		rc := must(b.repo.store.Fetch(t.Context(), desc))
		defer rc.Close()
		if err := json.NewDecoder(rc).Decode(&m); err != nil {
			t.Fatal(err)
		}
		return m.Layers[0].Digest
	}
	var wrong *piece.WrongBytesError
	cases := map[string]struct {
		altered digest.Digest
		check   func(signing.Trusted, error) bool
	}{
		"manifest":           {b.manifest.Digest, func(_ signing.Trusted, err error) bool { return errors.As(err, &wrong) }},
		"signature manifest": {signature.Digest, func(_ signing.Trusted, err error) bool { return errors.Is(err, piece.ErrNotTrusted) }},
		"signature":          {layer(signature), func(_ signing.Trusted, err error) bool { return errors.Is(err, piece.ErrNotTrusted) }},
		"index":              {index.Digest, func(tr signing.Trusted, err error) bool { _, ok := tr.Index(); return err == nil && !ok }},
		"index signature manifest": {
			indexSignature.Digest, func(tr signing.Trusted, err error) bool { _, ok := tr.Index(); return err == nil && !ok }},
		"index signature": {
			layer(indexSignature), func(tr signing.Trusted, err error) bool { _, ok := tr.Index(); return err == nil && !ok }},
		"nothing": {"", func(tr signing.Trusted, err error) bool { _, ok := tr.Index(); return err == nil && ok }},
	}
	for name, c := range cases {
		met := c.altered == ""
		b.repo.fetch = func(d ocispec.Descriptor, data []byte) ([]byte, error) {
			if d.Digest == c.altered {
				met = true
				data[len(data)/2] ^= 1
			}
			return data, nil
		}
		if trusted, chain, err := b.policy.Admit(t.Context(), b.repo, reference); !met || !c.check(trusted, err) {
			t.Errorf("%s altered: met %t, %v\n%s", name, met, err, chain)
		}
	}
}

func TestJunkIsBounded(t *testing.T) {
	const many = 10_000
	b := newBench(t, stores["memory"](t))
	good := b.signed(b.ours, b.manifest)
	index := b.index(b.manifest, "a", "")
	b.signed(b.ours, index)
	index.ArtifactType = oci.ArtifactTypeIndex

	for name, c := range map[string]struct {
		artifactType string
		list         []ocispec.Descriptor
		atMost       int // fetches
		check        func(signing.Trusted, error) bool
	}{
		"only junk signatures": {
			oci.ArtifactTypeBundle, junk(oci.ArtifactTypeBundle, many), 2 * (1 + 32), // of the manifest, and of its index at the same time
			func(_ signing.Trusted, err error) bool {
				return errors.Is(err, piece.ErrNotTrusted) && strings.Contains(err.Error(), "others were not tried")
			}},
		"junk of other types": {
			oci.ArtifactTypeBundle, junk("text/x", many), 2,
			func(_ signing.Trusted, err error) bool {
				return errors.Is(err, piece.ErrNotTrusted) && strings.Contains(err.Error(), "others were not looked at")
			}},
		"one signature, repeated": {
			oci.ArtifactTypeBundle, slices.Repeat([]ocispec.Descriptor{good}, many), 16,
			func(tr signing.Trusted, err error) bool { return err == nil && tr.Valid() }},
		"signature is the newest": {
			oci.ArtifactTypeBundle, append([]ocispec.Descriptor{good}, junk(oci.ArtifactTypeBundle, many)...), 3 + 1 + 32,
			func(tr signing.Trusted, err error) bool { return err == nil && tr.Valid() }},
		"only junk indexes": {
			oci.ArtifactTypeIndex, junk(oci.ArtifactTypeIndex, many), 3 + 8,
			func(tr signing.Trusted, err error) bool { _, ok := tr.Index(); return err == nil && !ok }},
		"index after junk": {
			oci.ArtifactTypeIndex, append(junk(oci.ArtifactTypeIndex, 4), index), 16,
			func(tr signing.Trusted, err error) bool { _, ok := tr.Index(); return err == nil && ok }},
	} {
		b.listed(c.artifactType, c.list...)
		b.repo.fetched, b.repo.listed = 0, 0
		trusted, _, err := b.policy.Admit(t.Context(), b.repo, reference)
		if !c.check(trusted, err) {
			t.Errorf("%s: %v", name, err)
		}
		if b.repo.fetched > c.atMost {
			t.Errorf("%s: %d fetches, at most %d", name, b.repo.fetched, c.atMost)
		}
		if b.repo.listed >= many {
			t.Errorf("%s: was given %d descriptors", name, b.repo.listed)
		}
	}
}
