package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/prefetch/orders"
)

const (
	// rateWindow is over how long the rate of a fetching is taken.
	rateWindow = 5 * time.Second

	// silence is how long no piece comes before a fetching is said to fail.
	silence = 15 * time.Second

	// A fetching that failed begins again after againFirst, then after twice as
	// long each time up to againMost.
	againFirst = time.Second
	againMost  = 30 * time.Second
)

// An opened is an artifact that is open for an order.
type opened struct {
	artifact  *artifact
	admission *Admission
}

// A fetching is this node's part in one run of an order.
type fetching struct {
	agent  *Agent
	task   orders.Task
	cancel context.CancelFunc

	mu   sync.Mutex
	last orders.Progress
}

func newFetching(a *Agent, t orders.Task) *fetching {
	return &fetching{agent: a, task: t, last: orders.Progress{
		Order: t.Order, Run: t.Run, State: orders.Waiting, ETA: -1, Bound: -1,
	}}
}

// told returns how far the fetching is.
func (p *fetching) told() orders.Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

// tell changes what told returns.
func (p *fetching) tell(f func(*orders.Progress)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.last)
}

// run opens the order's references, has all of them fetched and holds them until
// ctx ends. What fails is tried again; what the policy refuses is not.
func (p *fetching) run(ctx context.Context) {
	wait := againFirst
	for p.awaitHours(ctx) {
		err := p.try(ctx)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errHours) {
			wait = againFirst
			continue
		}
		denied := errors.Is(err, piece.ErrNotTrusted)
		p.agent.log.Warn("a prefetch order is not carried out", "order", p.task.Order, "refused", denied, "err", err)
		p.tell(func(told *orders.Progress) {
			told.State, told.Error, told.Rate = orders.Failing, err.Error(), 0
			if denied {
				told.State = orders.Denied
			}
		})
		if denied {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, againMost)
	}
}

// errHours says that the order's hours are over.
var errHours = errors.New("the order's hours are over")

// try returns why the order could not be carried out, or the context's error.
func (p *fetching) try(ctx context.Context) error {
	var list []opened
	n := need{all: !p.planned(), plan: p.planned()}
	defer func() {
		for _, o := range list {
			p.agent.release(o.artifact, n)
		}
		p.agent.memory.giveBack(p.key())
	}()
	for _, reference := range p.task.References {
		admission, err := p.agent.admit(ctx, reference, online)
		if err != nil {
			return err
		}
		art, err := p.agent.use(admission, n)
		if err != nil {
			return err
		}
		list = append(list, opened{art, admission})
	}
	if n.plan {
		return p.fetchPlanned(ctx, list)
	}
	return p.watch(ctx, list, nil)
}

// awaitHours returns when it is time to fetch for the order, or false when ctx ends first.
func (p *fetching) awaitHours(ctx context.Context) bool {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for !p.task.Between.Has(time.Now()) {
		p.tell(func(told *orders.Progress) {
			told.State, told.Error, told.Rate = orders.Waiting, fmt.Sprintf("it fetches for this order between %s", p.task.Between), 0
		})
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
	}
	return ctx.Err() == nil
}

// watch tells how far artifacts are, of a target if there is one, until ctx ends,
// the order's hours are over before all is here, or one of them cannot be read.
func (p *fetching) watch(ctx context.Context, artifacts []opened, of *target) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	populated := !p.task.IntoMemory
	quiet := silence
	if p.task.Rate > 0 {
		quiet += time.Duration(2 * float64(longestSpan) / float64(p.task.Rate) * float64(time.Second))
	}
	var seen []holding // of the last rateWindow and one before, oldest first
	moved := time.Now()
	for {
		now, err := p.agent.holding(artifacts)
		if err != nil {
			return err
		}
		if of != nil {
			now.have, now.total = of.have.Load(), max(0, of.total.Load())
		}
		here := now.have == now.total && (of == nil || of.total.Load() >= 0)
		if !here && !p.task.Between.Has(now.at) {
			return errHours
		}
		if len(seen) > 0 && now.have != seen[len(seen)-1].have {
			moved = now.at
		}
		for len(seen) > 1 && now.at.Sub(seen[1].at) >= rateWindow {
			seen = seen[1:]
		}
		seen = append(seen, now)
		rate := ratesOf(now.at.Sub(seen[0].at), now.came-seen[0].came, 0).Down
		left := forecast(now.total-now.have, rate, p.agent.linkRate())
		p.tell(func(told *orders.Progress) {
			told.State, told.Error = orders.Fetching, ""
			told.Have, told.Total, told.Rate, told.ETA, told.Bound = now.have, now.total, rate, left.ETA, left.Bound
			switch {
			case here && populated:
				told.State, told.Rate = orders.Ready, 0
			case now.at.Sub(moved) > quiet:
				told.State, told.Error = orders.Failing, fmt.Sprintf("no piece has come for %v; the log of the node's agent may say why", quiet)
			}
		})
		if here && !populated {
			if err := p.populate(ctx, artifacts, now.total); err != nil {
				return err
			}
			populated = true
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// key names the fetching among those of all registries.
func (p *fetching) key() string { return fmt.Sprintf("%s/%d", p.task.Order, p.task.Run) }

// populate reads what was fetched into the page cache, as much as there is room for.
func (p *fetching) populate(ctx context.Context, artifacts []opened, total int64) error {
	room, err := p.agent.memory.take(p.key(), total)
	if err != nil {
		return err
	}
	if room < total {
		p.agent.log.Warn("not all of a prefetch order fits into memory", "order", p.task.Order, "bytes", total, "room", room)
	}
	p.tell(func(told *orders.Progress) { told.Memory = 0 })
	counted := make(map[piece.Digest]bool)
	for _, o := range artifacts {
		for _, f := range o.artifact.files {
			if d := f.object.Tree().Object().Digest; !counted[d] {
				counted[d] = true
				n, err := f.object.Populate(ctx, room)
				if err != nil {
					return err
				}
				room -= n
				p.tell(func(told *orders.Progress) { told.Memory += n })
			}
		}
	}
	return nil
}

// A holding is what is here of some artifacts, in bytes.
type holding struct {
	at    time.Time
	have  int64 // verified
	total int64
	came  int64 // from the registry and from peers, since the objects joined the mesh
}

// holding counts each object once. The error is that of an object which cannot be read.
func (a *Agent) holding(artifacts []opened) (holding, error) {
	h, counted := holding{at: time.Now()}, make(map[piece.Digest]bool)
	for _, x := range artifacts {
		art := x.artifact
		if err := art.err(); err != nil {
			return h, fmt.Errorf("fetch %s: %w", art.reference, err)
		}
		for _, f := range art.files {
			o := f.object.Tree().Object()
			if counted[o.Digest] {
				continue
			}
			counted[o.Digest] = true
			h.have += presentBytes(f.object)
			h.total += o.Size
			if ms, ok := a.mesh.Stats(o.Digest); ok {
				h.came += ms.OriginBytes + ms.Received
			}
		}
	}
	return h, nil
}
