package signing_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/signing"
)

const (
	provenance = "https://slsa.dev/provenance/v1"
	sbom       = "https://spdx.dev/Document"
)

func (b *bench) attested(k key, subject ocispec.Descriptor, predicateType string) {
	b.t.Helper()
	if _, err := signing.Attest(b.t.Context(), b.repo, k, subject, predicateType, []byte(`{"builder":"ours"}`)); err != nil {
		b.t.Fatal(err)
	}
}

// TestAttestations: an artifact is admitted when it is signed and has each attestation
// that its rule asks for, of that type, about itself, by who may make it.
func TestAttestations(t *testing.T) {
	const full = "registry.example/team/model:v1"
	both := func(b *bench) []signing.Attestation {
		return []signing.Attestation{{PredicateType: provenance}, {PredicateType: sbom, Signers: []signing.Verifier{b.stranger.verifier}}}
	}
	for name, test := range map[string]struct {
		make   func(b *bench)
		denied string
	}{
		"all": {make: func(b *bench) {
			b.signed(b.ours, b.manifest)
			b.attested(b.ours, b.manifest, provenance)
			b.attested(b.stranger, b.manifest, sbom)
		}},
		"among others": {make: func(b *bench) {
			b.signed(b.ours, b.manifest)
			for range 5 {
				b.attested(b.stranger, b.manifest, provenance)
				b.attested(b.ours, b.manifest, "https://example.com/other")
			}
			b.attested(b.ours, b.manifest, provenance)
			b.attested(b.stranger, b.manifest, sbom)
		}},
		"none": {make: func(b *bench) { b.signed(b.ours, b.manifest) }, denied: "no attestation of type " + provenance},
		"one of two": {make: func(b *bench) {
			b.signed(b.ours, b.manifest)
			b.attested(b.ours, b.manifest, provenance)
		}, denied: "no attestation of type " + sbom},
		"by another": {make: func(b *bench) {
			b.signed(b.ours, b.manifest)
			b.attested(b.stranger, b.manifest, provenance)
			b.attested(b.stranger, b.manifest, sbom)
		}, denied: "no attestation of type " + provenance},
		"by who signs, where another has to": {make: func(b *bench) {
			b.signed(b.ours, b.manifest)
			b.attested(b.ours, b.manifest, provenance)
			b.attested(b.ours, b.manifest, sbom)
		}, denied: "no attestation of type " + sbom},
		"about another digest": {make: func(b *bench) {
			b.signed(b.ours, b.manifest)
			other := b.image("other")
			bundle := must(b.ours.Attest(b.t.Context(), must(piece.ParseDigest(other.Digest.String())), provenance, []byte("{}")))
			must(signing.Attach(b.t.Context(), b.repo, b.manifest, bundle))
		}, denied: "no attestation of type " + provenance},
		"attested and not signed": {make: func(b *bench) {
			b.attested(b.ours, b.manifest, provenance)
			b.attested(b.stranger, b.manifest, sbom)
		}, denied: "none of the 2 signatures attached to it is accepted"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, stores["memory"](t))
			b.policy = &signing.Policy{Rules: []signing.Rule{{
				Name: "team", References: []oci.Pattern{"**"}, Signers: []signing.Verifier{b.ours.verifier}, Attestations: both(b),
			}}}
			if err := b.repo.Tag(t.Context(), b.manifest, full); err != nil {
				t.Fatal(err)
			}
			test.make(b)
			trusted, chain, err := b.policy.Admit(t.Context(), b.repo, full)
			if test.denied == "" {
				if err != nil || !trusted.Valid() || strings.Count(chain.String(), "attestation of ") != 2 {
					t.Errorf("%v\n%s", err, chain)
				}
				return
			}
			denied, ok := errors.AsType[*signing.DeniedError](err)
			if !ok || trusted.Valid() || chain.Admitted || chain.Steps[0].OK || !strings.Contains(err.Error(), test.denied) || denied.Next == "" {
				t.Errorf("%v, want %q\n%s", err, test.denied, chain)
			}
		})
	}
}

// TestAttest: what is no statement is refused before anything is attached.
func TestAttest(t *testing.T) {
	b := newBench(t, stores["memory"](t))
	for predicate, predicateType := range map[string]string{
		"": provenance, "[]": provenance, `"text"`: provenance, "{": provenance, "{}": "https://sigstore.dev/cosign/sign/v1",
		fmt.Sprintf(`{"text":%q}`, strings.Repeat("x", 13<<20)): provenance,
	} {
		if _, err := signing.Attest(t.Context(), b.repo, b.ours, b.manifest, predicateType, []byte(predicate)); err == nil {
			t.Errorf("%.20q of type %s was attached", predicate, predicateType)
		}
	}
	if found, err := b.repo.Predecessors(t.Context(), b.manifest); err != nil || len(found) != 0 {
		t.Errorf("%d referrers, %v", len(found), err)
	}
}
