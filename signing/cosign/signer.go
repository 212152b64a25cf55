package cosign

import (
	"bytes"
	"context"
	"crypto"
	"fmt"

	intoto "github.com/in-toto/attestation/go/v1"
	"github.com/sigstore/cosign/v3/pkg/types"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/options"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/spate-project/spate/cache/piece"
)

// A Signer signs with one private key. It is safe for concurrent use.
type Signer struct{ key keypair }

// NewSigner returns a Signer for one private key in PEM: encrypted as `cosign
// generate-key-pair` writes cosign.key, or plain PKCS #8; ECDSA or RSA as
// NewVerifier takes them. password is called, once, when the key is encrypted,
// and may be nil otherwise; its error is wrapped. NewSigner keeps no reference
// to private, and no error holds any of it.
func NewSigner(private []byte, password func() ([]byte, error)) (*Signer, error) {
	signer, err := parsePrivateKey(private, password)
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	key, err := newKeypair(signer)
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	return &Signer{key: key}, nil
}

// Sign returns the bundle that `cosign sign` makes for subject: a few hundred
// bytes of JSON, the caller's, and not the same twice, since ECDSA is not.
func (s *Signer) Sign(ctx context.Context, subject piece.Digest) ([]byte, error) {
	return s.sign(ctx, subject, types.CosignSignPredicateType, &structpb.Struct{})
}

// Attest returns the bundle that `cosign attest` makes for subject: predicate, a JSON
// object of predicateType, about it. The bundle is the caller's.
func (s *Signer) Attest(ctx context.Context, subject piece.Digest, predicateType string, predicate []byte) ([]byte, error) {
	var object structpb.Struct
	if err := protojson.Unmarshal(predicate, &object); err != nil {
		return nil, fmt.Errorf("attest %s: the predicate is no JSON object: %w", subject, err)
	}
	if predicateType == types.CosignSignPredicateType {
		return nil, fmt.Errorf("attest %s: %s is a signature's type, and no attestation's", subject, predicateType)
	}
	return s.sign(ctx, subject, predicateType, &object)
}

// sign returns a bundle that states predicate about subject.
func (s *Signer) sign(ctx context.Context, subject piece.Digest, predicateType string, predicate *structpb.Struct) ([]byte, error) {
	empty := &structpb.Struct{}
	statement, err := protojson.Marshal(&intoto.Statement{
		Type: intoto.StatementTypeUri,
		Subject: []*intoto.ResourceDescriptor{{
			Digest:      map[string]string{"sha256": subject.Hex()},
			Annotations: empty,
		}},
		PredicateType: predicateType,
		Predicate:     predicate,
	})
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", subject, err)
	}
	signed, err := sign.Bundle(
		&sign.DSSEData{Data: statement, PayloadType: bundle.IntotoMediaType},
		s.key,
		sign.BundleOptions{Context: ctx},
	)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", subject, err)
	}
	return protojson.Marshal(signed)
}

// Verifier returns a Verifier for the public half of the signer's key. source is as NewVerifier's.
func (s *Signer) Verifier(source string) (*Verifier, error) {
	public, err := s.key.GetPublicKeyPem()
	if err != nil {
		return nil, fmt.Errorf("read public key from %s: %w", source, err)
	}
	return NewVerifier([]byte(public), source)
}

// A keypair is a key in the form that sign.Bundle takes.
type keypair struct {
	signer    signature.SignerVerifier
	public    crypto.PublicKey
	algorithm signature.AlgorithmDetails
	hint      string
}

func newKeypair(signer signature.SignerVerifier) (keypair, error) {
	public, err := signer.PublicKey()
	if err != nil {
		return keypair{}, err
	}
	details, sum, err := describe(public)
	if err != nil {
		return keypair{}, err
	}
	return keypair{signer: signer, public: public, algorithm: details, hint: sum.hint()}, nil
}

func (k keypair) GetHashAlgorithm() protocommon.HashAlgorithm { return k.algorithm.GetProtoHashType() }
func (k keypair) GetSigningAlgorithm() protocommon.PublicKeyDetails {
	return k.algorithm.GetSignatureAlgorithm()
}
func (k keypair) GetHint() []byte                { return []byte(k.hint) }
func (k keypair) GetPublicKey() crypto.PublicKey { return k.public }

// GetKeyAlgorithm names the key for a certificate authority, which a key pair never asks.
func (k keypair) GetKeyAlgorithm() string { return "" }

func (k keypair) GetPublicKeyPem() (string, error) {
	b, err := cryptoutils.MarshalPublicKeyToPEM(k.public)
	return string(b), err
}

// SignData returns the signature over data and data's hash.
func (k keypair) SignData(ctx context.Context, data []byte) (sig, hash []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	h := k.algorithm.GetHashType().New()
	h.Write(data)
	hash = h.Sum(nil)
	sig, err = k.signer.SignMessage(bytes.NewReader(data), options.WithContext(ctx), options.WithDigest(hash))
	return sig, hash, err
}
