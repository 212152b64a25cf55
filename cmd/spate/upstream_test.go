package main

import (
	"strings"
	"testing"

	"github.com/spate-project/spate/oci/remote"
)

func TestParseUpstream(t *testing.T) {
	for _, c := range []struct {
		in, prefix, host string
		plain            bool
		wrong            string // part of the error
	}{
		{in: "hub/=https://registry-1.docker.io", prefix: "hub/", host: "registry-1.docker.io"},
		{in: "=http://127.0.0.1:5000/", host: "127.0.0.1:5000"},
		{in: "=http://10.0.0.1:5000", plain: true, host: "10.0.0.1:5000"},
		{in: "=http://10.0.0.1:5000", wrong: "--plain-http"},
		{in: "hub/", wrong: "no ="},
		{in: "hub=https://a", wrong: "end in /"},
		{in: "=registry.example", wrong: "not the URL"},
		{in: "=https://a/b", wrong: "has a path"},
		{in: "=https://me:secret@a", wrong: "log in"},
		{in: "=https://me:secret@a:%", wrong: "not the URL"},
	} {
		prefix, host, _, err := parseUpstream(c.in, remote.Options{PlainHTTP: c.plain})
		switch {
		case c.wrong == "" && (err != nil || prefix != c.prefix || host != c.host):
			t.Errorf("%s: %q, %q, %v", c.in, prefix, host, err)
		case c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)):
			t.Errorf("%s: error %v, want one of %q", c.in, err, c.wrong)
		case err != nil && strings.Contains(err.Error(), "secret"):
			t.Errorf("the error tells a password: %v", err)
		}
	}
}
