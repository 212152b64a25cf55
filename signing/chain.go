package signing

import (
	"strings"
	"unicode"

	"github.com/opencontainers/go-digest"
)

// A Chain is the record of one Policy.Admit, for people and as JSON: which
// documents were looked at, who signed them, and why those that do not count
// do not. It proves nothing; a Trusted does.
type Chain struct {
	Reference string  `json:"reference"`
	Rule      string  `json:"rule,omitempty"` // of the policy, by its name
	Admitted  bool    `json:"admitted"`
	Steps     []*Step `json:"steps"` // the manifest, then indexes in the order they were tried
}

// A Step is one document of a Chain and the steps that were taken for its sake.
type Step struct {
	What     string        `json:"what"`         // "manifest", "signature", "attestation", "index" or "trace"
	Of       string        `json:"of,omitempty"` // the predicate's type; attestations only
	Digest   digest.Digest `json:"digest,omitempty"`
	OK       bool          `json:"ok"`
	SignedBy string        `json:"signedBy,omitempty"` // the identity; signatures and attestations only
	Why      string        `json:"why,omitempty"`      // why not OK; may quote foreign text, printable characters only
	Steps    []*Step       `json:"steps,omitempty"`
}

// SignedBy returns the identity whose signature admitted the manifest; empty when none did.
func (c *Chain) SignedBy() string {
	if len(c.Steps) > 0 {
		for _, s := range c.Steps[0].Steps {
			if s.OK && s.What == "signature" {
				return s.SignedBy
			}
		}
	}
	return ""
}

// String draws the chain as a tree of lines, each ended by a newline.
func (c *Chain) String() string {
	var b strings.Builder
	b.WriteString(c.Reference)
	b.WriteString(map[bool]string{true: ": admitted", false: ": not admitted"}[c.Admitted])
	if c.Rule != "" {
		b.WriteString(" by rule " + printable(c.Rule))
	}
	b.WriteByte('\n')
	draw(&b, "", c.Steps)
	return b.String()
}

func draw(b *strings.Builder, indent string, steps []*Step) {
	for i, s := range steps {
		branch, below := "├─ ", "│  "
		if i == len(steps)-1 {
			branch, below = "└─ ", "   "
		}
		b.WriteString(indent + branch + s.What)
		if s.Of != "" {
			b.WriteString(" of " + printable(s.Of))
		}
		if s.Digest != "" {
			b.WriteString(" " + printable(s.Digest.String()))
		}
		switch {
		case !s.OK:
			b.WriteString(": no: " + s.Why)
		case s.SignedBy != "":
			b.WriteString(": ok, by " + s.SignedBy)
		default:
			b.WriteString(": ok")
		}
		b.WriteByte('\n')
		draw(b, indent+below, s.Steps)
	}
}

func (s *Step) add(what string, d digest.Digest) *Step {
	below := &Step{What: what, Digest: d}
	s.Steps = append(s.Steps, below)
	return below
}

func (s *Step) refuse(err error) { s.OK, s.Why = false, printable(err.Error()) }

// printable cuts s to a few lines' length and replaces what a terminal would obey.
func printable(s string) string {
	const most = 500
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}
