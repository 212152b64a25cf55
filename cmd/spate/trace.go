package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/agent"
	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/prefetch"
	"github.com/spate-project/spate/signing"
)

// A traced is what `spate trace` did.
type traced struct {
	Reference string        `json:"reference"`
	Digest    string        `json:"digest"` // of the manifest whose objects were read
	Workload  string        `json:"workload,omitempty"`
	Reads     prefetch.Plan `json:"reads"`
	Full      bool          `json:"full,omitempty"`  // there was more than a trace holds
	Trace     string        `json:"trace,omitempty"` // digest of what was attached
}

func (a *app) traceCommand() *cobra.Command {
	var (
		signKey, workload, data string
		remotes                 remoteFlags
	)
	cmd := &cobra.Command{
		Use:   "trace REF",
		Short: "Attach to an image or model what a start of it reads, so that other nodes fetch that first",
		Long: `Take from this node's agent what was read of an image or model through its mount:
in order, from its first read on for five minutes, as long as it is mounted. With
--sign-key that is signed and attached to the image or model, which itself does not
change. Agents that trust the key fetch what it names, in that order, as soon as
the image or model is opened, and do not wait for readers to come there. The newest
trace counts; one that no trusted key signed is ignored.

What an agent fetches whole, as spate mount does without --lazy, needs no trace.
Nor can what lies in a complete file be traced: the kernel reads that by itself.
Without --sign-key the trace is shown and nothing is attached.`,
		Example: `  cosign generate-key-pair
  spate trace 127.0.0.1:5000/apps/web:v1                         # what it would say
  spate trace 127.0.0.1:5000/apps/web:v1 --sign-key cosign.key --workload web`,
		Args: a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(workload) > prefetch.MaxWorkload {
				return usage(fmt.Errorf("a workload's name has at most %d bytes", prefetch.MaxWorkload))
			}
			signer, err := optionalSigner(signKey)
			if err != nil {
				return err
			}
			c := agent.NewClient(data)
			defer c.Close()
			r, err := c.Recording(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			t := &traced{Reference: args[0], Digest: r.Manifest.Digest.String(), Workload: workload, Reads: r.Reads, Full: r.Full}
			if signer != nil {
				if err := t.attach(cmd.Context(), r, signer, remotes.options()); err != nil {
					return fmt.Errorf("trace %s: %w", args[0], err)
				}
			}
			return a.out.Result(t, t.print)
		},
	}
	f := cmd.Flags()
	f.StringVar(&signKey, "sign-key", "", "private key `file` to sign with, as cosign makes it")
	f.StringVar(&workload, "workload", "", "`name` of what was started, for people")
	agentFlag(f, &data)
	remotes.register(f)
	return cmd
}

// attach pushes the trace and its signature.
func (t *traced) attach(ctx context.Context, r agent.Recording, signer signing.Signer, opts remote.Options) error {
	repo, err := remote.Open(t.Reference, opts)
	if err != nil {
		return err
	}
	desc, err := prefetch.Trace{Workload: t.Workload, Reads: t.Reads}.Push(ctx, repo, r.Manifest)
	if err != nil {
		return err
	}
	t.Trace = desc.Digest.String()
	_, err = signing.Sign(ctx, repo, signer, desc)
	return err
}

// print writes t for people.
func (t *traced) print(w io.Writer) error {
	objects := make(map[piece.Digest]bool)
	for _, r := range t.Reads {
		objects[r.Object] = true
	}
	_, err := fmt.Fprintf(w, "traced %s: %d reads, %s of %d objects\nmanifest %s\n", t.Reference, len(t.Reads), ui.Size(t.Reads.Bytes()), len(objects), t.Digest)
	if t.Full {
		_, more := fmt.Fprintf(w, "there were more reads than the %d that a trace holds\n", prefetch.MaxReads)
		err = errors.Join(err, more)
	}
	last := "trace    " + t.Trace
	if t.Trace == "" {
		last = "not attached: see --sign-key"
	}
	_, end := fmt.Fprintln(w, last)
	return errors.Join(err, end)
}
