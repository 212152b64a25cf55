package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/agent"
	"github.com/spate-project/spate/oci/index"
	"github.com/spate-project/spate/signing"
)

// A verification is what `spate verify` found.
type verification struct {
	*signing.Chain
	Objects []index.Object `json:"objects,omitempty"`
}

func (a *app) verifyCommand() *cobra.Command {
	var (
		trust   trustFlags
		remotes remoteFlags
	)
	cmd := &cobra.Command{
		Use:   "verify REF",
		Short: "Check a reference's chain of trust, step by step",
		Long: `Check a reference as an agent does before it fetches anything: the signature of
its manifest, the signature of its index, and the proof of the pieces of every
file or layer against its root. Of an image for several platforms it checks the
one for this machine. Exit code 0 means that an agent with these keys would mount it,
3 that it would refuse.`,
		Example: "  spate verify 127.0.0.1:5000/qwen:v1 --key cosign.pub",
		Args:    a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			policy, err := trust.policy()
			if err != nil {
				return err
			}
			admission, chain, err := agent.Admit(cmd.Context(), policy, remotes.options(), args[0])
			v := verification{Chain: chain}
			if err == nil {
				v.Objects = admission.Index.Objects()
			}
			if err != nil && !errors.Is(err, piece.ErrNotTrusted) {
				return err
			}
			return errors.Join(err, a.out.Result(v, func(w io.Writer) error { return printVerification(w, v) }))
		},
	}
	trust.register(cmd.Flags())
	remotes.register(cmd.Flags())
	return cmd
}

func printVerification(w io.Writer, v verification) error {
	if _, err := io.WriteString(w, v.String()); err != nil {
		return err
	}
	for _, o := range v.Objects {
		erofs := ""
		if o.EROFS != nil {
			erofs = fmt.Sprintf(", EROFS metadata %s", o.EROFS.Digest)
		}
		if _, err := fmt.Fprintf(w, "object %s: %d bytes in %d pieces, root %s%s\n", o.Digest, o.Size, o.Pieces(), o.Root, erofs); err != nil {
			return err
		}
	}
	return nil
}
