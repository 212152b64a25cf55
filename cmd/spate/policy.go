package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/signing"
	"github.com/spate-project/spate/signing/cosign"
	"github.com/spate-project/spate/signing/policyfile"
)

// trustFlags say whose signatures count.
type trustFlags struct {
	keys []string
	file string
}

func (t *trustFlags) register(f *pflag.FlagSet) {
	f.StringArrayVar(&t.keys, "key", nil, "public key `file` (PEM) whose signatures are trusted; may be repeated")
	f.StringVar(&t.file, "policy", "", "policy `file` (YAML) with rules of whose signatures are trusted for what, instead of --key; see docs/policy.md")
}

// policy returns what the flags say. Errors are of usage where they say too much.
func (t *trustFlags) policy() (*signing.Policy, error) {
	if t.file != "" {
		if len(t.keys) > 0 {
			return nil, ui.WithHint(usage(errors.New("--policy says whose signatures are trusted, so --key has no meaning beside it")), "put the key into a rule of the policy")
		}
		return policyfile.Load(t.file)
	}
	p := &signing.Policy{}
	for _, path := range t.keys {
		v, err := cosign.LoadPublicKey(path)
		if err != nil {
			return nil, err
		}
		p.Verifiers = append(p.Verifiers, v)
	}
	return p, nil
}

// logDecision writes what a policy decided.
func logDecision(ctx context.Context, log *slog.Logger, c *signing.Chain, err error) {
	outcome, why, sum, by := "admitted", "", "", ""
	if len(c.Steps) > 0 {
		sum, by = c.Steps[0].Digest.String(), c.SignedBy()
	}
	if err != nil {
		outcome, why = "refused", err.Error()
	}
	log.LogAttrs(ctx, slog.LevelInfo, "policy", slog.String("outcome", outcome), slog.String("reference", c.Reference), slog.String("digest", sum),
		slog.String("rule", c.Rule), slog.String("signedBy", by), slog.String("why", why))
}

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Check a policy file, and what it says of a reference",
		Long: `Check a policy file, and what it says of a reference. A policy says, for some
repositories each, whose signatures count: keys, and identities of cosign's keyless
signatures. Commands take it as --policy; docs/policy.md has an example.`,
		Example: `  spate policy lint policy.yaml
  spate policy test registry.example/models/qwen:v1 --policy policy.yaml`,
		Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.policyLintCommand(), a.policyTestCommand())
	return cmd
}

// A ruleView is a rule as it is shown.
type ruleView struct {
	Name       string        `json:"name"`
	References []oci.Pattern `json:"references"`
	Signers    []string      `json:"signers"`
	Indexers   []string      `json:"indexers,omitempty"`

	Attestations []string `json:"attestations,omitempty"` // types of predicates
}

func (a *app) policyLintCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "lint FILE",
		Short: "Read a policy file as agents do, and show its rules in their order",
		Long: `Read a policy file as agents do, with all that it names, and show its rules in
their order: of those that name a repository the first one counts. What is wrong
with it is told with exit code 1.`,
		Example: "  spate policy lint policy.yaml",
		Args:    a.args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			p, err := policyfile.Load(args[0])
			if err != nil {
				return err
			}
			var list []ruleView
			for _, r := range p.Rules {
				v := ruleView{Name: r.Name, References: r.References, Signers: identities(r.Signers), Indexers: identities(r.Indexers)}
				for _, a := range r.Attestations {
					v.Attestations = append(v.Attestations, a.PredicateType)
				}
				list = append(list, v)
			}
			return a.out.Result(list, func(w io.Writer) error { return printRules(w, list) })
		},
	}
}

func identities(list []signing.Verifier) (names []string) {
	for _, v := range list {
		names = append(names, v.Identity())
	}
	return names
}

func printRules(w io.Writer, list []ruleView) error {
	t := ui.NewTable("RULE", "REFERENCES", "SIGNERS", "INDEXERS TOO", "ATTESTATIONS")
	for _, r := range list {
		var references []string
		for _, p := range r.References {
			references = append(references, string(p))
		}
		t.Row(r.Name, strings.Join(references, " "), strings.Join(r.Signers, "; "),
			cmp.Or(strings.Join(r.Indexers, "; "), "-"), cmp.Or(strings.Join(r.Attestations, " "), "-"))
	}
	return t.Print(w)
}

func (a *app) policyTestCommand() *cobra.Command {
	var (
		trust   trustFlags
		remotes remoteFlags
	)
	cmd := &cobra.Command{
		Use:   "test REF",
		Short: "Say which rule is for a reference, and whether it admits it",
		Long: `Say which rule of a policy is for a reference, and whether it admits it: the
signatures that are attached to it, and its index if it has one. Nothing but these
is fetched. Exit code 0 means that it is admitted, 3 that it is not. spate verify
checks all that a mount needs.`,
		Example: "  spate policy test registry.example/models/qwen:v1 --policy policy.yaml",
		Args:    a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			policy, err := trust.policy()
			if err != nil {
				return err
			}
			repo, err := remote.Open(args[0], remotes.options())
			if err != nil {
				return usage(err)
			}
			_, chain, err := policy.Admit(cmd.Context(), repo, args[0])
			if err != nil && !errors.Is(err, piece.ErrNotTrusted) {
				return err
			}
			return errors.Join(err, a.out.Result(chain, func(w io.Writer) error {
				_, err := fmt.Fprint(w, chain)
				return err
			}))
		},
	}
	trust.register(cmd.Flags())
	remotes.register(cmd.Flags())
	return cmd
}
