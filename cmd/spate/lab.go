package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/spate-project/spate/cmd/internal/lab"
	"github.com/spate-project/spate/cmd/internal/storm"
	"github.com/spate-project/spate/cmd/internal/ui"
)

func (a *app) labCommand() *cobra.Command {
	opts := storm.Options{}
	size, link, originLink := ui.Bytes(256<<20), ui.Rate(100e6/8), ui.Rate(0)
	timeout, dir := time.Hour, ""
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Measure a start storm: N nodes in network namespaces behind shaped links",
		Long: `Start a registry and N agents, each in a network namespace of its own behind a
link of its own rate, have all nodes get one model in the same second, and
compare with what physics allows. Every node is real processes of this program;
links are shaped by the kernel (TBF, both ways).

The arms are
  lone        one node downloads alone: its rate is what the bound counts with;
              always run, first and once
  direct      every node downloads from the registry, in parallel ranges
  mesh        spate mount on every node, ready when its cache has everything
  mesh-lazy   spate mount, and an engine's loader reads through it from the start
  prefetched  all nodes fetch first (prefetch_s), then mount and load (the rest);
              at last each alone loads from the mount and from plain files,
              both in the page cache: load_vs_local of its waits for them
  traced      one node after the other starts alone and cold: it reads a quarter
              of the model at random places, and computes after each MiB for as
              long as that takes on the link; the first one's trace is there for
              the others: trace_vs_cold of their stalls
  traced-load the same with an engine's loader, which takes tensors as fast as
              the link brings them

A node is ready when it has every byte, verified. The bound is
max(M/O, M/d, N*M/(O+N*u)) for M bytes of model, N nodes, and the rates of origin
and nodes as the lone download reached them. origin_copies counts what left the
origin's link in TCP, per byte of model: HTTP headers and the tracker's answers
count, packet headers do not. CPU and memory are those of the agents or
downloads. With --runs the arms take turns and figures are medians.

The lab checks itself. A run is invalid when the CPUs were 80 % busy or more,
when the lone download reached less than 90 % of its link, when direct downloads
are further than 5 % from N*M/O, or when a fault that was asked for had no time
to happen. Faults meet only arms with agents.

It needs root. It makes no network but its own namespaces, and leaves nothing
behind, whatever ends it. Needed in TMPDIR: the model's size, twice for each node.
With --out it writes lab.json, raw samples too, and lab.svg.

Exit codes: 0 done; 1 failed, or an arm is invalid; 2 wrong usage; 4 the timeout
passed, with part of the work done.`,
		Example: `  spate lab
  spate lab --nodes 16 --link 50mbit --arm mesh --runs 3 --out results
  spate lab --size 1.45GB --files 37 --link 250mbit --arm mesh-lazy
  spate lab --arm mesh --churn 3 --liars 4 --readers 1`,
		Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts.Size, opts.Link, opts.OriginLink = int64(size), int64(link), int64(originLink)
			if !cmd.Flags().Changed("origin-link") {
				opts.OriginLink = opts.Link
			}
			if err := opts.Check(); err != nil {
				return ui.WithHint(usage(err), "see `spate lab --help`")
			}
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), timeout,
				ui.WithCode(fmt.Errorf("the lab was not done after %v", timeout), ui.ExitPartly))
			defer cancel()
			r, err := storm.Run(ctx, opts, a.out)
			if r == nil {
				return err
			}
			if dir != "" {
				err = errors.Join(err, writeLab(dir, r))
			}
			err = errors.Join(err, a.out.Result(r, r.Print))
			if err == nil && !r.Valid() {
				err = errors.New("the result is invalid, see above")
			}
			return err
		},
	}
	f := cmd.Flags()
	f.IntVar(&opts.Nodes, "nodes", 8, "how many nodes start")
	f.Var(&size, "size", "`size` of the model")
	f.IntVar(&opts.Files, "files", 0, "how many files hold the weights; 0 is one for each 4MiB, 8 at most")
	f.Var(&link, "link", "`rate` of each node's link a second, up and down, as in 100mbit, 12.5MB or 50MiB")
	f.Var(&originLink, "origin-link", "`rate` of the registry's link a second (default that of --link)")
	f.DurationVar(&opts.Stagger, "stagger", 0, "node i starts i times this later")
	f.IntVar(&opts.SlowNodes, "slow-nodes", 0, "how many of the nodes have a fifth of the link")
	f.IntVar(&opts.Churn, "churn", 0, "how many nodes are killed with SIGKILL on the way, and started again")
	f.Float64Var(&opts.KillOriginAt, "kill-origin-at", 0, "kill the registry when that many `copies` have left it, at the latest when a node is ready; 0 is never")
	f.IntVar(&opts.Liars, "liars", 0, "how many more nodes lie to their peers")
	f.IntVar(&opts.Readers, "readers", 0, "how many more nodes read 1MiB at random places, and fetch nothing else")
	f.StringSliceVar(&opts.Arms, "arm", []string{"direct", "mesh"}, "what to measure, of "+strings.Join(storm.ArmNames(), ", "))
	f.IntVar(&opts.Runs, "runs", 1, "how many times each arm runs")
	f.Uint64Var(&opts.Seed, "seed", 1, "of the model and of what happens at random")
	f.DurationVar(&timeout, "timeout", timeout, "how long all of it may take")
	f.StringVar(&dir, "out", "", "`directory` to write lab.json and lab.svg into; it is made when missing")
	return cmd
}

// writeLab writes the result's files into dir.
func writeLab(dir string, r *storm.Result) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "lab.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	chart, err := os.Create(filepath.Join(dir, "lab.svg"))
	if err != nil {
		return err
	}
	return errors.Join(r.Chart(chart), chart.Close())
}

// sweepCommand takes away a directory when the process that started it ends.
func (a *app) sweepCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "sweep DIR",
		Short:  "Remove a directory and what is mounted below it once standard input ends",
		Hidden: true,
		Args:   a.args(cobra.ExactArgs(1)),
		RunE:   func(cmd *cobra.Command, args []string) error { return lab.Sweep(args[0], os.Stdin) },
	}
}
