package main

import (
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/prefetch/orders"
	"github.com/spate-project/spate/prefetch/placement"
)

func (a *app) placementCommand() *cobra.Command {
	var (
		board      boardFlags
		pool, zone string
	)
	cmd := &cobra.Command{
		Use:   "placement REF",
		Short: "Rank nodes by how much they hold of an image or a model",
		Long: `Rank the nodes that are connected to a registry by the share that they hold,
verified, of what REF needs: the files of a model, or the layers of an image. Among
equals those of --zone come first, then those with more room in their caches. Nodes
say what they hold every few seconds. REF has to be in that registry.

The same is at ` + placement.Path + ` for schedulers, and as kube-scheduler's
extender: docs/kubernetes.md tells how to set it up.`,
		Example: "  spate placement 127.0.0.1:5000/qwen:v1 --pool gpu --zone eu-1a",
		Args:    a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := board.of(args[0]); err != nil {
				return err
			}
			p, err := board.placement(cmd.Context(), args[0], pool, zone)
			if err != nil {
				return err
			}
			return a.out.Result(p, func(w io.Writer) error { return printPlacement(w, p) })
		},
	}
	f := cmd.Flags()
	board.register(f, "", "base `URL` of the registry; that of REF when empty")
	board.remotes.register(f)
	f.StringVar(&pool, "pool", "", "`name` of the pool: agents with --label pool=NAME; all agents when empty")
	f.StringVar(&zone, "zone", "", "`name` of the zone whose nodes come first among equals")
	return cmd
}

// of finds out the registry of a reference where none is given.
func (b *boardFlags) of(reference string) error {
	repo, err := remote.Open(reference, b.remotes.options())
	if err != nil {
		return usage(err)
	}
	if b.registry == "" {
		scheme := "https://"
		if repo.PlainHTTP {
			scheme = "http://"
		}
		b.registry = scheme + repo.Reference.Registry
	}
	return nil
}

// placement asks the registry.
func (b *boardFlags) placement(ctx context.Context, reference, pool, zone string) (p placement.Placement, err error) {
	transport := remote.NewTransport()
	defer transport.CloseIdleConnections()
	p, err = placement.Ask(ctx, &http.Client{Transport: transport}, b.registry, reference, pool, zone)
	if errors.Is(err, placement.ErrNoPlacement) {
		return p, ui.WithHint(err, "name a `spate registry` with --registry")
	}
	return p, err
}

func printPlacement(w io.Writer, p placement.Placement) error {
	t := ui.NewTable("NODE", "ZONE", "HERE", "OF", "ROOM")
	for _, n := range p.Nodes {
		room, zone := "no limit", n.Zone
		if n.Free >= 0 {
			room = ui.Size(n.Free)
		}
		if zone == "" {
			zone = "-"
		}
		t.Row(n.Node, zone, reached(orders.Node{Progress: orders.Progress{Have: n.Have, Total: n.Total}}), ui.Size(n.Total), room)
	}
	return t.Print(w)
}
