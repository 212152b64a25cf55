package lab

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/spate-project/spate/p2p/identity"
	"github.com/spate-project/spate/signing/cosign"
)

func TestKeys(t *testing.T) {
	k, err := NewKeys(t.TempDir(), time.Hour, []string{"node-1", "node-2"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cosign.LoadPublicKey(k.Verify()); err != nil {
		t.Error(err)
	}
	for _, node := range []string{"node-1", "node-2"} {
		if id, err := identity.Load(k.Mesh(node)); err != nil || id.Name() != node {
			t.Errorf("%s: %v", node, err)
		}
	}
	if _, err := NewKeys(filepath.Join(t.TempDir(), "absent"), time.Hour, nil); err == nil {
		t.Error("keys in an absent directory")
	}
	if _, err := NewKeys(t.TempDir(), time.Hour, []string{"10.0.0.1"}); err == nil {
		t.Error("a certificate for what is no name")
	}
}
