// Package piece is the vocabulary that every other package shares: an object's
// digest, its pieces, and the proof that a piece's bytes belong to it.
//
// An object is a sequence of bytes named by its SHA-256. It is cut into pieces
// as BEP 52 (BitTorrent v2) cuts a file: SHA-256 over 16 KiB leaves, folded to
// one hash a piece (the piece layer), folded to one root. Whoever trusts the
// 32 bytes of the root can check every piece alone and in any order.
//
// The package imports the standard library only.
package piece

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// A Digest names an object by the SHA-256 of its bytes.
type Digest [sha256.Size]byte

// A Hash is a node of an object's Merkle tree.
type Hash [sha256.Size]byte

// A Root is the top of an object's Merkle tree, BEP 52's "pieces root".
// An object of no bytes has the zero Root.
type Root Hash

const digestPrefix = "sha256:"

// ParseDigest reads the form that String writes, OCI's "sha256:<64 lower-case hex digits>".
func ParseDigest(s string) (Digest, error) {
	var d Digest
	hexed, ok := strings.CutPrefix(s, digestPrefix)
	if !ok {
		return d, fmt.Errorf("parse digest %q: it does not start with %q", s, digestPrefix)
	}
	if err := parseHex(d[:], hexed); err != nil {
		return Digest{}, fmt.Errorf("parse digest %q: %v", s, err)
	}
	return d, nil
}

// String returns the OCI form, "sha256:<hex>".
func (d Digest) String() string { return digestPrefix + hex.EncodeToString(d[:]) }

// Hex returns the 64 hex digits alone, as file names use them.
func (d Digest) Hex() string { return hex.EncodeToString(d[:]) }

// MarshalText and UnmarshalText carry the OCI form through JSON.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText accepts what MarshalText writes and nothing else.
func (d *Digest) UnmarshalText(b []byte) (err error) {
	*d, err = ParseDigest(string(b))
	return err
}

// ParseRoot reads 64 lower-case hex digits.
func ParseRoot(s string) (Root, error) {
	var r Root
	if err := parseHex(r[:], s); err != nil {
		return Root{}, fmt.Errorf("parse root %q: %v", s, err)
	}
	return r, nil
}

// String returns 64 hex digits.
func (r Root) String() string { return hex.EncodeToString(r[:]) }

// MarshalText and UnmarshalText carry the hex form through JSON.
func (r Root) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText accepts what MarshalText writes and nothing else.
func (r *Root) UnmarshalText(b []byte) (err error) {
	*r, err = ParseRoot(string(b))
	return err
}

// parseHex fills dst from exactly len(dst) lower-case hex pairs: one digest has one spelling.
func parseHex(dst []byte, s string) error {
	if len(s) != 2*len(dst) {
		return fmt.Errorf("want %d hex digits, have %d", 2*len(dst), len(s))
	}
	if strings.ToLower(s) != s {
		return fmt.Errorf("hex digits must be lower case")
	}
	_, err := hex.Decode(dst, []byte(s))
	return err
}
