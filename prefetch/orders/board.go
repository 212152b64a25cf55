package orders

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Bounds of what a board keeps, and times.
const (
	maxOrders   = 256     // that have ended included
	maxNodes    = 4096    // heard of lately
	maxProgress = 1 << 18 // of all nodes and orders together

	grace    = 5 * time.Second // a node that is silent for longer is not connected
	memory   = time.Hour       // and after this one forgotten
	keeping  = 24 * time.Hour  // an order is known for so long after its end
	interval = time.Second     // between looks at deadlines
	settling = 5 * time.Second // Options.Settle
)

// Why a board does not take what it is asked.
var (
	ErrUnknown = errors.New("there is no such order; it may have ended more than a day ago")
	ErrNoNodes = errors.New("no agent of the pool is connected, so that all of them would be none")
	errBusy    = errors.New("the board is full; some orders have to end, or nodes to leave, first")
	errEnding  = errors.New("the board is ending")
)

// Options of a Board.
type Options struct {
	Logger *slog.Logger // required

	// Settle is how long after its start a board lets nodes connect again before
	// "all nodes of the pool" are those that are connected; 5 s when 0.
	Settle time.Duration

	Now func() time.Time // the clock; time.Now when nil
}

// A Board keeps orders and knows how far nodes are with them. It is safe for concurrent use.
type Board struct {
	opts    Options
	store   store
	settled time.Time

	mu      sync.Mutex
	orders  map[string]*order
	nodes   map[string]*node
	told    int           // progress that is kept, of all orders
	stocked int           // objects that nodes hold, of all nodes
	changed chan struct{} // closed and replaced when nodes may have other work
	ending  bool
}

type order struct {
	Order
	progress map[string]Progress // by node, of this run
}

type node struct {
	labels map[string]string
	zone   string
	stock  stock
	poll   chan struct{} // closed when another Report takes this one's place; nil while there is none
	seen   time.Time     // when the last Report was answered; zero when the node left instead
}

// Open returns the board whose orders are kept in dir, which is made when
// missing and belongs to one Board at a time.
func Open(dir string, opts Options) (*Board, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	store, kept, err := openStore(dir, opts.Logger)
	if err != nil {
		return nil, err
	}
	b := &Board{
		opts: opts, store: store, settled: opts.Now().Add(cmp.Or(opts.Settle, settling)),
		orders: make(map[string]*order), nodes: make(map[string]*node), changed: make(chan struct{}),
	}
	for _, o := range kept {
		b.orders[o.ID] = &order{Order: o, progress: make(map[string]Progress)}
	}
	return b, nil
}

// Run ends orders at their deadlines and forgets old ones until ctx ends; then
// every Report that is held is answered. It returns nil.
func (b *Board) Run(ctx context.Context) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			b.mu.Lock()
			defer b.mu.Unlock()
			b.ending = true
			b.wake()
			return nil
		case <-ticker.C:
			b.sweep()
		}
	}
}

func (b *Board) sweep() {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.opts.Now()
	for _, o := range b.orders {
		b.settle(o)
		if now.Sub(o.Ends) > keeping {
			b.forget(o)
		}
	}
	for name, n := range b.nodes {
		if n.poll == nil && now.Sub(n.seen) > memory {
			b.unstock(n)
			delete(b.nodes, name)
		}
	}
}

// Place makes an order of r, or joins the one that is under way already. One that
// has ended is begun anew. When Place returns without error the order is kept. ctx
// governs how long it waits for nodes to connect to a board that has just started.
func (b *Board) Place(ctx context.Context, r Request) (View, error) {
	if err := r.Check(); err != nil {
		return View{}, err
	}
	if wait := b.settled.Sub(b.opts.Now()); r.Ready == 0 && len(r.NodeNames) == 0 && wait > 0 {
		select {
		case <-ctx.Done():
			return View{}, ctx.Err()
		case <-time.After(wait):
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	id := r.ID()
	old := b.orders[id]
	run := 1
	if old != nil {
		if b.settle(old); old.State == Active {
			return b.view(old), nil
		}
		run = old.Run + 1
	} else if err := b.makeRoom(); err != nil {
		return View{}, err
	}
	now := b.opts.Now()
	life := DefaultLife
	if r.Deadline > 0 {
		life = time.Duration(r.Deadline * float64(time.Second))
	}
	o := &order{progress: make(map[string]Progress), Order: Order{
		ID: id, Request: r, Run: run, Need: r.Ready, Members: b.members(r), Created: now, Ends: now.Add(life), State: Active,
	}}
	if o.Need == 0 {
		o.Need = len(o.Members)
	}
	if o.Need == 0 {
		return View{}, ErrNoNodes
	}
	if err := b.store.put(o.Order); err != nil {
		return View{}, err
	}
	if old != nil {
		b.told -= len(old.progress)
	}
	b.orders[id] = o
	b.wake()
	return b.view(o), nil
}

// makeRoom forgets the order that ended first where there are as many as a board keeps.
func (b *Board) makeRoom() error {
	if len(b.orders) < maxOrders {
		return nil
	}
	now := b.opts.Now()
	var first *order
	for _, o := range b.orders {
		if !o.offered(now) && (first == nil || o.Ends.Before(first.Ends)) {
			first = o
		}
	}
	if first == nil {
		return errBusy
	}
	b.forget(first)
	return nil
}

func (b *Board) forget(o *order) {
	if err := b.store.remove(o.ID); err != nil {
		b.opts.Logger.Warn("an old order is still on disk", "err", err)
	}
	b.told -= len(o.progress)
	delete(b.orders, o.ID)
}

// find returns an order as it stands now. b.mu is held.
func (b *Board) find(id string) (*order, error) {
	o := b.orders[id]
	if o == nil {
		return nil, fmt.Errorf("order %.40q: %w", id, ErrUnknown)
	}
	b.settle(o)
	return o, nil
}

// Cancel ends an order: nodes fetch nothing for it any more. One that has ended stays as it is.
func (b *Board) Cancel(id string) (View, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	o, err := b.find(id)
	if err != nil {
		return View{}, err
	}
	now := b.opts.Now()
	if !o.offered(now) {
		return b.view(o), nil
	}
	ended := o.Order
	ended.Ends = now
	if ended.State == Active {
		ended.State = Cancelled
	}
	if err := b.store.put(ended); err != nil {
		return View{}, err
	}
	o.Order = ended
	b.wake()
	return b.view(o), nil
}

// View returns an order and how far its nodes are.
func (b *Board) View(id string) (View, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	o, err := b.find(id)
	if err != nil {
		return View{}, err
	}
	return b.view(o), nil
}

// List returns all orders, the oldest first, without their nodes.
func (b *Board) List() []View {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]View, 0, len(b.orders))
	for _, o := range b.orders {
		b.settle(o)
		v := b.view(o)
		v.Nodes = nil
		list = append(list, v)
	}
	slices.SortFunc(list, func(x, y View) int { return cmp.Or(x.Created.Compare(y.Created), cmp.Compare(x.ID, y.ID)) })
	return list
}

// settle gives an active order the state that it has come to. The caller holds b.mu.
func (b *Board) settle(o *order) {
	if o.State != Active {
		return
	}
	v, denied := b.view(o), 0
	for _, n := range v.Nodes {
		if n.State == Denied {
			denied++
		}
	}
	switch {
	case !b.opts.Now().Before(o.Ends):
		o.State = Late
	case v.Holding >= o.Need:
		o.State = Done
	case denied > 0 && len(v.Nodes)-denied < o.Need:
		o.State = Refused
	default:
		return
	}
	if err := b.store.put(o.Order); err != nil {
		b.opts.Logger.Error("after a restart this order will be taken for one that has not ended", "order", o.ID, "err", err)
	}
	b.wake()
}

// view is View. The caller holds b.mu.
func (b *Board) view(o *order) View {
	names := slices.Clone(o.Members)
	for name := range o.progress {
		names = append(names, name)
	}
	if o.offered(b.opts.Now()) {
		names = append(names, b.connectedOf(o.Request)...)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	v := View{Order: o.Order, Nodes: make([]Node, 0, len(names))}
	for _, name := range names {
		p, ok := o.progress[name]
		if !ok {
			p = Progress{Order: o.ID, Run: o.Run, State: Waiting, ETA: -1, Bound: -1}
		}
		n := Node{Node: name, Connected: b.connected(b.nodes[name]), Progress: p}
		if n.Connected && n.State == Ready {
			v.Holding++
		}
		v.Nodes = append(v.Nodes, n)
	}
	return v
}

// wake lets nodes look whether they have other work. The caller holds b.mu.
func (b *Board) wake() {
	close(b.changed)
	b.changed = make(chan struct{})
}
