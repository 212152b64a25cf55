package oci_test

import (
	"testing"

	"github.com/spate-project/spate/oci"
)

func TestPattern(t *testing.T) {
	for _, c := range []struct {
		pattern oci.Pattern
		repo    string
		want    bool
	}{
		{"**", "a/b/c", true}, {"a", "a", true}, {"a", "ab", false}, {"*", "a", true}, {"*", "a/b", false},
		{"a/*", "a/b", true}, {"a/*", "a/b/c", false}, {"a/**", "a/b/c", true}, {"a/**", "a", false}, {"a/**", "ab/c", false},
		{"*/b/**", "x/b/c/d", true}, {"*/b/**", "x/c/c", false}, {"team-*", "team-1", true},
	} {
		if got := c.pattern.Matches(c.repo); got != c.want {
			t.Errorf("%s matches %s: %v", c.pattern, c.repo, got)
		}
	}
	for _, name := range []string{"[::1]:5000/a", `a*b?c\d`} {
		if p := oci.Literal(name); p.Check() != nil || !p.Matches(name) || p.Matches("a"+name) {
			t.Errorf("the literal of %s is %s", name, p)
		}
	}
	for _, bad := range []oci.Pattern{"", "[", "a/**/b", "**/a", "a**"} {
		if bad.Check() == nil {
			t.Errorf("%q is a pattern", bad)
		}
	}
}
