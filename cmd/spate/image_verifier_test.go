package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/spate-project/spate/oci/snapshot/containerdtest"
)

// TestImageVerifier: a containerd pulls what the policy admits, into its own
// snapshotter, and nothing else.
func TestImageVerifier(t *testing.T) {
	s := newSite(t, []string{"node"})
	signed := s.push("signed", map[string][]byte{"etc/greeting": []byte("hello\n")})
	unsigned := s.push("unsigned", map[string][]byte{"etc/greeting": []byte("hullo\n")})
	if _, err := s.spate("sign", signed, "--sign-key", s.keys.Sign()); err != nil {
		t.Fatal(err)
	}
	n := s.newNode("node")
	c := containerdtest.Start(t, containerdtest.Modern(t), n.socket())
	pull := func(ref string) error {
		_, err := c.Try("image", "pull", "--plain-http", "--snapshotter", "overlayfs", ref)
		return err
	}
	c.Verify(fmt.Sprintf("#!/bin/sh\nexec spate image-verifier --key %s \"$@\"\n", s.keys.Verify()))
	if err := pull(signed); err != nil {
		t.Error(err)
	}
	if err := pull(unsigned); err == nil || !strings.Contains(err.Error(), "rejected image (exit code 3)") || !strings.Contains(err.Error(), "no signature is attached to it") {
		t.Errorf("an unsigned image: %v", err)
	}
	if out := c.Ctr("image", "ls", "-q"); strings.Contains(out, unsigned) || !strings.Contains(out, signed) {
		t.Errorf("pulled are %s", out)
	}
}
