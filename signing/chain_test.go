package signing_test

import (
	"encoding/json"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/signing"
	"github.com/spate-project/spate/signing/cosign"
)

func goldenVerifier(t testing.TB) signing.Verifier {
	t.Helper()
	return must(cosign.LoadPublicKey("cosign/testdata/cosign.pub"))
}

func TestChain(t *testing.T) {
	b := newBench(t, stores["memory"](t))
	signature, index := b.signed(b.ours, b.manifest), b.index(b.manifest, "a", "2026-01-02T00:00:00Z")
	indexSignature := b.signed(b.ours, index)
	bare := b.index(b.manifest, "b", "2026-01-03T00:00:00Z")

	_, chain, err := b.policy.Admit(t.Context(), b.repo, reference)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer(
		"MANIFEST", b.manifest.Digest.String(), "INDEXSIG", indexSignature.Digest.String(), "SIG", signature.Digest.String(),
		"INDEX", index.Digest.String(), "BARE", bare.Digest.String(), "KEY", b.ours.verifier.Identity(),
	)
	if got, want := chain.String(), want.Replace(`v1: admitted
├─ manifest MANIFEST: ok
│  └─ signature SIG: ok, by KEY
├─ index BARE: no: no signature is attached to it
└─ index INDEX: ok
   └─ signature INDEXSIG: ok, by KEY
`); got != want {
		t.Errorf("tree:\n%swant:\n%s", got, want)
	}
	if got, want := string(must(json.Marshal(chain))), want.Replace(`{"reference":"v1","admitted":true,"steps":[`+
		`{"what":"manifest","digest":"MANIFEST","ok":true,"steps":[{"what":"signature","digest":"SIG","ok":true,"signedBy":"KEY"}]},`+
		`{"what":"index","digest":"BARE","ok":false,"why":"no signature is attached to it"},`+
		`{"what":"index","digest":"INDEX","ok":true,"steps":[{"what":"signature","digest":"INDEXSIG","ok":true,"signedBy":"KEY"}]}]}`); got != want {
		t.Errorf("JSON %s\nwant %s", got, want)
	}
}

// TestChainIsPrintable holds that a registry cannot write escape sequences to a terminal, nor a lot of text.
func TestChainIsPrintable(t *testing.T) {
	b := newBench(t, stores["memory"](t))
	evil := "\x1b[2J\u202e" + strings.Repeat("x", 10_000)
	b.listed(oci.ArtifactTypeBundle,
		b.attach(b.manifest, []byte(`{"mediaType":"`+`\u001b[2J`+strings.Repeat("x", 10_000)+`"}`), nil),
		b.attach(b.manifest, b.sign(b.ours, b.manifest), func(m *ocispec.Manifest) { m.ArtifactType = evil }),
	)
	_, chain, err := b.policy.Admit(t.Context(), b.repo, reference)
	if err == nil {
		t.Fatal("admitted")
	}
	for name, text := range map[string]string{"tree": chain.String(), "error": err.Error()} {
		if strings.ContainsAny(text, "\x1b\u202e") {
			t.Errorf("%s holds an escape sequence: %q", name, text)
		}
		if len(text) > 4096 {
			t.Errorf("%s has %d bytes", name, len(text))
		}
	}
}
