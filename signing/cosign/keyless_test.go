package cosign

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/spate-project/spate/cache/piece"
)

const (
	someone = "https://github.com/team/models/.github/workflows/release.yml@refs/heads/main"
	github  = "https://token.actions.githubusercontent.com"
)

// A sigstore is a private one in this process.
type sigstore struct {
	t    *testing.T
	ca   *ca.VirtualSigstore
	root []byte
}

func newSigstore(t *testing.T) *sigstore {
	t.Helper()
	virtual, err := ca.NewVirtualSigstore()
	if err != nil {
		t.Fatal(err)
	}
	logs := virtual.RekorLogs()
	for id, log := range logs { // of which it makes an ID of text
		if log.ID, err = hex.DecodeString(id); err != nil {
			t.Fatal(err)
		}
	}
	trusted, err := root.NewTrustedRoot(root.TrustedRootMediaType01, virtual.FulcioCertificateAuthorities(), nil, virtual.TimestampingAuthorities(), logs)
	if err != nil {
		t.Fatal(err)
	}
	b, err := trusted.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return &sigstore{t, virtual, b}
}

func stating(predicateType string, subject piece.Digest) []byte {
	return fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"%s"}}],"predicateType":%q,"predicate":{}}`, subject.Hex(), predicateType)
}

// sign returns a bundle as `cosign sign` attaches it: identity's signature of a
// statement, made at a time, with what edit leaves of it.
func (s *sigstore) sign(identity, issuer string, statement []byte, at time.Time, edit func(*protobundle.Bundle)) []byte {
	s.t.Helper()
	entity, err := s.ca.AttestAtTimeHashedRekordV2(identity, issuer, statement, at)
	check := func(err error) {
		if err != nil {
			s.t.Fatal(err)
		}
	}
	check(err)
	content, err := entity.VerificationContent()
	check(err)
	signed, err := entity.SignatureContent()
	check(err)
	envelope := signed.EnvelopeContent().RawEnvelope()
	payload, err := base64.StdEncoding.DecodeString(envelope.Payload)
	check(err)
	sig, err := base64.StdEncoding.DecodeString(envelope.Signatures[0].Sig)
	check(err)
	stamps, err := entity.Timestamps()
	check(err)
	entries, err := entity.TlogEntries()
	check(err)
	b := &protobundle.Bundle{
		MediaType: "application/vnd.dev.sigstore.bundle.v0.3+json",
		VerificationMaterial: &protobundle.VerificationMaterial{
			Content: &protobundle.VerificationMaterial_Certificate{
				Certificate: &protocommon.X509Certificate{RawBytes: content.Certificate().Raw},
			},
			TimestampVerificationData: &protobundle.TimestampVerificationData{},
		},
		Content: &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{
			Payload: payload, PayloadType: envelope.PayloadType, Signatures: []*protodsse.Signature{{Sig: sig}},
		}},
	}
	for _, stamp := range stamps {
		b.VerificationMaterial.TimestampVerificationData.Rfc3161Timestamps = append(
			b.VerificationMaterial.TimestampVerificationData.Rfc3161Timestamps, &protocommon.RFC3161SignedTimestamp{SignedTimestamp: stamp})
	}
	for _, entry := range entries {
		b.VerificationMaterial.TlogEntries = append(b.VerificationMaterial.TlogEntries, entry.TransparencyLogEntry())
	}
	if edit != nil {
		edit(b)
	}
	text, err := protojson.Marshal(b)
	check(err)
	return text
}

func (s *sigstore) options() KeylessOptions {
	return KeylessOptions{Identity: someone, Issuer: github, TrustedRoot: s.root, RootSource: "root.json", WithoutSCT: true}
}

// TestKeyless: the identity's signature counts, and nothing that is like it.
func TestKeyless(t *testing.T) {
	s, other := newSigstore(t), newSigstore(t)
	subject := piece.Digest(sha256.Sum256([]byte("manifest")))
	const signature = "https://sigstore.dev/cosign/sign/v1"
	now := time.Now().Add(5 * time.Minute) // when its certificates are valid
	good := s.sign(someone, github, stating(signature, subject), now, nil)
	regexps := func(o *KeylessOptions) {
		o.Identity, o.Issuer = "", ""
		o.IdentityRegexp, o.IssuerRegexp = `https://github\.com/team/.*`, `https://.*\.githubusercontent\.com`
	}
	for name, test := range map[string]struct {
		bundle []byte
		change func(*KeylessOptions)
		why    string // empty: it counts
	}{
		"signed":            {bundle: good},
		"expressions":       {bundle: good, change: regexps},
		"no log needed":     {bundle: good, change: func(o *KeylessOptions) { o.WithoutLog = true }},
		"timestamp alone":   {bundle: s.sign(someone, github, stating(signature, subject), now, withoutLog), change: func(o *KeylessOptions) { o.WithoutLog = true }},
		"other identity":    {bundle: s.sign("mallory@example.com", github, stating(signature, subject), now, nil), why: "mallory"},
		"other issuer":      {bundle: s.sign(someone, "https://issuer.example", stating(signature, subject), now, nil), why: "issuer.example"},
		"part of a pattern": {bundle: good, change: func(o *KeylessOptions) { o.Identity, o.IdentityRegexp = "", "https://github.com/team/" }, why: "no matching"},
		"other Sigstore":    {bundle: other.sign(someone, github, stating(signature, subject), now, nil), why: "it does not verify"},
		"in no log":         {bundle: s.sign(someone, github, stating(signature, subject), now, withoutLog), why: "log"},
		"expired":           {bundle: s.sign(someone, github, stating(signature, subject), time.Now().Add(-time.Hour), withoutStamps), why: "it does not verify"},
		"no timestamp":      {bundle: s.sign(someone, github, stating(signature, subject), now, withoutStamps), change: func(o *KeylessOptions) { o.WithoutLog = true }, why: "timestamp"},
		"no SCT":            {bundle: good, change: func(o *KeylessOptions) { o.WithoutSCT = false }, why: "certificate timestamp"},
		"other digest":      {bundle: s.sign(someone, github, stating(signature, piece.Digest{1}), now, nil), why: "digest"},
		"attestation":       {bundle: s.sign(someone, github, stating("https://slsa.dev/provenance/v1", subject), now, nil), why: "it is an attestation"},
		"payload changed": {bundle: s.sign(someone, github, stating(signature, subject), now, func(b *protobundle.Bundle) {
			b.GetDsseEnvelope().Payload = stating(signature, piece.Digest{2})
		}), why: "it does not verify"},
		"empty":    {bundle: []byte("{}"), why: "not a Sigstore bundle"},
		"no bytes": {why: "not a Sigstore bundle"},
	} {
		t.Run(name, func(t *testing.T) {
			o := s.options()
			if test.change != nil {
				test.change(&o)
			}
			k, err := NewKeyless(o)
			if err != nil {
				t.Fatal(err)
			}
			err = k.Verify(t.Context(), test.bundle, subject)
			if test.why == "" && err != nil || test.why != "" && (err == nil || !strings.Contains(err.Error(), test.why)) {
				t.Errorf("%v, want %q", err, test.why)
			}
		})
	}

	// An attestation is one of its type and about its subject.
	const slsa = "https://slsa.dev/provenance/v1"
	attested := s.sign(someone, github, stating(slsa, subject), now, nil)
	attester, err := NewKeyless(s.options())
	if err != nil {
		t.Fatal(err)
	}
	if err := attester.VerifyAttestation(t.Context(), attested, subject, slsa); err != nil {
		t.Error(err)
	}
	for _, err := range []error{
		attester.VerifyAttestation(t.Context(), attested, subject, "https://spdx.dev/Document"),
		attester.VerifyAttestation(t.Context(), attested, piece.Digest{1}, slsa),
		attester.VerifyAttestation(t.Context(), good, subject, slsa),
		attester.VerifyAttestation(t.Context(), other.sign(someone, github, stating(slsa, subject), now, nil), subject, slsa),
	} {
		if err == nil {
			t.Error("what is no such attestation counts as one")
		}
	}

	// A key's bundle is none of an identity.
	private, _, err := GenerateKeyPair(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := NewSigner(private, func() ([]byte, error) { return nil, nil })
	if err != nil {
		t.Fatal(err)
	}
	keyed, err := signer.Sign(t.Context(), subject)
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewKeyless(s.options())
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Verify(t.Context(), keyed, subject); err == nil || !strings.Contains(err.Error(), "made with a key") {
		t.Errorf("a key's signature: %v", err)
	}
	if !strings.Contains(k.Identity(), someone) || !strings.Contains(k.Identity(), github) {
		t.Errorf("the identity is %s", k.Identity())
	}
}

func withoutLog(b *protobundle.Bundle) {
	b.VerificationMaterial.TlogEntries = []*protorekor.TransparencyLogEntry{}
}

func withoutStamps(b *protobundle.Bundle) { b.VerificationMaterial.TimestampVerificationData = nil }

func TestKeylessOptions(t *testing.T) {
	s := newSigstore(t)
	for why, change := range map[string]func(*KeylessOptions){
		"one of identity and":          func(o *KeylessOptions) { o.Identity = "" },
		"one of identity and identity": func(o *KeylessOptions) { o.IdentityRegexp = "x" },
		"one of issuer and":            func(o *KeylessOptions) { o.Issuer = "" },
		"a trusted root says":          func(o *KeylessOptions) { o.TrustedRoot = nil },
		"read the trusted root":        func(o *KeylessOptions) { o.TrustedRoot = []byte("{") },
		"error parsing regexp":         func(o *KeylessOptions) { o.Issuer, o.IssuerRegexp = "", "(" },
	} {
		o := s.options()
		change(&o)
		if _, err := NewKeyless(o); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%v, want %q", err, why)
		}
	}
}
