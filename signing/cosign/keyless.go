package cosign

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/sigstore/cosign/v3/pkg/types"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/spate-project/spate/cache/piece"
)

// maxRoot bounds a trusted root, in bytes.
const maxRoot = 4 << 20

// KeylessOptions say which certificates' signatures count.
type KeylessOptions struct {
	// Identity is the certificate's subject alternative name, an e-mail address or
	// the URI of a workflow, IdentityRegexp what it has to match as a whole. One of
	// them is required, and so is one of the next two, of who vouched for it.
	Identity, IdentityRegexp string
	Issuer, IssuerRegexp     string

	// TrustedRoot is a Sigstore trusted root as JSON: its certificate authorities,
	// logs and timestamp authorities, a private Sigstore's too. Nothing is fetched.
	TrustedRoot []byte
	RootSource  string // where it came from, for people

	// WithoutLog admits signatures that are in no transparency log: an authority's
	// timestamp then says when they were made.
	WithoutLog bool

	// WithoutSCT admits certificates that no certificate transparency log has
	// promised to include, as those of private authorities.
	WithoutSCT bool
}

// A Keyless checks cosign's keyless signatures: by short-lived certificates of an
// identity, which were valid when a log or a timestamp authority saw the
// signature. It is immutable and safe for concurrent use.
type Keyless struct {
	verifier *verify.Verifier
	identity verify.CertificateIdentity
	text     string
}

// NewKeyless returns a Keyless, or what is wrong with o.
func NewKeyless(o KeylessOptions) (*Keyless, error) {
	switch {
	case (o.Identity == "") == (o.IdentityRegexp == ""):
		return nil, errors.New("one of identity and identityRegexp says whose signature it is")
	case (o.Issuer == "") == (o.IssuerRegexp == ""):
		return nil, errors.New("one of issuer and issuerRegexp says who vouches for the identity")
	case len(o.TrustedRoot) == 0:
		return nil, errors.New("a trusted root says which authorities and logs count, as `cosign trusted-root create` or `cosign initialize` write it")
	}
	material, err := root.NewTrustedRootFromJSON(o.TrustedRoot)
	if err != nil {
		return nil, fmt.Errorf("read the trusted root %s: %w", o.RootSource, err)
	}
	identity, err := verify.NewShortCertificateIdentity(o.Issuer, whole(o.IssuerRegexp), o.Identity, whole(o.IdentityRegexp))
	if err != nil {
		return nil, err
	}
	options := []verify.VerifierOption{verify.WithObserverTimestamps(1)}
	if o.WithoutLog {
		options = []verify.VerifierOption{verify.WithSignedTimestamps(1)}
	} else {
		options = append(options, verify.WithTransparencyLog(1))
	}
	if !o.WithoutSCT {
		options = append(options, verify.WithSignedCertificateTimestamps(1))
	}
	v, err := verify.NewVerifier(material, options...)
	if err != nil {
		return nil, err
	}
	return &Keyless{v, identity, fmt.Sprintf("%s, vouched for by %s (%s)",
		cmp.Or(o.Identity, "/"+o.IdentityRegexp+"/"), cmp.Or(o.Issuer, "/"+o.IssuerRegexp+"/"), o.RootSource)}, nil
}

// whole makes a regular expression match all of a text, where it is one.
func whole(expression string) string {
	if expression == "" {
		return ""
	}
	return "^(?:" + expression + ")$"
}

// LoadTrustedRoot reads a trusted root's file.
func LoadTrustedRoot(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the trusted root: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRoot+1))
	if err == nil && len(b) > maxRoot {
		err = fmt.Errorf("%s has more than %d bytes", path, maxRoot)
	}
	if err != nil {
		return nil, fmt.Errorf("read the trusted root: %w", err)
	}
	return b, nil
}

// Identity returns who must have signed, who must vouch for that, and where the trusted root came from.
func (k *Keyless) Identity() string { return k.text }

// Verify reports whether b is this identity's cosign signature over subject and
// nothing else, as Verifier.Verify has it. It needs no network. Any error means no.
func (k *Keyless) Verify(ctx context.Context, b []byte, subject piece.Digest) error {
	return k.verify(ctx, b, maxBundle, subject, types.CosignSignPredicateType)
}

// VerifyAttestation reports whether b is this identity's attestation about subject,
// and about nothing else, with a predicate of that type. Any error means no.
func (k *Keyless) VerifyAttestation(ctx context.Context, b []byte, subject piece.Digest, predicateType string) error {
	return k.verify(ctx, b, maxAttestation, subject, predicateType)
}

func (k *Keyless) verify(ctx context.Context, b []byte, limit int, subject piece.Digest, predicateType string) error {
	entity, err := parseBundle(ctx, b, limit)
	if err != nil {
		return err
	}
	if entity.GetVerificationMaterial().GetPublicKey() != nil {
		return errors.New("it was made with a key, and not with an identity's certificate")
	}
	result, err := k.verifier.Verify(entity, verify.NewPolicy(
		verify.WithArtifactDigest("sha256", subject[:]), verify.WithCertificateIdentity(k.identity)))
	if err != nil {
		return fmt.Errorf("it does not verify: %s", strings.TrimSpace(err.Error()))
	}
	return checkStatement(result.Statement, subject, predicateType)
}
