package signing

import (
	"context"
	"errors"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
)

const (
	// maxAttestation bounds an attestation's bundle, in bytes, and maxAttestations
	// how many of the newest bundles are read to find one.
	maxAttestation  = 16 << 20
	maxAttestations = 32
)

// attested returns nil when subject has all attestations that the rule asks for, and
// a refusal for the first one that it lacks. Each one is a step below step.
func (r *Rule) attested(ctx context.Context, repo Repository, subject ocispec.Descriptor, step *Step) error {
	if len(r.Attestations) == 0 {
		return nil
	}
	about, err := piece.ParseDigest(subject.Digest.String())
	if err != nil {
		return refusalf("%v", err)
	}
	found, more, err := newest(ctx, repo, subject, oci.ArtifactTypeBundle, maxAttestations)
	if err != nil {
		return fmt.Errorf("list attestations: %w", err)
	}
	missing := make([]bool, len(r.Attestations))
	left := len(missing)
	for i := range missing {
		missing[i] = true
	}
	var failed error // the first failure that says nothing about an attestation
	for _, desc := range found {
		if left == 0 {
			break
		}
		bundle, err := fetchBundle(ctx, repo, desc, subject, maxAttestation)
		if err != nil {
			if failed == nil && !isRefusal(err) {
				failed = err
			}
			continue
		}
		for i, a := range r.Attestations {
			who := a.Signers
			if len(who) == 0 {
				who = r.Signers
			}
			for _, v := range who {
				if missing[i] && v.VerifyAttestation(ctx, bundle, about, a.PredicateType) == nil {
					s := step.add("attestation", desc.Digest)
					s.OK, s.SignedBy, s.Of = true, v.Identity(), a.PredicateType
					missing[i] = false
					left--
				}
			}
		}
	}
	for i, a := range r.Attestations {
		if !missing[i] {
			continue
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case failed != nil:
			return failed
		}
		why := fmt.Sprintf("no attestation of type %s by an accepted identity is attached to it", a.PredicateType)
		if more {
			why += fmt.Sprintf(", among the newest %d", len(found))
		}
		s := step.add("attestation", "")
		s.Of = a.PredicateType
		s.refuse(errors.New("none is attached that an accepted identity made"))
		return refusal(why)
	}
	return nil
}
