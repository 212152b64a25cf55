package orders

import (
	"context"
	"slices"
	"time"
)

// Report takes what a node tells and returns its work: at once when that differs
// from the orders in r, else when it does or r.Wait is over. A node is connected
// while a Report of it is held and a few seconds longer, and no more when ctx ends.
// A node's next Report ends the one before.
func (b *Board) Report(ctx context.Context, r Report) (Work, error) {
	if err := r.check(); err != nil {
		return Work{}, err
	}
	timer := time.NewTimer(time.Duration(r.Wait * float64(time.Second)))
	defer timer.Stop()
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.nodes[r.Node]
	if n == nil {
		if len(b.nodes) == maxNodes && !b.dropNode() {
			return Work{}, errBusy
		}
		n = &node{}
		b.nodes[r.Node] = n
	}
	if n.poll != nil {
		close(n.poll)
	}
	poll := make(chan struct{})
	n.labels, n.zone, n.poll = r.Labels, r.Zone, poll
	if r.Stock != nil {
		b.restock(n, r.Stock)
	}
	defer func() {
		if n.poll != poll {
			return
		}
		n.poll, n.seen = nil, b.opts.Now()
		if ctx.Err() != nil {
			n.seen = time.Time{}
		}
	}()
	if err := b.record(r); err != nil {
		return Work{}, err
	}
	for over := false; ; {
		if b.ending {
			return Work{}, errEnding
		}
		w := b.work(r.Node, n)
		if over || !w.matches(r.Orders) {
			return w, nil
		}
		changed := b.changed
		b.mu.Unlock()
		select {
		case <-changed:
		case <-timer.C:
			over = true
		case <-poll:
			over = true
		case <-ctx.Done():
			over = true
		}
		b.mu.Lock()
	}
}

// dropNode forgets a node that is not connected. The caller holds b.mu.
func (b *Board) dropNode() bool {
	for name, n := range b.nodes {
		if !b.connected(n) {
			b.unstock(n)
			delete(b.nodes, name)
			return true
		}
	}
	return false
}

// record keeps what a node tells of orders that it is to work on. What it told
// before of an active one, and does not any more, is forgotten: it may have begun
// anew, with nothing. The caller holds b.mu.
func (b *Board) record(r Report) error {
	now := b.opts.Now()
	told := make(map[string]Progress, len(r.Orders))
	for _, p := range r.Orders {
		told[p.Order] = p
	}
	for id, o := range b.orders {
		if !o.offered(now) {
			continue
		}
		before, known := o.progress[r.Node]
		p, ok := told[id]
		switch {
		case !ok || p.Run != o.Run || !o.isFor(r.Node, r.Labels):
			if known && o.State == Active {
				delete(o.progress, r.Node)
				b.told--
			}
			continue
		case !known && b.told == maxProgress:
			return errBusy
		case !known:
			b.told++
		}
		o.progress[r.Node] = p
		if p.State != before.State {
			b.settle(o)
		}
	}
	return nil
}

// work returns what a node is to work on: every order of its pools that is
// offered, and of those that are done what it does not hold yet. The caller holds b.mu.
func (b *Board) work(name string, n *node) Work {
	now := b.opts.Now()
	w := Work{Tasks: []Task{}}
	for _, o := range b.orders {
		enough := o.State == Done && o.progress[name].State == Ready
		if o.offered(now) && o.isFor(name, n.labels) && !enough {
			w.Tasks = append(w.Tasks, Task{
				Order: o.ID, Run: o.Run, References: o.References, IntoMemory: o.IntoMemory,
				Plan: o.Plan, Rate: o.Rate, Between: o.Between,
			})
		}
	}
	return w
}

// matches reports whether told is of w's tasks, each once, and of no other.
func (w Work) matches(told []Progress) bool {
	return len(told) == len(w.Tasks) && !slices.ContainsFunc(w.Tasks, func(t Task) bool {
		return !slices.ContainsFunc(told, func(p Progress) bool { return p.Order == t.Order && p.Run == t.Run })
	})
}

// members returns the nodes that an order is for which begins now. The caller holds b.mu.
func (b *Board) members(r Request) []string {
	if len(r.NodeNames) > 0 {
		return r.NodeNames
	}
	return b.connectedOf(r)
}

// connectedOf returns the connected nodes that r is for. The caller holds b.mu.
func (b *Board) connectedOf(r Request) []string {
	names := []string{}
	for name, n := range b.nodes {
		if r.isFor(name, n.labels) && b.connected(n) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// isIn reports whether a node with these labels is in pool. Every node is in the one without a name.
func isIn(pool string, labels map[string]string) bool {
	return pool == "" || labels[PoolLabel] == pool
}

// connected reports whether a node is there; nil is none. The caller holds b.mu.
func (b *Board) connected(n *node) bool {
	return n != nil && (n.poll != nil || b.opts.Now().Sub(n.seen) < grace)
}
