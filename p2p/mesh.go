package p2p

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p/tracker"
)

// Options of a Mesh.
type Options struct {
	Node    string       // this node's name in the mesh; required
	Engine  Engine       // nil: no peers, everything comes from the origin
	Zone    string       // where this node is; traffic within a zone is preferred
	Tracker Tracker      // nil: a tracker of this node's own
	Logger  *slog.Logger // required

	Observer Observer // nil: nobody is told

	// LeaseWorkers is how many leases are drawn from the origin at a time, and
	// LeaseBytes how much one lease asks for; a lease is at least one piece.
	// More or larger ones start the exchange later: peers get what one node
	// has drawn only when a piece of it is whole.
	LeaseWorkers int   // 2 when 0
	LeaseBytes   int64 // 512 KiB when 0

	// Readahead is how far beyond a waiting reader pieces are urgent too, in bytes.
	Readahead int64 // 8 MiB when 0

	// Patience is how long a fill waits for peers that send nothing before it
	// draws from the origin what they are said to hold.
	Patience time.Duration // 10 s when 0
}

// A Mesh brings pieces into the holdings that joined it. It is a cache's source.
// Nothing happens before Run. A Mesh is safe for concurrent use.
type Mesh struct {
	opts Options
	log  *slog.Logger
	wake chan struct{}       // asks the announcer to hurry
	room *semaphore.Weighted // of drawRoom: bytes of pieces that are being drawn

	prefetch, demanded limit // of what fills and Fetches bring

	keeps atomic.Pointer[map[piece.Digest]bool] // of the last announce

	heard atomic.Int64 // when a fill last saw that peers had sent right pieces, in Unix nanoseconds

	life  context.Context // ends with Run
	end   context.CancelFunc
	draws sync.WaitGroup // what goes on without the reader that began it

	mu      sync.Mutex
	members map[piece.Digest]*member
	past    Stats         // of members that left
	order   []*member     // by priority, then time of joining: the order in which they are filled
	changed chan struct{} // closed and replaced when there may be more to draw
}

// A member is one object in the mesh.
type member struct {
	Holding
	object piece.Object
	id     tracker.SwarmID
	origin Origin
	gone   chan struct{} // closed when the object leaves the mesh

	prefetch *limit // the mesh's
	priority int    // guarded by Mesh.mu

	entry   sync.Mutex // held while the swarm is entered or left
	noEntry time.Time  // the engine is not asked again before; guarded by entry

	originBytes, originPieces, originWrong, returned atomic.Int64
	readers                                          atomic.Int64 // Fetches under way

	mu       sync.Mutex
	swarm    Swarm          // nil until it is entered, and without an engine
	peers    []tracker.Peer // as last announced
	fill     bool
	first    int            // no piece below it is absent
	soon     []tracker.Span // pieces that readers are on their way to, where nothing else fetches them; absent at the beginning
	ahead    int            // pieces before it are wanted Ahead or sooner
	behind   int            // and of these the ones from here on are so since the last reader
	awaited  map[int]int    // how many readers wait for a piece
	moved    chan struct{}  // closed and replaced when one no longer does
	planned  map[int]int    // pieces that were absent and plans want, and how many of them do
	granted  map[int]bool   // absent pieces that a limited fill has asked peers for
	paid     map[int]bool   // absent pieces that a limited reader wants to be ahead of it
	drawing  map[int]bool   // pieces that this node draws from the origin now
	drawn    tracker.Bitmap // pieces that it drew
	fresh    []int          // of these, those that most peers lacked when it was last looked
	done     []int          // drawn from the origin, not yet reported
	failed   []int          // leased but not drawn, not yet reported
	due      time.Time      // when done and failed are to be reported
	again    time.Time      // the fill asks for no lease before
	failures int            // draws that failed in a row
	dry      time.Time      // since when the fill has got no lease and nothing from peers; zero when it has
	received int64          // from peers, by then
	verified int64          // pieces from peers, by then
	wary     bool           // peers did not send what they are said to hold once
}

// New returns a Mesh.
func New(opts Options) *Mesh {
	if opts.LeaseWorkers == 0 {
		opts.LeaseWorkers = 2
	}
	if opts.LeaseBytes == 0 {
		opts.LeaseBytes = 512 << 10
	}
	if opts.Readahead == 0 {
		opts.Readahead = 8 << 20
	}
	if opts.Patience == 0 {
		opts.Patience = 10 * time.Second
	}
	if opts.Tracker == nil {
		opts.Tracker = tracker.Local{Server: tracker.New(tracker.Options{Logger: opts.Logger})}
	}
	life, end := context.WithCancel(context.Background())
	return &Mesh{
		opts: opts, log: opts.Logger, life: life, end: end,
		wake:    make(chan struct{}, 1),
		room:    semaphore.NewWeighted(drawRoom),
		members: make(map[piece.Digest]*member),
		changed: make(chan struct{}),
	}
}

// JoinOptions say how an object takes part.
type JoinOptions struct {
	// Origin is where bytes come from that no peer holds. Required of the first Join.
	Origin Origin

	// Fill fetches the whole object in the background; without it only what is read is fetched.
	Fill bool

	// Priority orders fills: what has a higher one comes first, and among
	// equals what joined first.
	Priority int
}

// Join brings h's object into the mesh: what it holds is shared, what it lacks
// is fetched into it. Joining an object that is in the mesh already may turn
// Fill on, which may raise its Priority, shares what it holds by now, and
// changes nothing else. An object of no bytes needs no mesh, and Join does nothing.
func (m *Mesh) Join(h Holding, opts JoinOptions) error {
	o := h.Tree().Object()
	if o.Pieces() == 0 {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	mb := m.members[o.Digest]
	switch {
	case mb == nil && opts.Origin == nil:
		return fmt.Errorf("join the swarm of object %s: it has no origin", o.Digest)
	case mb == nil:
		mb = &member{
			Holding: h, object: o, id: tracker.SwarmOf(o), origin: opts.Origin,
			gone: make(chan struct{}), drawing: make(map[int]bool),
			prefetch: &m.prefetch, awaited: make(map[int]int), planned: make(map[int]int), moved: make(chan struct{}), granted: make(map[int]bool), paid: make(map[int]bool),
		}
	case mb.object != o:
		return fmt.Errorf("join the swarm of object %s: it is in the mesh already, with root %s and not %s", o.Digest, mb.object.Root, o.Root)
	}
	if mb.holdsAny() {
		if err := m.enter(mb); err != nil {
			return err
		}
	}
	if m.members[o.Digest] == nil {
		m.members[o.Digest] = mb
		m.order = append(m.order, mb)
		mb.priority = opts.Priority
	}
	if opts.Fill {
		mb.priority = max(mb.priority, opts.Priority)
	}
	slices.SortStableFunc(m.order, func(a, b *member) int { return cmp.Compare(b.priority, a.priority) })
	if opts.Fill {
		mb.mu.Lock()
		mb.fill, mb.soon = true, nil
		mb.mu.Unlock()
		mb.wantAll()
	}
	m.notify()
	return nil
}

// Leave takes an object out of the mesh: it is neither fetched nor shared any
// more, and Fetches that wait for it end.
func (m *Mesh) Leave(d piece.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	mb := m.members[d]
	if mb == nil {
		return
	}
	delete(m.members, d)
	m.order = slices.DeleteFunc(m.order, func(x *member) bool { return x == mb })
	close(mb.gone)
	m.retire(mb)
	mb.exit() // under the lock: the object may join again at once
	m.notify()
}

// notify wakes the announcer and the drawers. The caller holds m.mu.
func (m *Mesh) notify() {
	m.stir()
	m.hurry()
}

// stir wakes the drawers. The caller holds m.mu.
func (m *Mesh) stir() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// hurry wakes the announcer.
func (m *Mesh) hurry() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *Mesh) member(d piece.Digest) *member {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.members[d]
}

func (m *Mesh) list() []*member {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.order)
}

// want passes an urgency on to the swarm, where there is one.
func (mb *member) want(first, last int, u Urgency) {
	if sw := mb.in(); sw != nil {
		sw.Want(first, last, u)
	}
}

// Run announces and draws from the origin until ctx ends. It returns the context's error.
func (m *Mesh) Run(ctx context.Context) error {
	defer m.draws.Wait()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.end()
	}()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.announce(ctx) })
	g.Go(func() error { return m.pace(ctx) })
	for range m.opts.LeaseWorkers {
		g.Go(func() error { return m.draw(ctx) })
	}
	return g.Wait()
}
