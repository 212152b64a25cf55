package main

import (
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"oras.land/oras-go/v2/registry"

	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/remote"
)

// maxDescriptor bounds what containerd says on standard input, in bytes.
const maxDescriptor = 1 << 20

// A judgement is what an image verifier says.
type judgement struct {
	Reference string `json:"reference"`
	Rule      string `json:"rule,omitempty"`
	SignedBy  string `json:"signedBy,omitempty"`
}

// imageVerifierCommand is a plugin of containerd's: io.containerd.image-verifier.v1.bindir
// (containerd, docs/image-verification.md), which writes flags with one dash.
func (a *app) imageVerifierCommand() *cobra.Command {
	var (
		trust              trustFlags
		remotes            remoteFlags
		name, sum, stdinOf string
	)
	cmd := &cobra.Command{
		Use:   "image-verifier",
		Short: "Tell containerd whether it may pull an image, as its image verifier plugin",
		Long: `Tell containerd whether it may pull an image, with whatever snapshotter: the policy
decides as for a mount. Put a script into the folder of containerd's image verifiers,
/opt/containerd/image-verifier/bin, that may be executed:

  #!/bin/sh
  exec /usr/local/bin/spate image-verifier --policy /etc/spate/policy.yaml "$@"

containerd calls it for pulls through its transfer service. What it says is on
standard output; exit code 0 admits the image, any other one refuses it. Logins are
those of docker and podman of the user that containerd runs as.`,
		Example:            `  spate image-verifier --key cosign.pub -name 127.0.0.1:5000/web:v1 -digest sha256:... -stdin-media-type application/vnd.oci.descriptor.v1+json`,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := cmd.Flags().Parse(doubleDashed(args)); err != nil {
				return ui.WithHint(usage(err), "see `spate image-verifier --help`")
			}
			if help, _ := cmd.Flags().GetBool("help"); help {
				return cmd.Help()
			}
			if err := a.args(cobra.NoArgs)(cmd, cmd.Flags().Args()); err != nil {
				return err
			}
			// Else containerd is told of a broken pipe. What it says the flags say too.
			if _, err := io.Copy(io.Discard, io.LimitReader(os.Stdin, maxDescriptor)); err != nil {
				return err
			}
			ref, err := registry.ParseReference(name)
			if err == nil {
				err = digest.Digest(sum).Validate()
			}
			if err != nil {
				return ui.WithHint(usage(fmt.Errorf("verify image %q with digest %q: %w", name, sum, err)), "containerd says both, with -name and -digest")
			}
			ref.Reference = sum
			policy, err := trust.policy()
			if err != nil {
				return err
			}
			repo, err := remote.Open(ref.String(), remotes.options())
			if err != nil {
				return usage(err)
			}
			trusted, chain, err := policy.Admit(cmd.Context(), repo, ref.String())
			if err != nil {
				fmt.Fprintln(cmd.OutOrStdout(), err) // of which containerd makes its own error
				return err
			}
			v := judgement{Reference: trusted.Reference(), Rule: chain.Rule, SignedBy: chain.SignedBy()}
			return a.out.Result(v, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "signed by %s\n", v.SignedBy)
				return err
			})
		},
	}
	f := cmd.Flags()
	trust.register(f)
	remotes.register(f)
	f.StringVar(&name, "name", "", "`name` of the image, as it is pulled")
	f.StringVar(&sum, "digest", "", "`digest` of its manifest")
	f.StringVar(&stdinOf, "stdin-media-type", "", "`media type` of standard input, which is not looked at")
	return cmd
}

// doubleDashed writes containerd's flags as this program takes them.
func doubleDashed(args []string) []string {
	long := make([]string, len(args))
	for i, arg := range args {
		if long[i] = arg; len(arg) > 2 && arg[0] == '-' && arg[1] != '-' {
			long[i] = "-" + arg
		}
	}
	return long
}
