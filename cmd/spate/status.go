package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/spate-project/spate/cmd/internal/agent"
	"github.com/spate-project/spate/cmd/internal/ui"
)

func (a *app) statusCommand() *cobra.Command {
	var (
		data  string
		watch bool
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the agent has, from where it came, and what it passed on",
		Example: `  spate status
  spate status --watch
  spate status --output json`,
		Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := agent.NewClient(data)
			defer c.Close()
			for {
				s, err := c.Status(cmd.Context())
				if err != nil {
					return err
				}
				if err := a.out.Result(s, func(w io.Writer) error { return printStatus(w, s) }); err != nil {
					return err
				}
				if !watch || !sleep(cmd.Context(), 2*time.Second) {
					return nil
				}
			}
		},
	}
	agentFlag(cmd.Flags(), &data)
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again every two seconds")
	return cmd
}

// sleep reports whether d passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func printStatus(w io.Writer, s agent.Status) error {
	name := s.Node
	if name == "" {
		name = "this node (in no mesh)"
	}
	fmt.Fprintf(w, "%s: %s received, %s sent over its link; %d pieces fetched, %d refused, %d broken on disk\n",
		name, ui.Size(s.Received), ui.Size(s.Sent), s.Cache.Fetched, s.Cache.WrongBytes, s.Cache.BadClaims)
	if len(s.Artifacts) == 0 {
		return nil
	}
	t := ui.NewTable("REFERENCE", "HERE", "SIZE", "FROM REGISTRY", "FROM PEERS", "TO PEERS", "REFUSED", "MOUNTED AT")
	for _, art := range s.Artifacts {
		at := "-"
		for i, dir := range art.Mounts {
			if i == 0 {
				at = dir
			} else {
				at += ", " + dir
			}
		}
		here := 100.0
		if art.Size > 0 {
			here = 100 * float64(art.Present) / float64(art.Size)
		}
		t.Row(art.Reference, fmt.Sprintf("%.1f%%", here), ui.Size(art.Size),
			ui.Size(art.Origin), ui.Size(art.Peers), ui.Size(art.Served), art.Refused, at)
	}
	return t.Print(w)
}
