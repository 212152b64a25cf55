package agent

import (
	"context"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/spate-project/spate/prefetch"
	"github.com/spate-project/spate/prefetch/orders"
)

// A target is what an order's plan names of the pieces of its artifacts, in bytes.
type target struct {
	have  atomic.Int64 // verified
	total atomic.Int64 // -1 until it is known
}

// planned reports whether the order wants something else than all bytes as fast as they come.
func (p *fetching) planned() bool { return p.task.Plan != (orders.Plan{}) || p.task.Rate > 0 }

// fetchPlanned makes the plan of what was opened, has it fetched and holds it
// until ctx ends.
func (p *fetching) fetchPlanned(ctx context.Context, list []opened) error {
	var t target
	t.total.Store(-1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.watch(ctx, list, &t) })
	g.Go(func() error {
		if err := p.feed(ctx, list, &t); err != nil {
			return err
		}
		p.agent.mu.Lock()
		defer p.agent.mu.Unlock()
		for _, o := range list {
			o.artifact.planned = true
		}
		return nil
	})
	return g.Wait()
}

// feed makes the plan and returns when all of it is here.
func (p *fetching) feed(ctx context.Context, list []opened, t *target) error {
	var plan prefetch.Plan
	var artifacts []*artifact
	for _, o := range list {
		part, err := p.plan(ctx, o)
		if err != nil {
			return err
		}
		plan = append(plan, part...)
		artifacts = append(artifacts, o.artifact)
	}
	objects, known := objectsOf(artifacts)
	total, longest := int64(0), int64(longestSpan)
	for _, o := range known {
		longest = max(longest, o.PieceLength)
	}
	for d, i := range plan.Pieces(known...) {
		_, n := objects[d].Tree().Object().Span(i)
		total += n
	}
	t.total.Store(total)
	limit := rate.NewLimiter(rate.Inf, 0)
	if p.task.Rate > 0 {
		limit = rate.NewLimiter(rate.Limit(p.task.Rate), int(longest))
	}
	f := feed{ask: p.agent.mesh.Plan, here: func(bytes int64, _ bool) { t.have.Add(bytes) }, rate: limit}
	return f.run(ctx, plan, artifacts...)
}

// plan returns what the order wants of one artifact, in the order in which it does.
func (p *fetching) plan(ctx context.Context, o opened) (prefetch.Plan, error) {
	if p.task.Plan.Order == orders.OrderTrace {
		trace, err := p.agent.findTrace(ctx, o.admission)
		switch {
		case err != nil:
			return nil, fmt.Errorf("look for a trace of %s: %w", o.artifact.reference, err)
		case trace == nil:
			return nil, fmt.Errorf("%s has no trace that the policy trusts: record a start with `spate trace`, or prefetch in another order", o.artifact.reference)
		}
		return trace.Reads, nil
	}
	files := make([]prefetch.File, 0, len(o.artifact.files))
	for _, f := range o.artifact.files {
		files = append(files, prefetch.File{Path: f.Path, Object: f.object.Tree().Object(), Data: readerAt(func(b []byte, off int64) (int, error) {
			return f.object.ReadContext(ctx, b, off)
		})})
	}
	if p.task.Plan.Order == orders.OrderModel {
		return prefetch.Model(files, p.task.Plan.Of())
	}
	return prefetch.Full(files), nil
}
