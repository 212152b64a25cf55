package cosign

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sigstore/cosign/v3/pkg/types"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/signing"
)

var (
	_ signing.Verifier = (*Verifier)(nil)
	_ signing.Signer   = (*Signer)(nil)
)

// The files of testdata were written by cosign v3.1.3: a key pair (password
// "spate"), a manifest, and what `cosign sign` and `cosign attest` attached to it.
func golden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func goldenSubject(t testing.TB) piece.Digest { return sha256.Sum256(golden(t, "subject.json")) }

func goldenVerifier(t testing.TB) *Verifier {
	t.Helper()
	v, err := LoadPublicKey("testdata/cosign.pub")
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func goldenSigner(t testing.TB) *Signer {
	t.Helper()
	s, err := NewSigner(golden(t, "cosign.key"), func() ([]byte, error) { return []byte("spate"), nil })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestVerifyWhatCosignSigned(t *testing.T) {
	v, subject := goldenVerifier(t), goldenSubject(t)
	if err := v.Verify(t.Context(), golden(t, "bundle.json"), subject); err != nil {
		t.Error(err)
	}
	other := subject
	other[31] ^= 1
	if err := v.Verify(t.Context(), golden(t, "bundle.json"), other); err == nil {
		t.Error("the signature of one digest was accepted for another")
	}
	const want = "key sha256:45bb304fe4f5cf0331816dae97a948" +
		"4b4f6c1299f82af52da5d1c87d671ad0a3 (testdata/cosign.pub)"
	if got := v.Identity(); got != want {
		t.Errorf("identity %q, want %q", got, want)
	}
}

// statement returns a statement as cosign signs it, after change.
func statement(subject piece.Digest, change ...string) string {
	s := fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"%s"},"annotations":{}}],`+
		`"predicateType":"https://sigstore.dev/cosign/sign/v1","predicate":{}}`, subject.Hex())
	return strings.NewReplacer(change...).Replace(s)
}

// signed returns content signed by the right key, whatever it says.
func signed(t testing.TB, s *Signer, content sign.Content) []byte {
	t.Helper()
	b, err := sign.Bundle(content, s.key, sign.BundleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	out, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestVerifyRefuses(t *testing.T) {
	v, s, subject := goldenVerifier(t), goldenSigner(t), goldenSubject(t)
	other := piece.Digest(sha256.Sum256([]byte("other")))
	intoto := func(payload string) []byte {
		return signed(t, s, &sign.DSSEData{Data: []byte(payload), PayloadType: bundle.IntotoMediaType})
	}
	if err := v.Verify(t.Context(), intoto(statement(subject)), subject); err != nil {
		t.Fatalf("the statement that the others differ from: %v", err)
	}
	good := string(golden(t, "bundle.json"))
	sha256Of := func(d piece.Digest) string { return `"sha256":"` + d.Hex() + `"` }
	cases := map[string]struct {
		bundle []byte
		want   string
	}{
		"nothing":   {nil, "not a Sigstore bundle"},
		"not JSON":  {[]byte("spate"), "not a Sigstore bundle"},
		"too large": {bytes.Repeat([]byte(" "), maxBundle+1), "at most"},
		"attestation by cosign": {
			golden(t, "attestation.json"), "it is an attestation"},
		"attestation that says statement v1": {
			intoto(statement(subject, types.CosignSignPredicateType, "https://slsa.dev/provenance/v1")), "it is an attestation"},
		"no predicate type": {
			intoto(statement(subject, types.CosignSignPredicateType, "")), "it is an attestation"},
		"older statement": {
			intoto(statement(subject, "Statement/v1", "Statement/v0.1")), "statement type"},
		"two subjects": {
			intoto(statement(subject, `"subject":[`, `"subject":[{"digest":{`+sha256Of(other)+`}},`)), "more than one subject"},
		"two digests": {
			intoto(statement(subject, sha256Of(subject), sha256Of(subject)+`,"sha512":"00"`)), "more than one subject"},
		"no subject": {
			intoto(statement(subject, `{"digest":{`+sha256Of(subject)+`},"annotations":{}}`, "")), "does not verify"},
		"digest in upper case": {
			intoto(statement(subject, subject.Hex(), strings.ToUpper(subject.Hex()))), "another digest"},
		"subject named twice": {
			intoto(statement(subject, `"predicate":`, `"subject":[{"digest":{`+sha256Of(other)+`}}],"predicate":`)), "does not verify"},
		"unknown field": {
			intoto(statement(subject, `"predicate":`, `"extra":1,"predicate":`)), "does not verify"},
		"another payload type": {
			signed(t, s, &sign.DSSEData{Data: []byte(statement(subject)), PayloadType: "text/plain"}), "does not verify"},
		"signature over the manifest's bytes": {
			signed(t, s, &sign.PlainData{Data: golden(t, "subject.json")}), "states nothing"},
		"another media type": {
			[]byte(strings.Replace(good, "bundle.v0.3+json", "bundle.v0.3.1+json", 1)), "media type"},
		"older bundle": {
			[]byte(strings.Replace(good, "bundle.v0.3+json", "bundle+json;version=0.2", 1)), "media type"},
		"two signatures": {
			[]byte(strings.Replace(good, `"signatures":[`, `"signatures":[{"sig":"AAAA"},`, 1)), "does not verify"},
		"no signature": {
			[]byte(good[:strings.Index(good, `"signatures":[`)] + `"signatures":[]}}`), "not a Sigstore bundle|does not verify"},
		"a certificate in place of the key": {
			[]byte(strings.Replace(good, good[strings.Index(good, `"publicKey"`):strings.Index(good, `,"dsseEnvelope"`)],
				`"certificate":{"rawBytes":"AAAA"}}`, 1)), "does not verify"},
		"another key, same hint": {
			resigned(t, good, statement(subject)), "does not verify"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			err := v.Verify(t.Context(), c.bundle, subject)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range strings.Split(c.want, "|") {
				if strings.Contains(err.Error(), want) {
					return
				}
			}
			t.Errorf("error %q does not say %q", err, c.want)
		})
	}
}

// resigned returns the good bundle with a signature by a new key.
func resigned(t testing.TB, good, payload string) []byte {
	t.Helper()
	b := signed(t, newSigner(t), &sign.DSSEData{Data: []byte(payload), PayloadType: bundle.IntotoMediaType})
	var forged, kept protobundle.Bundle
	if err := errors.Join(protojson.Unmarshal(b, &forged), protojson.Unmarshal([]byte(good), &kept)); err != nil {
		t.Fatal(err)
	}
	kept.GetDsseEnvelope().Signatures = forged.GetDsseEnvelope().GetSignatures()
	out, err := protojson.Marshal(&kept)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// meaning returns what a bundle says apart from the hint, which no signature covers.
func meaning(b []byte) (*protobundle.Bundle, error) {
	var p protobundle.Bundle
	if err := protojson.Unmarshal(b, &p); err != nil {
		return nil, err
	}
	if key := p.GetVerificationMaterial().GetPublicKey(); key != nil {
		key.Hint = ""
	}
	return &p, nil
}

func TestVerifyAltered(t *testing.T) {
	v, subject, good := goldenVerifier(t), goldenSubject(t), golden(t, "bundle.json")
	want, err := meaning(good)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for i := range good {
		for _, mask := range []byte{0x01, 0x04, 0x20, 0x80} {
			altered := bytes.Clone(good)
			altered[i] ^= mask
			if v.Verify(t.Context(), altered, subject) != nil {
				refused++
				continue
			}
			if got, err := meaning(altered); err != nil || !proto.Equal(got, want) {
				t.Errorf("byte %d, %q for %q: accepted", i, altered[i], good[i])
			}
		}
	}
	if hint := 4 * 44; refused < 4*len(good)-hint-16 {
		t.Errorf("only %d of %d altered bundles were refused", refused, 4*len(good))
	}
	for n := range good {
		if v.Verify(t.Context(), good[:n], subject) == nil {
			t.Errorf("accepted when cut to %d bytes", n)
		}
	}
}

func TestVerifyEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := goldenVerifier(t).Verify(ctx, golden(t, "bundle.json"), goldenSubject(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("verify: %v", err)
	}
	if _, err := goldenSigner(t).Sign(ctx, goldenSubject(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("sign: %v", err)
	}
}

// FuzzVerify holds that no bytes panic the verifier, that none pass for a
// digest that nobody signed, and that what passes for the signed one says the same.
func FuzzVerify(f *testing.F) {
	v, subject := goldenVerifier(f), goldenSubject(f)
	other := piece.Digest(sha256.Sum256([]byte("never signed")))
	want, err := meaning(golden(f, "bundle.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden(f, "bundle.json"))
	f.Add(golden(f, "attestation.json"))
	f.Add(bytes.ReplaceAll(golden(f, "bundle.json"), []byte(subject.Hex()), []byte(other.Hex())))
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"tlogEntries":[{}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if v.Verify(t.Context(), b, other) == nil {
			t.Error("accepted for a digest that was never signed")
		}
		if v.Verify(t.Context(), b, subject) != nil {
			return
		}
		if got, err := meaning(b); err != nil || !proto.Equal(got.GetContent().(*protobundle.Bundle_DsseEnvelope).DsseEnvelope,
			want.GetContent().(*protobundle.Bundle_DsseEnvelope).DsseEnvelope) {
			t.Error("accepted, and says something else")
		}
	})
}
