package main

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/prefetch"
	"github.com/spate-project/spate/prefetch/orders"
)

// namedMost is how many nodes an error names.
const namedMost = 16

// An orderWatch draws a bar for each node of an order and one for all of them, and
// says once what goes wrong on a node.
type orderWatch struct {
	log      *slog.Logger
	progress *ui.Progress
	tasks    *tasks
	said     map[string]string // by node
}

func newOrderWatch(log *slog.Logger, p *ui.Progress) *orderWatch {
	return &orderWatch{log: log, progress: p, tasks: newTasks(p), said: make(map[string]string)}
}

func (w *orderWatch) show(v orders.View) {
	w.progress.Bound(atLeast(sum(v.Nodes).Bound))
	for _, n := range v.Nodes {
		if n.Total > 0 {
			w.tasks.set(n.Node, n.Have, n.Total)
			w.tasks.bound(n.Node, atLeast(n.Bound))
		}
		if n.State == orders.Ready && n.Connected {
			w.tasks.done(n.Node)
		}
		if v.State != orders.Active {
			continue // the result says it
		}
		trouble := standing(n)
		switch trouble {
		case gone, string(orders.Failing), string(orders.Denied):
		default:
			trouble = ""
		}
		if trouble != "" && trouble != w.said[n.Node] {
			w.log.Warn("a node does not carry out the order now", "node", n.Node, "state", trouble, "err", n.Error)
		}
		w.said[n.Node] = trouble
	}
}

// atLeast makes a duration of a bound; one that is not known is 0.
func atLeast(seconds float64) time.Duration {
	return time.Duration(max(seconds, 0) * float64(time.Second))
}

// sum returns the progress of all nodes together; the last of them ends it.
func sum(nodes []orders.Node) (all orders.Progress) {
	for _, n := range nodes {
		all.Have += n.Have
		all.Total += n.Total
		all.Rate += n.Rate
		all.ETA, all.Bound = longest(all.ETA, n.ETA), longest(all.Bound, n.Bound)
	}
	return all
}

// gone is the standing of a node that is not connected any more.
const gone = "gone"

func standing(n orders.Node) string {
	if !n.Connected {
		return gone
	}
	return string(n.State)
}

// ready words how many nodes hold an order.
func ready(v orders.View) string {
	return fmt.Sprintf("%d of %d nodes are ready", v.Holding, v.Need)
}

// outcome returns what is wrong with how an order ended.
func outcome(v orders.View) error {
	switch v.State {
	case orders.Late:
		return ui.WithHint(ui.WithCode(fmt.Errorf("prefetch: the deadline passed when %s; missing: %s", ready(v), missing(v)), ui.ExitPartly),
			"the same command goes on from what is there")
	case orders.Refused:
		for _, n := range v.Nodes {
			if n.State == orders.Denied {
				return ui.WithHint(refusal{fmt.Sprintf("prefetch: node %s refuses: %s", n.Node, n.Error)},
					"sign it with a key that the agents have as --key, and index it; `spate verify` shows what is missing")
			}
		}
		return refusal{"prefetch: nodes refuse, as they have told before the registry started"}
	case orders.Cancelled:
		return fmt.Errorf("prefetch: order %s was cancelled when %s", v.ID, ready(v))
	}
	return nil
}

// A refusal is what a node's policy says.
type refusal struct{ text string }

func (r refusal) Error() string { return r.text }
func (r refusal) Unwrap() error { return piece.ErrNotTrusted }

// missing says what each node has reached that does not hold an order.
func missing(v orders.View) string {
	var parts []string
	more := 0
	for _, n := range v.Nodes {
		switch {
		case n.Connected && n.State == orders.Ready:
		case len(parts) == namedMost:
			more++
		default:
			parts = append(parts, fmt.Sprintf("%s (%s, %s here)", n.Node, standing(n), reached(n)))
		}
	}
	if unseen := v.Need - len(v.Nodes); unseen > 0 {
		parts = append(parts, fmt.Sprintf("%d that never came", unseen))
	}
	if more > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(parts, ", ")
}

// reached is how much of an order a node has.
func reached(n orders.Node) string {
	if n.Total == 0 && n.State != orders.Ready {
		return "nothing"
	}
	return percent(n.Have, n.Total)
}

func printPlaced(v orders.View, registry string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s\nwatch it with `spate prefetch status %s --registry %s`\n", headline(v), v.ID, registry)
		return err
	}
}

func headline(v orders.View) string {
	of := "all nodes"
	switch {
	case v.Pool != "":
		of = "pool " + v.Pool
	case len(v.NodeNames) > 0:
		of = "nodes " + strings.Join(v.NodeNames, ", ")
	}
	return fmt.Sprintf("order %s for %s: %s, %s", v.ID, of, v.State, ready(v))
}

// printOrder shows an order, a line for each node and one for all of them.
func printOrder(v orders.View) func(io.Writer) error {
	return func(w io.Writer) error {
		fmt.Fprintln(w, headline(v))
		for _, ref := range v.References {
			fmt.Fprintf(w, "  %s\n", ref)
		}
		if terms := terms(v.Request); terms != "" {
			fmt.Fprintf(w, "  %s\n", terms)
		}
		if len(v.Nodes) == 0 {
			return nil
		}
		if err := printNodes(v, w); err != nil || !v.IntoMemory {
			return err
		}
		t := ui.NewTable("NODE", "IN MEMORY", "OF")
		for _, n := range v.Nodes {
			t.Row(n.Node, percent(n.Memory, n.Total), ui.Size(n.Total))
		}
		return t.Print(w)
	}
}

// terms words what an order asks for beside its references; empty for all bytes at once.
func terms(r orders.Request) string {
	var parts []string
	if r.Plan.Order != "" {
		parts = append(parts, "order "+r.Plan.Order)
	}
	if rank := r.Plan.Of(); rank != (prefetch.Rank{}) {
		parts = append(parts, fmt.Sprintf("rank %d of TP %d x PP %d", rank.Index, max(rank.TP, 1), max(rank.PP, 1)))
	}
	if r.Rate > 0 {
		rate := ui.Rate(r.Rate)
		parts = append(parts, "rate "+rate.String())
	}
	if r.Between != "" {
		parts = append(parts, "between "+string(r.Between))
	}
	return strings.Join(parts, ", ")
}

func printNodes(v orders.View, w io.Writer) error {
	t := ui.NewTable("NODE", "STATE", "HERE", "OF", "RATE", "LEFT", "AT BEST", "WHY")
	for _, n := range v.Nodes {
		t.Row(n.Node, standing(n), reached(n), ui.Size(n.Total), speed(n.Rate), left(n.ETA), left(n.Bound), cmp.Or(n.Error, "-"))
	}
	all := sum(v.Nodes)
	t.Row("all", v.State, reached(orders.Node{Progress: all}), ui.Size(all.Total), speed(all.Rate), left(all.ETA), left(all.Bound), "-")
	return t.Print(w)
}

// longest returns the longer of two forecasts, of which any may be unknown.
func longest(x, y float64) float64 {
	if x < 0 || y < 0 {
		return -1
	}
	return max(x, y)
}

func printOrders(list []orders.View) func(io.Writer) error {
	return func(w io.Writer) error {
		t := ui.NewTable("ORDER", "STATE", "READY", "POOL", "PLACED", "ENDS", "REFERENCES")
		for _, v := range list {
			t.Row(v.ID, v.State, fmt.Sprintf("%d of %d", v.Holding, v.Need), cmp.Or(v.Pool, "-"),
				v.Created.Local().Format(time.DateTime), v.Ends.Local().Format(time.DateTime), strings.Join(v.References, ", "))
		}
		return t.Print(w)
	}
}
