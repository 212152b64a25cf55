// Package signing decides whom to trust. It turns a reference into a Trusted:
// a manifest, and where there is one its index, that a policy admitted. Only
// Policy.Admit makes one, and everything that fetches, mounts or seeds asks
// for a Trusted instead of a name.
//
//	cosign signature -> manifest digest -> layer digests, config diffIDs
//	       \-> index (signed; subject = that manifest) -> object -> root -> piece
//
// The package knows no signature format; signing/cosign is the adapter.
package signing

import (
	"context"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry"

	"github.com/spate-project/spate/cache/piece"
)

// A Verifier checks one kind of signature by one identity.
// Implementations are safe for concurrent use.
type Verifier interface {
	// Identity says who must have signed, for people: a key's fingerprint and where it came from.
	Identity() string

	// Verify reports whether bundle, a Sigstore bundle as JSON, is this identity's
	// signature over subject. It needs no network. Any error means no.
	Verify(ctx context.Context, bundle []byte, subject piece.Digest) error

	// VerifyAttestation reports in the same way whether bundle is this identity's
	// attestation about subject with a predicate of that type. What the predicate
	// says is not looked at.
	VerifyAttestation(ctx context.Context, bundle []byte, subject piece.Digest, predicateType string) error
}

// A Signer signs digests. Implementations are safe for concurrent use.
type Signer interface {
	// Sign returns a Sigstore bundle as JSON, as `cosign sign` attaches it.
	Sign(ctx context.Context, subject piece.Digest) ([]byte, error)

	// Attest returns a Sigstore bundle as JSON, as `cosign attest` attaches it:
	// predicate is a JSON object, of predicateType, about subject.
	Attest(ctx context.Context, subject piece.Digest, predicateType string, predicate []byte) ([]byte, error)
}

// A Repository is what verification reads. *remote.Repository is one.
type Repository interface {
	content.Resolver
	content.Fetcher
	registry.ReferrerLister
}

// A Trusted is a reference that a policy admitted. The zero value is not
// trusted; receivers refuse it (Valid reports false). It is immutable.
type Trusted struct {
	reference string
	manifest  Document
	index     Document
}

// A Document is a manifest with the bytes that its digest names.
type Document struct {
	Descriptor ocispec.Descriptor
	Bytes      []byte // not to be changed
}

// Valid reports whether t came from Policy.Admit.
func (t Trusted) Valid() bool { return t.reference != "" }

// Reference returns what was asked for, as the user wrote it.
func (t Trusted) Reference() string { return t.reference }

// Manifest returns the signed manifest.
func (t Trusted) Manifest() Document { return t.manifest }

// Index returns the signed index manifest; ok is false when the artifact has
// none that the policy trusts, and its objects must then be read whole.
func (t Trusted) Index() (doc Document, ok bool) { return t.index, t.index.Bytes != nil }
