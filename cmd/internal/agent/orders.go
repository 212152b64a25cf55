package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/spate-project/spate/prefetch/orders"
)

const (
	// reportEvery is how often a board is told how far this node is with what it
	// has not done yet, reportIdle how long it may hold a report otherwise.
	reportEvery = 500 * time.Millisecond
	reportIdle  = 10 * time.Second

	// boardRetry is how long a board that did not answer is left alone, and as
	// much again at most; boardNone how long a registry without one.
	boardRetry = time.Second
	boardNone  = time.Minute
)

// A worker works on the orders of one registry's board. It is for one goroutine.
type worker struct {
	agent *Agent
	board *orders.Client
	node  string
	under map[string]*fetching // by order
	group sync.WaitGroup       // of them
	stock stocktaking
}

// nodeName returns the name that the node goes by: that in the mesh, else the machine's.
func (a *Agent) nodeName() (string, error) {
	if a.opts.Identity != nil {
		return a.opts.Identity.Name(), nil
	}
	return os.Hostname()
}

// work takes orders from the boards of all registries until ctx ends.
func (a *Agent) work(ctx context.Context) error {
	node, err := a.nodeName()
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, base := range a.opts.Trackers {
		w := &worker{
			agent: a, node: node, under: make(map[string]*fetching),
			board: orders.NewClient(&http.Client{Transport: a.transport}, base),
		}
		g.Go(func() error { return w.run(ctx) })
	}
	return g.Wait()
}

// run reports to the board and does as it says. What is under way goes on while
// the board is away. It returns the context's error.
func (w *worker) run(ctx context.Context) error {
	defer w.group.Wait()
	answered := true
	for {
		work, err := w.board.Report(ctx, w.report())
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			w.take(ctx, work)
			answered = true
			continue
		}
		w.stock = stocktaking{} // the board may be another one
		wait := boardRetry + rand.N(boardRetry)
		if errors.Is(err, orders.ErrNoBoard) {
			wait = boardNone + rand.N(boardNone)
		}
		if answered {
			w.agent.log.Info("no prefetch orders are taken for now", "err", err)
		}
		answered = false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

func (w *worker) report() orders.Report {
	r := orders.Report{
		Node: w.node, Labels: w.agent.opts.Labels, Zone: w.agent.opts.Zone, Wait: reportIdle.Seconds(),
		Stock: w.stock.news(w.agent.store),
	}
	for _, p := range w.under {
		told := p.told()
		if told.State != orders.Ready && told.State != orders.Denied {
			r.Wait = reportEvery.Seconds()
		}
		r.Orders = append(r.Orders, told)
	}
	return r
}

// take begins what is new in work and lets go of what is not in it any more.
func (w *worker) take(ctx context.Context, work orders.Work) {
	listed := make(map[string]bool)
	for _, t := range work.Tasks {
		listed[t.Order] = true
		p := w.under[t.Order]
		if p != nil && p.task.Run == t.Run {
			continue
		}
		if p != nil {
			p.cancel()
		}
		p = newFetching(w.agent, t)
		w.under[t.Order] = p
		mine, cancel := context.WithCancel(ctx)
		p.cancel = cancel
		w.group.Go(func() { p.run(mine) })
	}
	for id, p := range w.under {
		if !listed[id] {
			p.cancel()
			delete(w.under, id)
		}
	}
}
