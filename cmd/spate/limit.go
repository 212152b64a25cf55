package main

import (
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/spate-project/spate/cmd/internal/agent"
	"github.com/spate-project/spate/cmd/internal/ui"
)

// What each limit is of, in flags and tables.
const (
	ofUp       = "everything the node sends"
	ofDown     = "everything the node receives"
	ofSeeding  = "what it sends to peers"
	ofPrefetch = "what it fetches in the background"
	ofDemand   = "what readers wait for"
)

// classFlags are the limits of an agent's classes of traffic.
type classFlags struct{ seeding, prefetch, demand ui.Rate }

func (c *classFlags) register(f *pflag.FlagSet, prefix string) {
	f.Var(&c.seeding, prefix+"seeding", "most `bytes` a second of "+ofSeeding+"; 0 is no limit")
	f.Var(&c.prefetch, prefix+"prefetch", "most `bytes` a second of "+ofPrefetch+"; 0 is no limit")
	f.Var(&c.demand, prefix+"demand", "most `bytes` a second of "+ofDemand+"; 0 is no limit")
}

func (a *app) limitCommand() *cobra.Command {
	var (
		up, down ui.Rate
		classes  classFlags
		data     string
	)
	cmd := &cobra.Command{
		Use:   "limit",
		Short: "Show or change the agent's bandwidth limits while it runs",
		Long: `Show the agent's bandwidth limits, or change those that are named. A rate is in
bytes a second, as in 50MiB or 100MB, or in bits a second, as in 400mbit; 0 is
no limit. A byte passes when every limit that is on its way lets it.

A change holds at once, for what is under way too. It is not kept over a restart
of the agent, which begins with the limits on its command line or in its
configuration (--limit-up and so on).

What readers wait for is never held back by --prefetch. --seeding also slows
down what the node asks its peers for, when it is very low.`,
		Example: `  spate limit
  spate limit --prefetch 200mbit --seeding 20MiB
  spate limit --up 0 --down 0`,
		Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			named := func(flag string, r ui.Rate) *int64 {
				if !cmd.Flags().Changed(flag) {
					return nil
				}
				n := int64(r)
				return &n
			}
			c := agent.NewClient(data)
			defer c.Close()
			l, err := c.SetLimits(cmd.Context(), agent.LimitChange{
				Up: named("up", up), Down: named("down", down),
				Seeding: named("seeding", classes.seeding), Prefetch: named("prefetch", classes.prefetch), Demand: named("demand", classes.demand),
			})
			if err != nil {
				return err
			}
			return a.out.Result(l, func(w io.Writer) error { return printLimits(w, l) })
		},
	}
	f := cmd.Flags()
	f.Var(&up, "up", "most `bytes` a second of "+ofUp+"; 0 is no limit")
	f.Var(&down, "down", "most `bytes` a second of "+ofDown+"; 0 is no limit")
	classes.register(f, "")
	agentFlag(f, &data)
	return cmd
}

func printLimits(w io.Writer, l agent.Limits) error {
	t := ui.NewTable("LIMIT", "A SECOND", "OF")
	for _, row := range []struct {
		name, of string
		limit    int64
	}{
		{"up", ofUp, l.Up}, {"down", ofDown, l.Down},
		{"seeding", ofSeeding, l.Seeding}, {"prefetch", ofPrefetch, l.Prefetch}, {"demand", ofDemand, l.Demand},
	} {
		rate, text := ui.Rate(row.limit), "no limit"
		if rate > 0 {
			text = rate.String()
		}
		t.Row(row.name, text, row.of)
	}
	return t.Print(w)
}
