package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/spate-project/spate/cmd/internal/agent"
	"github.com/spate-project/spate/cmd/internal/ui"
)

// watchInterval is how often --watch looks.
const watchInterval = time.Second

func (a *app) statusCommand() *cobra.Command {
	var (
		data  string
		watch bool
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the agent has, from where it came, and what it passed on",
		Long: `Show what the agent has, from where it came, and what it passed on.

With --watch it is shown again every second, together with the files whose
swarms are at work: those that are not whole, or whose pieces moved lately.
Rates are over the last five seconds. LEFT is how long the rest takes as fast
as it comes now; AT BEST is how long it would take with the node's whole link
for it alone. The link is taken for as fast as --limit-down of the agent, and
without a limit for as fast as the most that the agent received in one second
since it began: until the link was full once, AT BEST says too much.`,
		Example: `  spate status
  spate status --watch
  spate status --output json`,
		Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := agent.NewClient(data)
			defer c.Close()
			if watch {
				return a.watch(cmd.Context(), c)
			}
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			return a.out.Result(s, func(w io.Writer) error { return printStatus(w, s) })
		},
	}
	agentFlag(cmd.Flags(), &data)
	cmd.Flags().BoolVar(&watch, "watch", false, "show it every second, with rates, until interrupted; JSON is one object a line")
	return cmd
}

// watch shows what the agent does until ctx ends.
func (a *app) watch(ctx context.Context, c *agent.Client) error {
	screen, rates := ui.NewScreen(a.out), agent.Watch{}
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		s, err := c.Status(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		v := rates.Add(s)
		if err := screen.Show(v, func(w io.Writer) error { return printView(w, v) }); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// nodeName is what a status is headed with.
func nodeName(s agent.Status) string {
	if s.Node == "" {
		return "this node (in no mesh)"
	}
	return s.Node
}

func printStatus(w io.Writer, s agent.Status) error {
	fmt.Fprintf(w, "%s: %s received, %s sent over its link; %d pieces fetched, %d refused, %d broken on disk\n",
		nodeName(s), ui.Size(s.Received), ui.Size(s.Sent), s.Cache.Fetched, s.Cache.WrongBytes, s.Cache.BadClaims)
	fmt.Fprintln(w, cacheLine(s.Cache.Quota, s.Cache.Used, s.Cache.Pinned))
	if err := printBans(w, s); err != nil {
		return err
	}
	if err := printWarm(w, s.Warm); err != nil {
		return err
	}
	if err := printLayers(w, s); err != nil || len(s.Artifacts) == 0 {
		return err
	}
	t := ui.NewTable("REFERENCE", "HERE", "SIZE", "FROM REGISTRY", "FROM PEERS", "TO PEERS", "REFUSED", "MOUNTED AT")
	for _, art := range s.Artifacts {
		at := "-"
		if len(art.Mounts) > 0 {
			at = strings.Join(art.Mounts, ", ")
		}
		t.Row(art.Reference, percent(art.Present, art.Size), ui.Size(art.Size),
			ui.Size(art.Origin), ui.Size(art.Peers), ui.Size(art.Served), art.Refused, at)
	}
	return t.Print(w)
}

func printView(w io.Writer, v agent.View) error {
	link := ""
	if v.LinkRate > 0 {
		link = " of " + speed(v.LinkRate)
	}
	fmt.Fprintf(w, "%s at %s: receives %s%s, sends %s; %d reads wait, all so far waited %s\n",
		nodeName(v.Status), v.Time.Local().Format(time.TimeOnly), speed(v.Down), link, speed(v.Up),
		v.Cache.Waiting, ui.Duration(time.Duration(v.Cache.StallSeconds*float64(time.Second))))
	if err := printBans(w, v.Status); err != nil || len(v.Watched) == 0 {
		return err
	}
	t := ui.NewTable("REFERENCE AND FILES", "HERE", "SIZE", "FROM REGISTRY", "FROM PEERS", "RATE", "TO PEERS", "PEERS", "LEFT", "AT BEST")
	for i, m := range v.Watched {
		art := v.Artifacts[i]
		t.Row(m.Reference, percent(art.Present, art.Size), ui.Size(art.Size), ui.Size(art.Origin), ui.Size(art.Peers),
			speed(m.Down), speed(m.Up), "", left(m.ETA), left(m.Bound))
		for _, f := range m.Active {
			t.Row("  "+f.Path, fmt.Sprintf("%d of %d pieces", f.Held, f.Pieces), ui.Size(f.Size), ui.Size(f.Origin), ui.Size(f.FromPeers),
				speed(f.Down), speed(f.Up), f.Peers, left(f.ETA), left(f.Bound))
		}
	}
	return t.Print(w)
}

// printLayers shows how the layers of images are read.
func printLayers(w io.Writer, s agent.Status) error {
	if len(s.Layers) == 0 {
		return nil
	}
	t := ui.NewTable("IMAGE", "LAYER", "READ AS", "HERE")
	for _, l := range s.Layers {
		path := l.Path
		switch {
		case path == "":
			path = "not readable"
		case l.Reason != "":
			path += " (" + l.Reason + ")"
		}
		t.Row(cmp.Or(l.Image, "-"), cmp.Or(shortDigest(l.Layer), "-"), path, ui.Size(l.Held))
	}
	return t.Print(w)
}

// shortDigest returns what tells a digest from others at a glance.
func shortDigest(d string) string {
	_, hex, _ := strings.Cut(d, ":")
	return hex[:min(12, len(hex))]
}

func printBans(w io.Writer, s agent.Status) error {
	t := &ui.Table{}
	for _, b := range s.Bans {
		t.Row("banned until "+b.Until.Local().Format(time.TimeOnly), b.Peer, b.Reason)
	}
	return t.Print(w)
}

func percent(n, of int64) string {
	if of == 0 {
		return "100.0%"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(n)/float64(of))
}

func speed(bytesPerSecond int64) string { return ui.Speed(bytesPerSecond, time.Second) }

// left words a forecast.
func left(seconds float64) string {
	if seconds < 0 {
		return "?"
	}
	return ui.Duration(time.Duration(seconds * float64(time.Second)))
}
