package oci

import (
	"fmt"
	"path"
	"strings"
)

// A Pattern names repositories: * stands for anything but a slash, and /** at the
// end, or ** alone, for everything below. What else path.Match knows it means too.
type Pattern string

// Check returns what is wrong with p.
func (p Pattern) Check() error {
	_, err := path.Match(string(p), "")
	if err != nil || p == "" || p != "**" && strings.Contains(strings.TrimSuffix(string(p), "/**"), "**") {
		return fmt.Errorf("%q is no pattern of repositories, such as team/* or team/**", string(p))
	}
	return nil
}

// Matches reports whether p, which Check accepts, names the repository.
func (p Pattern) Matches(repository string) bool {
	if p == "**" {
		return true
	}
	above, deep := strings.CutSuffix(string(p), "/**")
	if !deep {
		ok, _ := path.Match(string(p), repository)
		return ok
	}
	elements, levels := strings.Split(repository, "/"), strings.Count(above, "/")+1
	if len(elements) <= levels {
		return false
	}
	ok, _ := path.Match(above, strings.Join(elements[:levels], "/"))
	return ok
}

// Literal returns the Pattern that names one repository.
func Literal(repository string) Pattern {
	return Pattern(strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(repository))
}
