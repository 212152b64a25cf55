package signing

import (
	"fmt"
	"slices"
	"strings"

	"oras.land/oras-go/v2/registry"

	"github.com/spate-project/spate/oci"
)

// A Rule says whose signatures count for some repositories.
type Rule struct {
	// Name is what errors and chains call it.
	Name string

	// References are patterns of repositories with their registry, as
	// HOST[:PORT]/NAME. The host is compared in lower case.
	References []oci.Pattern

	// Signers are the accepted identities: the signature of one of them is enough,
	// for an image, a model or another artifact, for its index and for its traces.
	Signers []Verifier

	// Indexers are accepted for indexes and traces too, and for nothing else: an
	// index says which bytes an admitted artifact has, and admits none.
	Indexers []Verifier

	// Attestations are those that an artifact has to have beside its signature.
	Attestations []Attestation
}

// An Attestation is one that somebody has to have made of an artifact.
type Attestation struct {
	PredicateType string // a URI, such as https://slsa.dev/provenance/v1

	// Signers are the accepted identities; the rule's when empty.
	Signers []Verifier
}

// ruleOf returns the rule for a reference: the first one of the policy that names
// its repository, or the only one of a policy without rules.
func (p *Policy) ruleOf(reference string) (*Rule, error) {
	if p != nil {
		if in := p.in.Load(); in != nil {
			p = in
		}
	}
	deny := func(rule, missing, next string) error {
		return &DeniedError{Reference: reference, Rule: rule, Missing: missing, Next: next}
	}
	switch {
	case p == nil || len(p.Verifiers) == 0 && len(p.Rules) == 0:
		return nil, deny("the policy accepts no identity", "there is no public key to check a signature with",
			"name the signer's public key: --key cosign.pub, or a policy file: --policy policy.yaml")
	case len(p.Rules) == 0:
		return &Rule{Signers: p.Verifiers}, nil
	case len(p.Verifiers) > 0:
		return nil, deny("the policy has rules, and identities that are in none of them", "it is not known which of them count", "put each identity into a rule")
	}
	repository, err := repositoryOf(reference)
	if err != nil {
		return nil, deny("the policy has rules for repositories", err.Error(), "name it as HOST[:PORT]/NAME with a tag or a digest")
	}
	if i := p.indexOf(repository); i >= 0 {
		return &p.Rules[i], nil
	}
	return nil, deny("no rule of the policy is for "+repository, "nobody is accepted for it",
		fmt.Sprintf("add a rule to the policy with references: [%q]", repository))
}

// indexOf returns which rule is for a repository, -1 when none is.
func (p *Policy) indexOf(repository string) int {
	return slices.IndexFunc(p.Rules, func(r Rule) bool {
		return slices.ContainsFunc(r.References, func(p oci.Pattern) bool { return p.Matches(repository) })
	})
}

// repositoryOf returns the repository of a full reference, with its registry.
func repositoryOf(reference string) (string, error) {
	ref, err := registry.ParseReference(reference)
	if err != nil {
		return "", err
	}
	return strings.ToLower(ref.Registry) + "/" + ref.Repository, nil
}

// With returns a policy that accepts v too, for the repository of reference.
func (p *Policy) With(v Verifier, reference string) (*Policy, error) {
	if len(p.Rules) == 0 {
		return &Policy{Verifiers: append(slices.Clip(p.Verifiers), v)}, nil
	}
	repository, err := repositoryOf(reference)
	if err != nil {
		return nil, err
	}
	rule := Rule{Name: v.Identity()}
	if i := p.indexOf(repository); i >= 0 {
		rule = p.Rules[i]
	}
	rule.References, rule.Signers = []oci.Pattern{oci.Literal(repository)}, append(slices.Clip(rule.Signers), v)
	return &Policy{Verifiers: p.Verifiers, Rules: append([]Rule{rule}, p.Rules...)}, nil
}

// indexers are all that are accepted for an index.
func (r *Rule) indexers() []Verifier { return append(slices.Clip(r.Signers), r.Indexers...) }

// asks words what the rule asks for.
func (r *Rule) asks() string {
	names := make([]string, len(r.Signers))
	for i, v := range r.Signers {
		names[i] = v.Identity()
	}
	who := "the policy"
	if r.Name != "" {
		who = fmt.Sprintf("rule %q of the policy", r.Name)
	}
	switch len(names) {
	case 0:
		return who + " accepts nobody's signature"
	case 1:
		return who + " asks for a signature by " + names[0]
	}
	return who + " asks for a signature by one of: " + strings.Join(names, ", ")
}
