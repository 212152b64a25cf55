// Package cosign makes signatures as cosign v3 does with a key pair, and checks
// those by keys and by identities: a Sigstore bundle (media type v0.3) around a
// DSSE envelope around an in-toto Statement v1 of cosign's own predicate type, whose
// one subject is the digest.
//
// A key says by itself whom to trust, so neither a transparency log nor a
// timestamp is asked for; for identities a trusted root says which of these count.
// Nothing here needs a network.
package cosign

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	intoto "github.com/in-toto/attestation/go/v1"
	"github.com/sigstore/cosign/v3/pkg/cosign"
	cosignbundle "github.com/sigstore/cosign/v3/pkg/cosign/bundle"
	"github.com/sigstore/cosign/v3/pkg/types"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/spate-project/spate/cache/piece"
)

// maxBundle bounds what Verify parses, in bytes, and maxAttestation what
// VerifyAttestation does. A key's bundle has about 700.
const (
	maxBundle      = 256 << 10
	maxAttestation = 16 << 20
)

// A Verifier checks signatures by one public key. It is immutable and safe for
// concurrent use.
type Verifier struct {
	key         signature.Verifier
	fingerprint fingerprint
	source      string
}

// NewVerifier returns a Verifier for one public key in PEM, ECDSA (P-256, P-384,
// P-521) or RSA (2048, 3072, 4096 bits), as `cosign generate-key-pair` writes
// cosign.pub. source says where it came from, for people. NewVerifier keeps no
// reference to public.
func NewVerifier(public []byte, source string) (*Verifier, error) {
	key, sum, err := parsePublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("read public key from %s: %w", source, err)
	}
	return &Verifier{key: key, fingerprint: sum, source: source}, nil
}

// Identity returns the SHA-256 of the key (of its PKIX form, DER) and where the key came from.
func (v *Verifier) Identity() string {
	return fmt.Sprintf("key sha256:%s (%s)", hex.EncodeToString(v.fingerprint[:]), v.source)
}

// Verify reports whether b is this key's cosign signature over subject and
// nothing else: an attestation about subject, or a statement that has other
// subjects too, is not. It keeps no reference to b. Any error means no.
func (v *Verifier) Verify(ctx context.Context, b []byte, subject piece.Digest) error {
	return v.verify(ctx, b, maxBundle, subject, types.CosignSignPredicateType)
}

// VerifyAttestation reports whether b is this key's attestation about subject, and
// about nothing else, with a predicate of that type. Any error means no.
func (v *Verifier) VerifyAttestation(ctx context.Context, b []byte, subject piece.Digest, predicateType string) error {
	return v.verify(ctx, b, maxAttestation, subject, predicateType)
}

func (v *Verifier) verify(ctx context.Context, b []byte, limit int, subject piece.Digest, predicateType string) error {
	entity, err := parseBundle(ctx, b, limit)
	if err != nil {
		return err
	}
	result, err := cosign.VerifyNewBundle(ctx,
		&cosign.CheckOpts{SigVerifier: v.key, IgnoreTlog: true},
		verify.WithArtifactDigest("sha256", subject[:]),
		entity,
	)
	if err != nil {
		hint := entity.GetVerificationMaterial().GetPublicKey().GetHint()
		if hint != "" && hint != v.fingerprint.hint() {
			return errors.New("it was made with another key")
		}
		return fmt.Errorf("it does not verify: %v", err)
	}
	return checkStatement(result.Statement, subject, predicateType)
}

// parseBundle parses what may be a bundle of any kind.
func parseBundle(ctx context.Context, b []byte, limit int) (*bundle.Bundle, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(b) > limit {
		return nil, fmt.Errorf("the bundle has %d bytes, at most %d are read", len(b), limit)
	}
	var entity bundle.Bundle
	if err := entity.UnmarshalJSON(b); err != nil {
		return nil, fmt.Errorf("not a Sigstore bundle: %v", err)
	}
	if entity.MediaType != cosignbundle.BundleV03MediaType {
		return nil, fmt.Errorf("the bundle's media type is %q, not %q", entity.MediaType, cosignbundle.BundleV03MediaType)
	}
	return &entity, nil
}

// checkStatement refuses what an identity may well have signed, but not as a
// signature of subject, or an attestation of that type: cosign itself takes any
// statement about it for a signature.
func checkStatement(s *intoto.Statement, subject piece.Digest, predicateType string) error {
	switch {
	case s == nil:
		return errors.New("it signs the bytes alone and states nothing about them")
	case s.GetPredicateType() != predicateType && predicateType == types.CosignSignPredicateType:
		return fmt.Errorf("it is an attestation (%q), not a signature (%q)", s.GetPredicateType(), types.CosignSignPredicateType)
	case s.GetPredicateType() != predicateType:
		return fmt.Errorf("it states %q, not %q", s.GetPredicateType(), predicateType)
	case s.GetType() != intoto.StatementTypeUri:
		return fmt.Errorf("its statement type is %q, not %q", s.GetType(), intoto.StatementTypeUri)
	case len(s.GetSubject()) != 1 || len(s.GetSubject()[0].GetDigest()) != 1:
		return errors.New("its statement is about more than one subject")
	case s.GetSubject()[0].GetDigest()["sha256"] != subject.Hex():
		return errors.New("its statement is about another digest")
	}
	return nil
}
