// Package storm is the experiment of many nodes that start in the same second:
// real registries and agents in network namespaces of one machine, behind
// shaped links, measured against what physics allows.
package storm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spate-project/spate/cmd/internal/lab"
	"github.com/spate-project/spate/cmd/internal/ui"
)

// Options of an experiment. Check says whether they make sense.
type Options struct {
	Nodes      int           `json:"nodes"`
	Size       int64         `json:"size"`                    // of the model, in bytes; what is made is a little off
	Files      int           `json:"files,omitempty"`         // with weights; 0: as the size suggests
	Link       int64         `json:"link_bytes_per_s"`        // of each node, up and down, Ethernet headers included
	OriginLink int64         `json:"origin_link_bytes_per_s"` // of the registry
	Stagger    time.Duration `json:"stagger_ns,omitempty"`    // node i starts i times this later

	SlowNodes    int     `json:"slow_nodes,omitempty"`     // of Nodes, with a fifth of the link
	Churn        int     `json:"churn,omitempty"`          // nodes that are killed on the way and started again
	KillOriginAt float64 `json:"kill_origin_at,omitempty"` // copies that have left when the registry is killed; 0: never
	Liars        int     `json:"liars,omitempty"`          // nodes on top that lie to their peers
	Readers      int     `json:"readers,omitempty"`        // nodes on top that read at random and fetch nothing else

	Arms []string `json:"arms"` // names; lone comes first in any case
	Runs int      `json:"runs"` // of each arm
	Seed uint64   `json:"seed"` // of the model and of what happens at random
}

// slower is how much less than the others' link a slow node has.
const slower = 5

// MaxNodes is how many hosts of all kinds an experiment may have.
const MaxNodes = 128

// Check returns what is wrong with o, nil when it can be run.
func (o Options) Check() error {
	var errs []error
	must := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	must(o.Nodes >= 1, "%d nodes: at least one is needed", o.Nodes)
	must(o.Liars >= 0 && o.Readers >= 0, "a number of nodes cannot be negative")
	must(o.Nodes+o.Liars+o.Readers <= MaxNodes, "%d nodes, liars and readers: at most %d are possible",
		o.Nodes+o.Liars+o.Readers, MaxNodes)
	must(o.Link > 0 && o.OriginLink > 0, "without limits on the links there is no bound to compare with")
	must(o.Stagger >= 0, "a stagger of %v: it cannot be negative", o.Stagger)
	must(o.SlowNodes >= 0 && (o.SlowNodes < o.Nodes || o.SlowNodes == 0), "%d slow nodes of %d: one must have the whole link", o.SlowNodes, o.Nodes)
	must(o.Churn >= 0 && o.Churn <= o.Nodes, "%d nodes of %d cannot be killed", o.Churn, o.Nodes)
	must(o.KillOriginAt >= 0, "the origin cannot be killed after %v copies", o.KillOriginAt)
	must(o.Runs >= 1, "%d runs: at least one is needed", o.Runs)
	must(len(o.Arms) > 0, "no arm is named")
	for _, name := range o.Arms {
		must(slices.ContainsFunc(arms, func(a arm) bool { return a.name == name }), "there is no arm %q", name)
		must(!armNamed(name).turns || o.Nodes >= 2, "arm %s compares nodes: at least two are needed", name)
	}
	return errors.Join(errs...)
}

// Run does the experiment and tells of each step on out's messages. It leaves
// no process, namespace, mount or file behind, whatever ends it. With an error
// in the middle it also returns what was measured until then, if anything was.
func Run(ctx context.Context, o Options, out *ui.Output) (_ *Result, err error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	scratch, err := lab.NewScratch("spate-lab-", "sweep")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the lab: %w", err)
	}
	defer func() { err = errors.Join(err, scratch.Close()) }()
	logs := filepath.Join(scratch.Dir, "logs")
	if err := os.Mkdir(logs, 0o755); err != nil {
		return nil, err
	}
	w := &world{Options: o, dir: scratch.Dir, herd: lab.NewHerd(ctx, logs), out: out, began: time.Now()}
	defer func() { err = errors.Join(err, w.herd.Close()) }() // before its directory goes
	if err := w.prepare(ctx); err != nil {
		return nil, first(ctx, err)
	}
	r := &Result{Options: o, ModelBytes: w.size}
	if err := w.experiment(ctx, r); err != nil {
		err = first(ctx, err)
		if len(r.Arms) == 0 {
			return nil, err
		}
		r.summarize()
		return r, err
	}
	r.summarize()
	return r, nil
}

// first returns why ctx ended rather than what that led to.
func first(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// experiment runs every arm and adds what is measured to r. Arms take turns,
// so that whatever else the machine does meets them all.
func (w *world) experiment(ctx context.Context, r *Result) error {
	run, err := w.run(ctx, lone, w.nodes[:1], plan{})
	if err != nil {
		return err
	}
	rate := float64(w.size) / run.Nodes[0].transfer
	r.setBounds(rate)
	w.say("a lone download receives %s/s; the bound for %d nodes is %.1f s, %.1f s without peers",
		ui.Size(int64(rate)), w.Nodes, r.Bound, r.DirectBound)
	r.add(lone.name, run)
	for i := range w.Runs {
		for _, a := range arms {
			if a.name == lone.name || !slices.Contains(w.Arms, a.name) {
				continue
			}
			run, err := w.run(ctx, a, w.nodes, plan{bound: r.Bound, rate: rate, seed: w.Seed + uint64(i)})
			if err != nil {
				return fmt.Errorf("arm %s, run %d of %d: %w", a.name, i+1, w.Runs, err)
			}
			run = r.add(a.name, run)
			if a.turns {
				w.say("%s, run %d of %d: with a trace a start stalled %.2f x as long as without", a.name, i+1, w.Runs, run.TraceVsCold)
				continue
			}
			w.say("%s, run %d of %d: the last node was ready after %.1f s, the origin sent %.2f copies",
				a.name, i+1, w.Runs, run.LastReady, run.OriginCopies)
		}
	}
	return nil
}
