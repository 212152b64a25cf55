package cosign

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/sigstore/cosign/v3/pkg/cosign"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
)

// maxKey bounds a key file, in bytes.
const maxKey = 64 << 10

// LoadPublicKey returns NewVerifier of the file at path, with path as its source.
// Errors of opening the file are wrapped.
func LoadPublicKey(path string) (*Verifier, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read public key: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKey+1))
	if err != nil {
		return nil, fmt.Errorf("read public key: %w", err)
	}
	return NewVerifier(b, path)
}

// GenerateKeyPair makes a key pair as `cosign generate-key-pair` does: ECDSA
// P-256, the private key encrypted with password (which may be empty), both in
// PEM. The encryption takes a moment on purpose (scrypt).
func GenerateKeyPair(password []byte) (private, public []byte, err error) {
	keys, err := cosign.GenerateKeyPair(func(bool) ([]byte, error) { return password, nil })
	if err != nil {
		return nil, nil, fmt.Errorf("generate key pair: %w", err)
	}
	return keys.PrivateBytes, keys.PublicBytes, nil
}

func parsePublicKey(b []byte) (signature.Verifier, fingerprint, error) {
	block, err := onlyBlock(b)
	if err != nil {
		return nil, fingerprint{}, err
	}
	if block.Type != string(cryptoutils.PublicKeyPEMType) {
		return nil, fingerprint{}, fmt.Errorf("it holds a %q, not a %q: give the public key (cosign.pub)",
			block.Type, cryptoutils.PublicKeyPEMType)
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fingerprint{}, err
	}
	details, sum, err := describe(public)
	if err != nil {
		return nil, fingerprint{}, err
	}
	key, err := signature.LoadVerifierFromAlgorithmDetails(public, details)
	return key, sum, err
}

// parsePrivateKey asks for the password only when the key is encrypted.
func parsePrivateKey(b []byte, password func() ([]byte, error)) (signature.SignerVerifier, error) {
	block, err := onlyBlock(b)
	if err != nil {
		return nil, err
	}
	switch block.Type {
	case cosign.SigstorePrivateKeyPemType, cosign.CosignPrivateKeyPemType:
		if password == nil {
			return nil, errors.New("it is encrypted and no password was given")
		}
		secret, err := password()
		if err != nil {
			return nil, fmt.Errorf("ask for its password: %w", err)
		}
		key, err := cosign.LoadPrivateKey(b, secret, nil)
		if err != nil {
			return nil, fmt.Errorf("%v (is the password right?)", err)
		}
		return key, nil
	case cosign.PrivateKeyPemType:
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		return signature.LoadDefaultSignerVerifier(key)
	}
	return nil, fmt.Errorf("it holds a %q: give cosign.key, or a key in PKCS #8 (openssl pkcs8 -topk8 -nocrypt)", block.Type)
}

// onlyBlock returns the one PEM block in b. A second key would be ignored in
// silence by every reader of PEM, so it is refused.
func onlyBlock(b []byte) (*pem.Block, error) {
	if len(b) > maxKey {
		return nil, fmt.Errorf("it has more than %d bytes", maxKey)
	}
	block, rest := pem.Decode(b)
	if block == nil {
		return nil, errors.New("it is not PEM")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("it holds more than one key: put each in a file of its own")
	}
	return block, nil
}

// A fingerprint is the SHA-256 of a public key's PKIX form.
type fingerprint [sha256.Size]byte

// hint returns the form in which cosign names the key inside a bundle.
func (f fingerprint) hint() string { return base64.StdEncoding.EncodeToString(f[:]) }

// describe returns how cosign signs with the key and how it names it. Ed25519
// is left out: cosign signs with its pre-hashed form and verifies the pure one.
func describe(public crypto.PublicKey) (signature.AlgorithmDetails, fingerprint, error) {
	switch public.(type) {
	case *ecdsa.PublicKey, *rsa.PublicKey:
	default:
		return signature.AlgorithmDetails{}, fingerprint{}, fmt.Errorf("a key of type %T is not supported, use ECDSA or RSA", public)
	}
	details, err := signature.GetDefaultAlgorithmDetails(public)
	if err != nil {
		return signature.AlgorithmDetails{}, fingerprint{}, err
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	return details, sha256.Sum256(der), err
}
