package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spate-project/spate/p2p/identity"
	"github.com/spate-project/spate/signing/cosign"
)

// Keys are the files of an experiment's trust, below one directory.
type Keys struct{ dir string }

// NewKeys writes into dir, which must exist, a signing key pair without a
// password and for each node a certificate of one new mesh CA, all valid for life.
func NewKeys(dir string, life time.Duration, nodes []string) (Keys, error) {
	k := Keys{dir}
	private, public, err := cosign.GenerateKeyPair(nil)
	if err != nil {
		return Keys{}, err
	}
	if err := os.WriteFile(k.Sign(), private, 0o600); err != nil {
		return Keys{}, fmt.Errorf("write a signing key: %w", err)
	}
	if err := os.WriteFile(k.Verify(), public, 0o644); err != nil {
		return Keys{}, fmt.Errorf("write a signing key: %w", err)
	}
	ca, err := identity.NewCA("spate experiment", life)
	if err != nil {
		return Keys{}, err
	}
	for _, node := range nodes {
		if err := ca.Issue(k.Mesh(node), node, life); err != nil {
			return Keys{}, err
		}
	}
	return k, nil
}

// Sign returns the file for --sign-key; its password is empty.
func (k Keys) Sign() string { return filepath.Join(k.dir, "cosign.key") }

// Verify returns the file for --key.
func (k Keys) Verify() string { return filepath.Join(k.dir, "cosign.pub") }

// Mesh returns the directory for the --mesh of a node.
func (k Keys) Mesh(node string) string { return filepath.Join(k.dir, "mesh", node) }
