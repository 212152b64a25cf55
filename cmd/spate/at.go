package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/pflag"

	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/prefetch/orders"
)

// atFlags say in which other clusters nodes are to fetch.
type atFlags struct{ registries []string }

func (f *atFlags) register(set *pflag.FlagSet) {
	set.StringSliceVar(&f.registries, "at", nil, "have the nodes of another cluster fetch, from its registry at `URL`, which gets what it lacks first; repeatable")
}

// A cluster is another cluster's registry, and what is ordered there.
type cluster struct {
	At    string      `json:"at"`
	Moved []moved     `json:"moved"`
	Order orders.View `json:"order"`

	host   string
	opts   remote.Options
	client *orders.Client
}

// clusters reads the flags. The caller calls done.
func (f *atFlags) clusters(opts remote.Options) (list []*cluster, done func(), err error) {
	transport := remote.NewTransport()
	opts.Transport = transport
	for _, address := range f.registries {
		c, err := newCluster(address, opts)
		if err != nil {
			transport.CloseIdleConnections()
			return nil, nil, ui.WithHint(usage(fmt.Errorf("read an --at: %w", err)), "write it as https://HOST:PORT, as agents there have it as --registry")
		}
		list = append(list, c)
	}
	return list, transport.CloseIdleConnections, nil
}

func newCluster(address string, opts remote.Options) (*cluster, error) {
	u, opts, err := parseRegistry(address, opts)
	if err != nil {
		return nil, err
	}
	return &cluster{At: u.Scheme + "://" + u.Host, host: u.Host, opts: opts}, nil
}

// prefetchAt brings what references name to the registry of each cluster, places
// an order there and waits for them all. A registry that follows the one which
// has them says that it has them too, and takes the bytes itself when its agents ask.
func (a *app) prefetchAt(ctx context.Context, list []*cluster, references []string, req orders.Request, wait bool, opts remote.Options) error {
	transport := remote.NewTransport()
	defer transport.CloseIdleConnections()
	opts.Transport = transport
	for _, c := range list {
		board := boardFlags{registry: c.At}
		client, done := board.client()
		defer done()
		c.client = client
		there, err := a.bring(ctx, c, references, req.References, opts)
		if err != nil {
			return err
		}
		order := req
		order.References = there
		if c.Order, err = client.Place(ctx, order); err != nil {
			return fmt.Errorf("place an order at %s: %w", c.At, placeError(err))
		}
	}
	if !wait {
		return a.out.Result(list, printClusters(list, printPlacedAt))
	}
	var errs []error
	for _, c := range list {
		v, err := a.awaitOrder(ctx, c.client, c.Order)
		if ctx.Err() != nil {
			fmt.Fprintln(a.out.Messages(), "the orders go on; end them with `spate prefetch cancel`")
			return ctx.Err()
		}
		c.Order = v
		if err == nil {
			err = outcome(v)
		}
		if err != nil {
			errs = append(errs, ui.WithHint(fmt.Errorf("at %s: %w", c.At, err), ui.Hint(err)))
		}
	}
	return errors.Join(append([]error{a.out.Result(list, printClusters(list, printOrderAt))}, errs...)...)
}

// bring copies to c's registry what it lacks, and returns references to it there, by
// digest. pinned is references by digest.
func (a *app) bring(ctx context.Context, c *cluster, references, pinned []string, opts remote.Options) (there []string, err error) {
	m := a.newMover("copy", "copied")
	defer m.close()
	for i, reference := range references {
		src, err := remote.Open(reference, opts)
		if err != nil {
			return nil, err
		}
		from, err := remote.Open(pinned[i], opts)
		if err != nil {
			return nil, err
		}
		dst, err := remote.Open(c.host+"/"+from.Reference.Repository+"@"+from.Reference.Reference, c.opts)
		if err != nil {
			return nil, err
		}
		if err := m.move(ctx, from, from.Reference.Reference, dst, tagOf(src), dst.Reference.String()); err != nil {
			return nil, err
		}
		there = append(there, dst.Reference.String())
	}
	c.Moved = m.done.Artifacts
	return there, nil
}

func printClusters(list []*cluster, order func(*cluster, io.Writer) error) func(io.Writer) error {
	return func(w io.Writer) error {
		for _, c := range list {
			var bytes int64
			for _, a := range c.Moved {
				bytes += a.Bytes
			}
			fmt.Fprintf(w, "at %s, which got %s: ", c.At, ui.Size(bytes))
			if err := order(c, w); err != nil {
				return err
			}
		}
		return nil
	}
}

func printPlacedAt(c *cluster, w io.Writer) error { return printPlaced(c.Order, c.At)(w) }
func printOrderAt(c *cluster, w io.Writer) error  { return printOrder(c.Order)(w) }
