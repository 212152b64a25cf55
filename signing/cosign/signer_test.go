package cosign

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func pemOf(t testing.TB, key crypto.Signer) (private, public []byte) {
	t.Helper()
	p8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pkix, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p8}),
		pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pkix})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newSigner(t testing.TB) *Signer {
	t.Helper()
	private, _ := pemOf(t, must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)))
	return must(NewSigner(private, nil))
}

func TestSignAndVerify(t *testing.T) {
	subject := goldenSubject(t)
	keys := map[string]crypto.Signer{
		"ECDSA P-256": must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)),
		"ECDSA P-384": must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)),
		"ECDSA P-521": must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)),
		"RSA 2048":    must(rsa.GenerateKey(rand.Reader, 2048)),
	}
	stranger := goldenVerifier(t)
	for name, key := range keys {
		t.Run(name, func(t *testing.T) {
			private, public := pemOf(t, key)
			s, err := NewSigner(private, nil)
			if err != nil {
				t.Fatal(err)
			}
			v, err := NewVerifier(public, name)
			if err != nil {
				t.Fatal(err)
			}
			if own, err := s.Verifier(name); err != nil || own.Identity() != v.Identity() {
				t.Errorf("the signer's own verifier is %v, %v; want %v", own, err, v)
			}
			b, err := s.Sign(t.Context(), subject)
			if err != nil {
				t.Fatal(err)
			}
			if err := v.Verify(t.Context(), b, subject); err != nil {
				t.Error(err)
			}
			if err := stranger.Verify(t.Context(), b, subject); err == nil || !strings.Contains(err.Error(), "another key") {
				t.Errorf("with another key: %v", err)
			}
		})
	}
}

// TestSignLikeCosign compares with cosign's own bundle by the same key, in all but the signature.
func TestSignLikeCosign(t *testing.T) {
	read := func(b []byte) (outer, payload map[string]any) {
		t.Helper()
		if err := json.Unmarshal(b, &outer); err != nil {
			t.Fatal(err)
		}
		envelope := outer["dsseEnvelope"].(map[string]any)
		raw, err := base64.StdEncoding.DecodeString(envelope["payload"].(string))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, &payload); err != nil {
			t.Fatal(err)
		}
		delete(envelope, "payload") // its JSON may be spaced differently
		envelope["signatures"].([]any)[0].(map[string]any)["sig"] = ""
		return outer, payload
	}
	ours, err := goldenSigner(t).Sign(t.Context(), goldenSubject(t))
	if err != nil {
		t.Fatal(err)
	}
	wantOuter, wantPayload := read(golden(t, "bundle.json"))
	gotOuter, gotPayload := read(ours)
	if !reflect.DeepEqual(gotOuter, wantOuter) {
		t.Errorf("bundle %v\nwant   %v", gotOuter, wantOuter)
	}
	if !reflect.DeepEqual(gotPayload, wantPayload) {
		t.Errorf("payload %v\nwant    %v", gotPayload, wantPayload)
	}
	if err := goldenVerifier(t).Verify(t.Context(), ours, goldenSubject(t)); err != nil {
		t.Error(err)
	}
}

func TestGenerateKeyPair(t *testing.T) {
	private, public, err := GenerateKeyPair([]byte("correct"))
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVerifier(public, "new")
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	s, err := NewSigner(private, func() ([]byte, error) { asked++; return []byte("correct"), nil })
	if err != nil || asked != 1 {
		t.Fatalf("asked %d times for the password: %v", asked, err)
	}
	b, err := s.Sign(t.Context(), goldenSubject(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Verify(t.Context(), b, goldenSubject(t)); err != nil {
		t.Error(err)
	}
	_, err = NewSigner(private, func() ([]byte, error) { return []byte("wr0ng"), nil })
	if err == nil || !strings.Contains(err.Error(), "password") || strings.Contains(err.Error(), "wr0ng") {
		t.Errorf("wrong password: %v", err)
	}
}

func TestKeyErrors(t *testing.T) {
	p256, p256Public := pemOf(t, must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)))
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, edPublic := pemOf(t, edKey)
	small, smallPublic := pemOf(t, must(rsa.GenerateKey(rand.Reader, 1024)))
	_, p224 := pemOf(t, must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)))
	huge := make([]byte, maxKey+1)

	for name, c := range map[string]struct {
		key  []byte
		want string
	}{
		"empty":          {nil, "not PEM"},
		"too large":      {huge, "more than"},
		"a private key":  {p256, "give the public key"},
		"broken":         {pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte("x")}), "asn1"},
		"two keys":       {append(p256Public, p256Public...), "more than one key"},
		"Ed25519":        {edPublic, "not supported"},
		"RSA too small":  {smallPublic, "unsupported"},
		"a curve apart":  {p224, "unsupported"},
		"encrypted key":  {golden(t, "cosign.key"), "give the public key"},
		"a lot of noise": {append([]byte("# comment\n"), edPublic...), "not supported"},
	} {
		t.Run("public/"+name, func(t *testing.T) {
			_, err := NewVerifier(c.key, "cosign.pub")
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "cosign.pub") {
				t.Errorf("error %v, want one that says %q and where the key is from", err, c.want)
			}
		})
	}

	noPassword := errors.New("no terminal")
	for name, c := range map[string]struct {
		key      []byte
		password func() ([]byte, error)
		want     string
	}{
		"empty":           {nil, nil, "not PEM"},
		"too large":       {huge, nil, "more than"},
		"a public key":    {p256Public, nil, "give cosign.key"},
		"SEC 1":           {pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte("x")}), nil, "pkcs8"},
		"broken":          {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}), nil, "asn1"},
		"Ed25519":         {ed, nil, "not supported"},
		"RSA too small":   {small, nil, "unsupported"},
		"no password":     {golden(t, "cosign.key"), nil, "no password"},
		"password failed": {golden(t, "cosign.key"), func() ([]byte, error) { return nil, noPassword }, "no terminal"},
	} {
		t.Run("private/"+name, func(t *testing.T) {
			_, err := NewSigner(c.key, c.password)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one that says %q", err, c.want)
			}
		})
	}
	if _, err := NewSigner(golden(t, "cosign.key"), func() ([]byte, error) { return nil, noPassword }); !errors.Is(err, noPassword) {
		t.Errorf("the password's error is not wrapped: %v", err)
	}
}

func TestLoadPublicKey(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "cosign.pub")
	if _, err := LoadPublicKey(missing); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("missing file: %v", err)
	}
	huge := filepath.Join(t.TempDir(), "huge.pub")
	if err := os.WriteFile(huge, make([]byte, 2*maxKey), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadPublicKey(huge); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("huge file: %v", err)
	}
}
