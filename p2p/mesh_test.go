package p2p_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/p2ptest"
	"github.com/spate-project/spate/p2p/tracker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// These tests are of a mesh without peers: nodes, a tracker and an origin, in
// bubbles of their own time. What peers add is tested with real engines in p2p/torrent.

const size = 20*piece.MinLength + 4321

var (
	data = p2ptest.Bytes(size, 1)
	tree = p2ptest.Tree(data)
	id   = tree.Object().Digest
)

// An origin holds data and may be told to misbehave.
type origin struct {
	sent  atomic.Int64 // bytes asked for
	asked atomic.Int64 // requests

	mu     sync.Mutex
	before func(ctx context.Context, first int) error // what happens first, if anything
	change func(off int64, p []byte)                  // what becomes of the bytes
}

func (o *origin) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	o.asked.Add(1)
	o.mu.Lock()
	before, change := o.before, o.change
	o.mu.Unlock()
	if before != nil {
		if err := before(ctx, int(off/piece.MinLength)); err != nil {
			return nil, err
		}
	}
	o.sent.Add(n)
	p := bytes.Clone(data[off : off+n])
	if change != nil {
		change(off, p)
	}
	return io.NopCloser(bytes.NewReader(p)), nil
}

// fails makes the origin do before first; nil ends that.
func (o *origin) fails(before func(ctx context.Context, first int) error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.before = before
}

func (o *origin) copies() float64 { return float64(o.sent.Load()) / size }

// A node is a mesh that runs until the test ends or stop is called.
type node struct {
	*p2p.Mesh
	holding *p2ptest.Holding
	stop    func()
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newNode(t *testing.T, name string, tr p2p.Tracker) *node {
	return startNode(t, p2p.Options{Node: name, Tracker: tr, Logger: quiet()})
}

func startNode(t *testing.T, opts p2p.Options) *node {
	m := p2p.New(opts)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v, want context.Canceled", err)
		}
	})
	t.Cleanup(stop)
	return &node{Mesh: m, holding: p2ptest.NewHolding(tree), stop: stop}
}

func (n *node) join(t *testing.T, o p2p.Origin, fill bool) {
	t.Helper()
	if err := n.Join(n.holding, p2p.JoinOptions{Origin: o, Fill: fill}); err != nil {
		t.Fatal(err)
	}
}

// put brings piece i into the holding, as a peer would.
func (n *node) put(t *testing.T, i int) {
	t.Helper()
	off, length := tree.Object().Span(i)
	v, err := tree.Verify(i, data[off:off+length])
	if err != nil {
		t.Fatal(err)
	}
	if err := n.holding.Put(v); err != nil {
		t.Fatal(err)
	}
}

// filled fails the test unless the holding is whole within d.
func (n *node) filled(t *testing.T, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := n.holding.WaitAll(ctx); err != nil {
		t.Fatalf("%d of %d pieces after %v: %v", n.holding.Count(), tree.Object().Pieces(), d, err)
	}
	if !bytes.Equal(n.holding.Bytes(), data) {
		t.Error("it is whole, but with other bytes")
	}
}

func newTracker() *tracker.Server { return tracker.New(tracker.Options{Logger: quiet()}) }

func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

func TestFillFromOrigin(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, n := &origin{}, newNode(t, "a", nil)
		n.join(t, o, true)
		n.filled(t, time.Second)
		if o.sent.Load() != size {
			t.Errorf("the origin sent %d bytes of %d", o.sent.Load(), size)
		}
		s, ok := n.Stats(id)
		if !ok || s.OriginBytes != size || s.OriginWrong != 0 {
			t.Errorf("stats %+v, %v", s, ok)
		}
	})
}

// TestShared: nodes that start together draw each piece once, also where some have parts already.
func TestShared(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, server := &origin{}, tracker.Local{Server: newTracker()}
		var nodes []*node
		for i := range 4 {
			n := newNode(t, fmt.Sprint("n", i), server)
			for k := i; k < 8; k += 4 { // pieces 0 to 7 are there
				n.put(t, k)
			}
			nodes = append(nodes, n)
		}
		// A node whose first announce waited for its join would draw what those after it hold.
		synctest.Wait()
		for _, n := range nodes {
			n.join(t, o, true)
		}
		time.Sleep(1500 * time.Millisecond)
		if want := int64(size - 8*piece.MinLength); o.sent.Load() != want {
			t.Errorf("the origin sent %d bytes, want %d", o.sent.Load(), want)
		}
		have := make(map[int]bool)
		for _, n := range nodes {
			for i := range tree.Object().Pieces() {
				have[i] = have[i] || n.holding.Has(i)
			}
		}
		for i, has := range have {
			if !has {
				t.Errorf("nobody has piece %d", i)
			}
		}
	})
}

// TestHeldUnknown: what a node holds and the tracker does not know of is not drawn.
func TestHeldUnknown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, n := &origin{}, newNode(t, "a", nil)
		gate := make(chan struct{})
		o.fails(func(context.Context, int) error {
			<-gate
			return nil
		})
		n.join(t, o, true)
		synctest.Wait() // the first pieces are leased, the announce is out
		for i := 4; i < tree.Object().Pieces(); i++ {
			if i%3 != 0 {
				n.put(t, i)
			}
		}
		before := n.holding.Count()
		close(gate)
		n.filled(t, 5*time.Second)
		if drawn := o.sent.Load() / piece.MinLength; drawn > int64(tree.Object().Pieces()-before) {
			t.Errorf("%d pieces are drawn, where %d were missing", drawn, tree.Object().Pieces()-before)
		}
	})
}

func TestLeave(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, n := &origin{}, newNode(t, "a", nil)
		o.fails(func(ctx context.Context, _ int) error {
			<-ctx.Done()
			return ctx.Err()
		})
		n.join(t, o, true)
		fetched := make(chan error)
		go func() { fetched <- n.Fetch(t.Context(), id, 9) }()
		time.Sleep(time.Second)
		n.Leave(id)
		n.Leave(id)
		if err := <-fetched; !errors.Is(err, piece.ErrNotHere) {
			t.Errorf("fetch of an object that leaves: %v, want piece.ErrNotHere", err)
		}
		if _, ok := n.Stats(id); ok {
			t.Error("there are stats of an object that left")
		}
		time.Sleep(time.Minute)
		if o.sent.Load() != 0 {
			t.Error("an object that left is drawn")
		}
		o.fails(nil)
		n.join(t, o, true)
		n.filled(t, 2*time.Second)
	})
}

func TestJoinErrors(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNode(t, "a", nil)
		if err := n.Join(n.holding, p2p.JoinOptions{}); err == nil {
			t.Error("an object joined without an origin")
		}
		n.join(t, &origin{}, false)
		if err := n.Join(n.holding, p2p.JoinOptions{Fill: true}); err != nil { // fills from the first origin
			t.Fatal(err)
		}
		n.filled(t, time.Second)

		other := tree.Object()
		other.Size, other.Root = piece.MinLength, piece.Root{1}
		otherTree, err := piece.NewTree(other, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Join(p2ptest.NewHolding(otherTree), p2p.JoinOptions{Origin: &origin{}}); err == nil {
			t.Error("a digest joined with two trees")
		}
		if err := n.Join(p2ptest.NewHolding(p2ptest.Tree(nil)), p2p.JoinOptions{}); err != nil {
			t.Errorf("an object of no bytes: %v", err)
		}
	})
}

// A crowd is an engine whose swarms exchange nothing.
type crowd struct {
	addr    string
	banned  []string
	refuses error            // what a Join fails with
	holds   func(i int) bool // what a connected peer holds; nothing when nil
	spread  func() (holders, peers int)
	joins   atomic.Int64 // attempts
}

func (c *crowd) Addr() string { return c.addr }

func (c *crowd) Banned() []string { return c.banned }

func (c *crowd) Join(p2p.Holding) (p2p.Swarm, error) {
	c.joins.Add(1)
	return c, c.refuses
}

func (c *crowd) Held(i int) bool { return c.holds != nil && c.holds(i) }
func (c *crowd) Spread(int) (holders, peers int) {
	if c.spread == nil {
		return 0, 0
	}
	return c.spread()
}

func (c *crowd) Want(int, int, p2p.Urgency) {}
func (c *crowd) AddPeers([]tracker.Peer)    {}
func (c *crowd) Stats() (s p2p.SwarmStats)  { return s }
func (c *crowd) Leave()                     {}

// TestEngineRefuses: an object that the engine does not take is not offered to it all the time.
func TestEngineRefuses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c, o := &crowd{refuses: errors.New("no room")}, &origin{}
		o.fails(func(context.Context, int) error { return errors.New("registry is down") })
		n := startNode(t, p2p.Options{Node: "a", Engine: c, Logger: quiet()})
		n.join(t, o, true)
		time.Sleep(50 * time.Second)
		if c.joins.Load() != 1 {
			t.Errorf("%d attempts in 50 s, want one", c.joins.Load())
		}
		time.Sleep(10 * time.Minute)
		if got := c.joins.Load(); got < 5 || got > 11 {
			t.Errorf("%d attempts in eleven minutes, want about one a minute", got)
		}
	})
}

// small returns a holding of an object of one piece of size bytes that nobody has.
func small(t *testing.T, k int, size, pieceLength int64) *p2ptest.Holding {
	t.Helper()
	o := piece.Object{Size: size, PieceLength: pieceLength, Root: piece.Root{1}}
	binary.BigEndian.PutUint32(o.Digest[:], uint32(k))
	one, err := piece.NewTree(o, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p2ptest.NewHolding(one)
}

// A recorder is a tracker that keeps the last announce.
type recorder struct {
	tracker.Local
	mu   sync.Mutex
	last map[tracker.SwarmID]bool
}

func (r *recorder) Announce(ctx context.Context, a tracker.Announce) (tracker.Peers, error) {
	p, err := r.Local.Announce(ctx, a)
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.last = make(map[tracker.SwarmID]bool)
		for _, h := range a.Swarms {
			r.last[h.Swarm] = true
		}
	}
	return p, err
}

// lists reports whether the object of h is in the last announce, and of how many.
func (r *recorder) lists(h *p2ptest.Holding) (bool, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last[tracker.SwarmOf(h.Tree().Object())], len(r.last)
}

// TestManyObjects: of more objects than an announce may list, those that are
// filled or read are announced, and then the latest.
func TestManyObjects(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, r := &origin{}, &recorder{Local: tracker.Local{Server: newTracker()}}
		o.fails(func(context.Context, int) error { return errors.New("registry is down") })
		n := newNode(t, "a", r)
		n.join(t, o, true)
		var idle []*p2ptest.Holding
		for k := range tracker.MaxSwarms + 2 {
			h := small(t, k, 1, piece.MinLength)
			if err := n.Join(h, p2p.JoinOptions{Origin: o}); err != nil {
				t.Fatal(err)
			}
			idle = append(idle, h)
		}
		time.Sleep(time.Minute)
		for h, want := range map[*p2ptest.Holding]bool{n.holding: true, idle[0]: false, idle[2]: false, idle[3]: true, idle[len(idle)-1]: true} {
			if got, all := r.lists(h); got != want || all != tracker.MaxSwarms {
				t.Errorf("of %d announced objects: %v, want %v", all, got, want)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		var reader sync.WaitGroup
		reader.Go(func() { n.Fetch(ctx, idle[0].Tree().Object().Digest, 0) })
		time.Sleep(time.Minute)
		if got, _ := r.lists(idle[0]); !got {
			t.Error("an object that is being read is not announced")
		}
		cancel()
		reader.Wait()
	})
}

// TestRefusedAnnounce: a tracker that refuses is not said to be unreachable.
func TestRefusedAnnounce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var log bytes.Buffer
		n := startNode(t, p2p.Options{
			Node: "a", Engine: &crowd{addr: "[::]:6881"}, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		})
		n.join(t, &origin{}, false)
		time.Sleep(time.Second)
		n.stop()
		if text := log.String(); !strings.Contains(text, "refuses") || !strings.Contains(text, "[::]:6881") || strings.Contains(text, "reached;") {
			t.Errorf("logged %q", text)
		}
	})
}
