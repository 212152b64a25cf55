package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/prefetch/orders"
)

const (
	// orderInterval is how often a prefetch that waits looks at its order.
	orderInterval = 500 * time.Millisecond

	// orderGrace is how long after the deadline a registry is asked that does not answer.
	orderGrace = 15 * time.Second
)

// boardFlags say which registry's orders a command is about.
type boardFlags struct {
	registry string
	remotes  remoteFlags
}

func (b *boardFlags) register(f *pflag.FlagSet, registry, usage string) {
	f.StringVar(&b.registry, "registry", registry, usage)
}

// client returns a client of the board. The caller calls done.
func (b *boardFlags) client() (_ *orders.Client, done func()) {
	t := remote.NewTransport()
	return orders.NewClient(&http.Client{Transport: t}, b.registry), t.CloseIdleConnections
}

// shown returns the registry's address without a password.
func (b *boardFlags) shown() string {
	u, err := url.Parse(b.registry)
	if err != nil {
		return "URL"
	}
	return u.Redacted()
}

func (a *app) prefetchCommand() *cobra.Command {
	var (
		board    boardFlags
		at       atFlags
		req      orders.Request
		plan     planFlags
		deadline time.Duration
		wait     bool
	)
	cmd := &cobra.Command{
		Use:   "prefetch REF...",
		Short: "Have the nodes of a pool fetch images and models, and wait until enough hold them",
		Long: `Have the nodes of a pool fetch images and models before anybody reads them, and
wait until as many as --ready says hold every byte, verified, at the same time.

The order is kept by the registry, whose agents take it: each checks the references
by its own policy and fetches them through the mesh. It survives restarts of the
registry, of agents and of this command: the same order placed again is the same
order, and what is there is not fetched again. Without --ready all the agents of
the pool that are connected now are to be ready. An agent is in a pool by its
--label pool=NAME; an order without --pool is for all of them.

When the deadline passes the command ends with 4, and says what each node that is
not ready has reached and which are gone. Where policies of nodes refuse a reference, so that
too few are left, it ends with 3. When enough are ready it ends with 0, and the
others go on until the deadline, or for a day without one. Interrupted, it leaves
the order as it is.

With --into-memory a node that has every byte reads it into its page cache before
it is ready: as much as its memory, and the limits of the agent's cgroup (v2), leave
room for beside what is in use otherwise, less a tenth. What did not fit the result says.

By default nodes fetch every byte. With --order model they fetch in the order in which
engines load a model, with --tp, --pp and --rank only what one rank of several needs,
and with --order trace only what the newest trusted trace (` + "`spate trace`" + `) names; ready
are then those that hold that. --rate limits what each of them fetches for the order,
and --between keeps it to some hours of each day, by the nodes' clocks.

With --at the nodes are those of another cluster, whose registry gets what it
lacks first: from its upstream if it follows one, else through this command, once,
with signatures and all other referrers. Deadlines count from there on.`,
		Example: `  spate prefetch 127.0.0.1:5000/qwen:v1 --pool gpu --ready 8 --deadline 60s
  spate prefetch 127.0.0.1:5000/qwen:v1 --pool gpu --at https://registry.other:5000
  spate prefetch 127.0.0.1:5000/qwen:v1 --nodes gpu-1 --tp 2 --rank 0
  spate prefetch 127.0.0.1:5000/qwen:v1 --pool gpu --rate 1gbit --between 22:00-06:00
  spate prefetch 127.0.0.1:5000/qwen:v1 --pool gpu --wait=false
  spate prefetch status 3f1c0a9be2d47785`,
		Args: a.args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if deadline < 0 || deadline > orders.MaxDeadline {
				return usage(fmt.Errorf("--deadline %v is outside 0..%v", deadline, orders.MaxDeadline))
			}
			req.Deadline = deadline.Seconds()
			ctx := cmd.Context()
			clusters, done, err := at.clusters(board.remotes.options())
			if err != nil {
				return err
			}
			defer done()
			if len(clusters) > 0 && board.registry != "" {
				return usage(errors.New("--registry has no meaning with --at, which says whose orders they are"))
			}
			if err := plan.into(&req, cmd.Flags()); err != nil {
				return usage(err)
			}
			if err := board.pin(ctx, args, &req); err != nil {
				return err
			}
			if err := req.Check(); err != nil {
				return usage(err)
			}
			if len(clusters) > 0 {
				return a.prefetchAt(ctx, clusters, args, req, wait, board.remotes.options())
			}
			c, done := board.client()
			defer done()
			v, err := c.Place(ctx, req)
			if err != nil {
				return placeError(err)
			}
			if !wait {
				return a.out.Result(v, printPlaced(v, board.shown()))
			}
			if v, err = a.awaitOrder(ctx, c, v); ctx.Err() != nil {
				fmt.Fprintf(a.out.Messages(), "order %s goes on; end it with `spate prefetch cancel %s --registry %s`\n", v.ID, v.ID, board.shown())
				return ctx.Err()
			} else if err != nil {
				return err
			}
			return errors.Join(a.out.Result(v, printOrder(v)), outcome(v))
		},
	}
	f := cmd.Flags()
	board.register(f, "", "base `URL` of the registry that keeps the order; that of the first REF when empty")
	board.remotes.register(f)
	at.register(f)
	f.StringVar(&req.Pool, "pool", "", "`name` of the pool: agents with --label pool=NAME; all agents when empty")
	f.StringSliceVar(&req.NodeNames, "nodes", nil, "`names` of nodes instead of a pool, as `spate placement` and the order's result show them")
	plan.register(f)
	f.IntVar(&req.Ready, "ready", 0, "how `many` nodes have to hold everything; 0 is all of --nodes, or of the pool that are connected now")
	f.DurationVar(&deadline, "deadline", 0, "how long it may take; 0 is as long as it takes, a day at most")
	f.BoolVar(&req.IntoMemory, "into-memory", false, "read it into the nodes' page caches too, as far as there is room")
	f.BoolVar(&wait, "wait", true, "wait; else print the order's id and end at once")
	cmd.AddCommand(a.orderStatusCommand(), a.orderCancelCommand(), a.orderListCommand())
	return cmd
}

// pin puts the references into req, by digest, and finds out the registry where none is given.
func (b *boardFlags) pin(ctx context.Context, references []string, req *orders.Request) error {
	opts := b.remotes.options()
	transport := remote.NewTransport()
	defer transport.CloseIdleConnections()
	opts.Transport = transport
	for _, reference := range references {
		repo, err := remote.Open(reference, opts)
		if err != nil {
			return usage(err)
		}
		if err := b.of(reference); err != nil {
			return err
		}
		desc, err := repo.Resolve(ctx, reference)
		if err != nil {
			return err
		}
		pinned := repo.Reference
		pinned.Reference = desc.Digest.String()
		req.References = append(req.References, pinned.String())
	}
	return nil
}

func placeError(err error) error {
	switch {
	case errors.Is(err, orders.ErrNoNodes):
		return ui.WithHint(err, "start agents with --label pool=NAME and this --registry, or say with --ready how many will come")
	case errors.Is(err, orders.ErrNoBoard):
		return ui.WithHint(err, "name a `spate registry` that the agents have too with --registry")
	}
	return err
}

// awaitOrder shows how far nodes are until the order has ended, and returns it then.
// A registry that does not answer is asked again until well after the deadline.
func (a *app) awaitOrder(ctx context.Context, c *orders.Client, v orders.View) (orders.View, error) {
	progress := ui.NewProgress(a.out, "prefetch")
	defer progress.Close()
	ticker := time.NewTicker(orderInterval)
	defer ticker.Stop()
	watch, away := newOrderWatch(a.logger(), progress), false
	for {
		watch.show(v)
		if v.State != orders.Active {
			return v, nil
		}
		select {
		case <-ctx.Done():
			return v, ctx.Err()
		case <-ticker.C:
		}
		next, err := c.View(ctx, v.ID)
		switch {
		case ctx.Err() != nil:
			return v, ctx.Err()
		case err == nil:
			v, away = next, false
		case errors.Is(err, orders.ErrUnknown) || errors.Is(err, orders.ErrNoBoard):
			return v, err
		case time.Since(v.Ends) > orderGrace:
			return v, ui.WithCode(fmt.Errorf("the deadline of order %s has passed, and the registry does not answer: %w", v.ID, err), ui.ExitPartly)
		default:
			if !away {
				a.logger().Warn("the registry does not answer and is asked again; nodes go on meanwhile", "err", err)
			}
			away = true
		}
	}
}

func (a *app) orderStatusCommand() *cobra.Command {
	return a.orderCommand("status", "Show an order and how far its nodes are", (*orders.Client).View)
}

func (a *app) orderCancelCommand() *cobra.Command {
	return a.orderCommand("cancel", "End an order: what nodes hold of it they keep, and fetch no more", (*orders.Client).Cancel)
}

// orderCommand is a command about one order.
func (a *app) orderCommand(name, short string, do func(*orders.Client, context.Context, string) (orders.View, error)) *cobra.Command {
	var board boardFlags
	cmd := &cobra.Command{
		Use:     name + " ID",
		Short:   short,
		Example: "  spate prefetch " + name + " 3f1c0a9be2d47785 --registry http://10.0.0.1:5000",
		Args:    a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, done := board.client()
			defer done()
			v, err := do(c, cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.out.Result(v, printOrder(v))
		},
	}
	board.register(cmd.Flags(), defaultBoard, "base `URL` of the registry that keeps the order")
	return cmd
}

// defaultBoard is where a registry listens that is told nothing else.
const defaultBoard = "http://127.0.0.1:5000"

func (a *app) orderListCommand() *cobra.Command {
	var board boardFlags
	cmd := &cobra.Command{
		Use:     "ls",
		Short:   "List the orders that a registry keeps: those that go on, and those that ended in the last day",
		Example: "  spate prefetch ls --registry http://10.0.0.1:5000",
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, done := board.client()
			defer done()
			list, err := c.List(cmd.Context())
			if err != nil {
				return err
			}
			return a.out.Result(list, printOrders(list))
		},
	}
	board.register(cmd.Flags(), defaultBoard, "base `URL` of the registry that keeps the orders")
	return cmd
}
