package main

import (
	"context"
	"fmt"
	"io"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/signing"
	"github.com/spate-project/spate/signing/policyfile"
)

// maxPredicate bounds what spate attest reads, in bytes.
const maxPredicate = 8 << 20

// An attached is what spate sign or spate attest has attached to a manifest.
type attached struct {
	Reference string `json:"reference"`
	Digest    string `json:"digest"` // of the manifest
	Type      string `json:"predicateType,omitempty"`
	Attached  string `json:"attached"` // digest of what was attached
}

// attach resolves a reference and has make attach something to what it names.
func (a *app) attach(ctx context.Context, reference, signKey, predicateType string, remotes *remoteFlags,
	make func(*remote.Repository, signing.Signer, ocispec.Descriptor) (ocispec.Descriptor, error)) error {
	if signKey == "" {
		return ui.WithHint(usage(fmt.Errorf("sign %s: no key is named", reference)), "name a private key as cosign makes it: --sign-key cosign.key")
	}
	signer, err := loadSigner(signKey)
	if err != nil {
		return err
	}
	repo, err := remote.Open(reference, remotes.options())
	if err != nil {
		return usage(err)
	}
	desc, err := repo.Resolve(ctx, reference)
	if err != nil {
		return err
	}
	made, err := make(repo, signer, desc)
	if err != nil {
		return err
	}
	v := attached{reference, desc.Digest.String(), predicateType, made.Digest.String()}
	return a.out.Result(v, func(w io.Writer) error {
		what := "a signature"
		if v.Type != "" {
			what = "an attestation of " + v.Type
		}
		_, err := fmt.Fprintf(w, "%s (%s) has %s: %s\n", v.Reference, v.Digest, what, v.Attached)
		return err
	})
}

func (a *app) signCommand() *cobra.Command {
	var (
		signKey string
		remotes remoteFlags
	)
	cmd := &cobra.Command{
		Use:   "sign REF",
		Short: "Sign an image, model or other artifact, as cosign does",
		Long: `Sign an image, model or other artifact, as cosign sign --key does: a Sigstore bundle
is attached to the manifest, which itself does not change. What REF names now is
signed, by its digest. COSIGN_PASSWORD is the key's password, else it is asked for.`,
		Example: "  spate sign 127.0.0.1:5000/qwen:v1 --sign-key cosign.key",
		Args:    a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.attach(cmd.Context(), args[0], signKey, "", &remotes, func(repo *remote.Repository, s signing.Signer, desc ocispec.Descriptor) (ocispec.Descriptor, error) {
				return signing.Sign(cmd.Context(), repo, s, desc)
			})
		},
	}
	cmd.Flags().StringVar(&signKey, "sign-key", "", "private key `file` to sign with, as cosign makes it")
	remotes.register(cmd.Flags())
	return cmd
}

func (a *app) attestCommand() *cobra.Command {
	var (
		signKey, kind, predicate string
		remotes                  remoteFlags
	)
	cmd := &cobra.Command{
		Use:   "attest REF",
		Short: "Attach a signed statement about an image or model: provenance, an SBOM",
		Long: `Attach a signed statement about an image or model, as cosign attest --key does: its
provenance or SBOM, a JSON object in a file. A policy's rule may ask for one, see
docs/policy.md. --type is a URI or one of cosign's names: slsaprovenance1, spdxjson,
cyclonedx, vuln, openvex.`,
		Example: "  spate attest 127.0.0.1:5000/qwen:v1 --type spdxjson --predicate sbom.json --sign-key cosign.key",
		Args:    a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			predicateType, err := policyfile.PredicateType(kind)
			if err != nil {
				return usage(fmt.Errorf("--type: %w", err))
			}
			if predicate == "" {
				return ui.WithHint(usage(fmt.Errorf("attest %s: no statement is named", args[0])), "name a file with a JSON object: --predicate sbom.json")
			}
			text, err := readPredicate(predicate)
			if err != nil {
				return err
			}
			return a.attach(cmd.Context(), args[0], signKey, predicateType, &remotes, func(repo *remote.Repository, s signing.Signer, desc ocispec.Descriptor) (ocispec.Descriptor, error) {
				return signing.Attest(cmd.Context(), repo, s, desc, predicateType, text)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&signKey, "sign-key", "", "private key `file` to sign with, as cosign makes it")
	f.StringVar(&kind, "type", "", "what the statement is: a URI, or a `name` such as slsaprovenance1, spdxjson, cyclonedx")
	f.StringVar(&predicate, "predicate", "", "`file` with the statement, a JSON object")
	remotes.register(f)
	return cmd
}

func readPredicate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the statement: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPredicate+1))
	if err == nil && len(b) > maxPredicate {
		err = fmt.Errorf("%s has more than %d bytes", path, maxPredicate)
	}
	if err != nil {
		return nil, fmt.Errorf("read the statement: %w", err)
	}
	return b, nil
}
