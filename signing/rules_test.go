package signing_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/signing"
)

// TestRules: of the rules that name a repository the first one says whose signature
// counts there, for an artifact and for its index; what no rule names is refused.
func TestRules(t *testing.T) {
	const full = "Registry.Example:5000/team/model:v1"
	patterns := func(p ...oci.Pattern) []oci.Pattern { return p }
	for name, test := range map[string]struct {
		rules  func(b *bench) []signing.Rule
		signed func(b *bench) (key, key) // who signs the manifest, and who its index
		rule   string                    // that admits it
		index  bool
		denied string // instead
	}{
		"its signer": {
			rules: func(b *bench) []signing.Rule {
				return []signing.Rule{{Name: "team", References: patterns("registry.example:5000/team/*"), Signers: []signing.Verifier{b.ours.verifier}}}
			},
			signed: func(b *bench) (key, key) { return b.ours, b.ours }, rule: "team", index: true,
		},
		"another rule's signer": {
			rules: func(b *bench) []signing.Rule {
				return []signing.Rule{
					{Name: "other", References: patterns("registry.example:5000/other/**"), Signers: []signing.Verifier{b.stranger.verifier}},
					{Name: "team", References: patterns("registry.example:5000/team/*"), Signers: []signing.Verifier{b.ours.verifier}},
				}
			},
			signed: func(b *bench) (key, key) { return b.stranger, b.stranger }, denied: `rule "team" of the policy asks for a signature by`,
		},
		"the first rule counts": {
			rules: func(b *bench) []signing.Rule {
				return []signing.Rule{
					{Name: "model", References: patterns("registry.example:5000/team/model"), Signers: []signing.Verifier{b.ours.verifier}},
					{Name: "all", References: patterns("**"), Signers: []signing.Verifier{b.stranger.verifier}},
				}
			},
			signed: func(b *bench) (key, key) { return b.stranger, b.stranger }, denied: `rule "model"`,
		},
		"an indexer's index": {
			rules: func(b *bench) []signing.Rule {
				return []signing.Rule{{Name: "team", References: patterns("**"), Signers: []signing.Verifier{b.ours.verifier}, Indexers: []signing.Verifier{b.stranger.verifier}}}
			},
			signed: func(b *bench) (key, key) { return b.ours, b.stranger }, rule: "team", index: true,
		},
		"an indexer admits no artifact": {
			rules: func(b *bench) []signing.Rule {
				return []signing.Rule{{Name: "team", References: patterns("**"), Signers: []signing.Verifier{b.ours.verifier}, Indexers: []signing.Verifier{b.stranger.verifier}}}
			},
			signed: func(b *bench) (key, key) { return b.stranger, b.stranger }, denied: "is not accepted",
		},
		"a stranger's index": {
			rules: func(b *bench) []signing.Rule {
				return []signing.Rule{{Name: "team", References: patterns("**"), Signers: []signing.Verifier{b.ours.verifier}}}
			},
			signed: func(b *bench) (key, key) { return b.ours, b.stranger }, rule: "team",
		},
		"no rule": {
			rules: func(b *bench) []signing.Rule {
				return []signing.Rule{{Name: "other", References: patterns("registry.example/team/*", "*/other/*"), Signers: []signing.Verifier{b.ours.verifier}}}
			},
			signed: func(b *bench) (key, key) { return b.ours, b.ours }, denied: "no rule of the policy is for registry.example:5000/team/model",
		},
		"nobody": {
			rules: func(b *bench) []signing.Rule {
				return []signing.Rule{{Name: "team", References: patterns("**")}}
			},
			signed: func(b *bench) (key, key) { return b.ours, b.ours }, denied: "accepts nobody's signature",
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, stores["memory"](t))
			b.policy = &signing.Policy{Rules: test.rules(b)}
			signer, indexer := test.signed(b)
			b.signed(signer, b.manifest)
			b.signed(indexer, b.index(b.manifest, "tree", ""))
			if err := b.repo.Tag(t.Context(), b.manifest, full); err != nil {
				t.Fatal(err)
			}
			trusted, chain, err := b.policy.Admit(t.Context(), b.repo, full)
			if test.denied != "" {
				denied, ok := errors.AsType[*signing.DeniedError](err)
				if !ok || !errors.Is(err, piece.ErrNotTrusted) || trusted.Valid() || chain.Admitted || !strings.Contains(err.Error(), test.denied) || denied.Next == "" {
					t.Errorf("%v, want %q", err, test.denied)
				}
				return
			}
			if _, indexed := trusted.Index(); err != nil || !chain.Admitted || chain.Rule != test.rule || indexed != test.index {
				t.Errorf("%v, index %t\n%s", err, indexed, chain)
			}
			if test.rule != "" && !strings.Contains(chain.String(), "admitted by rule "+test.rule) {
				t.Errorf("the chain does not say which rule it was: %s", chain)
			}
			if _, _, err := b.policy.Trace(t.Context(), b.repo, trusted); err != nil {
				t.Errorf("look for a trace: %v", err)
			}
		})
	}
}

// TestRulesNeedNames: a policy with rules refuses what has no full name, and one that
// is not whole admits nothing.
func TestRulesNeedNames(t *testing.T) {
	b := newBench(t, stores["memory"](t))
	b.signed(b.ours, b.manifest)
	rules := []signing.Rule{{Name: "all", References: []oci.Pattern{"**"}, Signers: []signing.Verifier{b.ours.verifier}}}
	for _, p := range []*signing.Policy{{Rules: rules}, {Rules: rules, Verifiers: []signing.Verifier{b.ours.verifier}}} {
		if trusted, _, err := p.Admit(t.Context(), b.repo, reference); !errors.Is(err, piece.ErrNotTrusted) || trusted.Valid() {
			t.Errorf("%v", err)
		}
	}
}

// TestWith: one more identity counts for one repository, beside those of its rule, and for no other.
func TestWith(t *testing.T) {
	b := newBench(t, stores["memory"](t))
	rules := &signing.Policy{Rules: []signing.Rule{{Name: "team", References: []oci.Pattern{"h/team/*"}, Signers: []signing.Verifier{b.ours.verifier}}}}
	b.signed(b.stranger, b.manifest)
	other := b.image("other")
	b.signed(b.ours, other)
	for ref, desc := range map[string]ocispec.Descriptor{"h/team/a:v1": b.manifest, "h/team/a:v2": other, "h/team/b:v1": b.manifest, "h/none/a:v1": b.manifest} {
		if err := b.repo.Tag(t.Context(), desc, ref); err != nil {
			t.Fatal(err)
		}
	}
	admits := func(p *signing.Policy, ref string) bool {
		_, _, err := p.Admit(t.Context(), b.repo, ref)
		return err == nil
	}
	wider, err := rules.With(b.stranger.verifier, "h/team/a:v1")
	if err != nil {
		t.Fatal(err)
	}
	if !admits(wider, "h/team/a:v1") || !admits(wider, "h/team/a:v2") || admits(wider, "h/team/b:v1") || admits(rules, "h/team/a:v1") {
		t.Error("the added identity counts where it should not, or not where it should")
	}
	if alone, err := rules.With(b.stranger.verifier, "h/none/a:v1"); err != nil || !admits(alone, "h/none/a:v1") {
		t.Errorf("without a rule before: %v", err)
	}
	keys := &signing.Policy{Verifiers: []signing.Verifier{b.ours.verifier}}
	if both, err := keys.With(b.stranger.verifier, "h/team/a:v1"); err != nil || !admits(both, "h/team/a:v1") || admits(keys, "h/team/a:v1") {
		t.Errorf("of a policy without rules: %v", err)
	}
}

// TestDecided: each decision is told and counted, also those of a policy in the place
// of another; what could not be decided is none.
func TestDecided(t *testing.T) {
	b := newBench(t, stores["memory"](t))
	b.signed(b.ours, b.manifest)
	var told []string
	b.policy.Decided = func(_ context.Context, c *signing.Chain, err error) {
		told = append(told, fmt.Sprint(c.Reference, " ", c.SignedBy() != "", " ", err != nil))
	}
	b.policy.Admit(t.Context(), b.repo, reference)
	b.policy.Admit(t.Context(), b.repo, "none")
	b.policy.Replace(&signing.Policy{Verifiers: []signing.Verifier{b.stranger.verifier}})
	b.policy.Admit(t.Context(), b.repo, reference)
	want := []string{reference + " true false", reference + " false true"}
	if admitted, refused := b.policy.Decisions(); !slices.Equal(told, want) || admitted != 1 || refused != 1 {
		t.Errorf("told %q, want %q; %d admitted, %d refused", told, want, admitted, refused)
	}
}
