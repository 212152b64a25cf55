package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/spate-project/spate/cmd/internal/agent"
	"github.com/spate-project/spate/cmd/internal/ui"
)

func (a *app) cacheCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cache",
		Short: "Show the agent's cache, and say what stays in it and how much",
		Long: `Show the agent's cache, and say what stays in it and how much.

The cache has at most --cache-quota of the agent, in bytes of pieces. Before a
write would exceed that, objects that nobody uses are evicted whole, those first
whose last use is longest ago. What is mounted, ordered by a prefetch, read or on
its way stays, and so does what is pinned. Where nothing can be evicted the write
fails as on a full disk.`,
		Example: `  spate cache ls
  spate cache pin registry.example/qwen:v1
  spate cache resize 500GB`,
		Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		a.cacheListCommand(),
		a.cacheChange("pin REF", "Keep a reference in the cache, over restarts too",
			`Keep the objects of a reference in the cache, over restarts of the agent too,
until it is unpinned. Nothing is fetched: what is not here stays once it came. A
tag is pinned as what it names now.`, "spate cache pin registry.example/qwen:v1", 1,
			func(ctx context.Context, c *agent.Client, arg string) error { return c.Pin(ctx, arg) }),
		a.cacheChange("unpin REF", "Take back a pin",
			`Take back a pin, by the reference that it was made with. What nobody uses may
then be evicted.`, "spate cache unpin registry.example/qwen:v1", 1,
			func(ctx context.Context, c *agent.Client, arg string) error { return c.Unpin(ctx, arg) }),
		a.cacheChange("rm REF|DIGEST", "Remove a reference or an object from the cache",
			`Remove the objects of a reference, or one object by its digest, from the cache.
What is pinned or in use is refused; of a reference's objects those stay that
another one needs.`, "spate cache rm registry.example/qwen:v1", 1,
			func(ctx context.Context, c *agent.Client, arg string) error { return c.Remove(ctx, arg) }),
		a.cacheChange("gc", "Drop what nobody can use, and evict down to the quota",
			`Drop what is in quarantine and objects of which no piece is here, and evict down
to the quota.`, "spate cache gc", 0,
			func(ctx context.Context, c *agent.Client, _ string) error { return c.CollectGarbage(ctx) }),
		a.cacheChange("resize SIZE", "Change the cache's quota while the agent runs",
			`Change the cache's quota, as in 500GB or 2TiB, and evict what is beyond it; 0 is
no limit. Less than is pinned or in use is refused. The change is not kept over a
restart of the agent, which begins with --cache-quota.`, "spate cache resize 500GB", 1,
			func(ctx context.Context, c *agent.Client, arg string) error {
				var quota ui.Bytes
				if err := quota.Set(arg); err != nil {
					return usage(fmt.Errorf("resize: %w", err))
				}
				return c.SetQuota(ctx, int64(quota))
			}),
	)
	return cmd
}

// cacheChange is a command that changes the cache, by its argument if it takes
// one, and then says what the cache has.
func (a *app) cacheChange(use, short, long, example string, args int, change func(context.Context, *agent.Client, string) error) *cobra.Command {
	var data string
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Example: "  " + example,
		Args: a.args(cobra.ExactArgs(args)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := agent.NewClient(data)
			defer c.Close()
			if err := change(cmd.Context(), c, strings.Join(args, "")); err != nil {
				return err
			}
			return a.showCache(cmd.Context(), c, func(w io.Writer, v agent.CacheView) error {
				_, err := fmt.Fprintln(w, cacheLine(v.Quota, v.Used, v.Pinned))
				return err
			})
		},
	}
	agentFlag(cmd.Flags(), &data)
	return cmd
}

func (a *app) cacheListCommand() *cobra.Command {
	var data string
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List what is in the cache, the last used first",
		Long: `List what is in the cache, the last used first. REFERENCES are those that the
agent has opened since it began; KEPT BY says what keeps an object from being evicted,
and zone that it goes only when no other can: of its zone's nodes this one keeps it longest.`,
		Example: `  spate cache ls
  spate cache ls --output json`,
		Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := agent.NewClient(data)
			defer c.Close()
			return a.showCache(cmd.Context(), c, printCache)
		},
	}
	agentFlag(cmd.Flags(), &data)
	return cmd
}

func (a *app) showCache(ctx context.Context, c *agent.Client, show func(io.Writer, agent.CacheView) error) error {
	v, err := c.Cache(ctx)
	if err != nil {
		return err
	}
	return a.out.Result(v, func(w io.Writer) error { return show(w, v) })
}

func printCache(w io.Writer, v agent.CacheView) error {
	fmt.Fprintln(w, cacheLine(v.Quota, v.Used, v.Pinned))
	if len(v.Objects) == 0 {
		return nil
	}
	t := ui.NewTable("OBJECT", "HERE", "SIZE", "LAST USE", "KEPT BY", "REFERENCES")
	for _, o := range v.Objects {
		kept := o.Pins
		if o.InUse {
			kept = append([]string{"use"}, kept...)
		}
		if o.Keep {
			kept = append(kept, "zone")
		}
		t.Row(o.Digest, percent(o.Bytes, o.Size), ui.Size(o.Size), o.Used.Local().Format(time.DateTime), list(kept), list(o.References))
	}
	return t.Print(w)
}

// list words a list for a table.
func list(words []string) string {
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, ", ")
}

// cacheLine words how full a cache is.
func cacheLine(quota, used, pinned int64) string {
	of := "without a quota"
	if quota > 0 {
		of = "of a quota of " + ui.Size(quota)
	}
	return fmt.Sprintf("cache: %s %s, %s pinned or in use", ui.Size(used), of, ui.Size(pinned))
}
