package main

import (
	"strings"
	"testing"

	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/remote"
)

// TestImportTo: what a layout names goes where it is told to, or it is said why not.
func TestImportTo(t *testing.T) {
	const d = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
	for _, c := range []struct {
		name, to, want string
		n              int
	}{
		{"models/qwen:v1", "127.0.0.1:5000", "127.0.0.1:5000/models/qwen:v1", 2},
		{"qwen@" + d, "registry.example", "registry.example/qwen@" + d, 2},
		{"v1", "registry.example/qwen:v2", "registry.example/qwen:v2", 1},
		{"v1", "registry.example", "", 1},                    // no repository
		{"docker.io/a/b:v1:v2", "registry.example", "", 1},   // no name at all
		{"../../x:v1", "registry.example", "", 1},            // nor that
		{"a:v1", "registry.example/qwen:v2", "", 2},          // two cannot be one
		{"a:v1", "registry.example/qwen", "", 1},             // no tag
		{"models/qwen:v1", "me:secret@registry/x:v1", "", 1}, // a login has no place in it
	} {
		repo, err := importTo(c.name, c.to, c.n, remote.Options{})
		switch {
		case c.want != "" && (err != nil || repo.Reference.String() != c.want):
			t.Errorf("%s to %s: %v, %v", c.name, c.to, repo, err)
		case c.want == "" && ui.ExitCode(err) != ui.ExitUsage:
			t.Errorf("%s to %s: error %v is not of usage", c.name, c.to, err)
		case err != nil && strings.Contains(err.Error(), "secret"):
			t.Errorf("the error tells a password: %v", err)
		}
	}
}
