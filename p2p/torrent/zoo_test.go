package torrent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/p2ptest"
	"github.com/spate-project/spate/p2p/tracker"
)

// The zoo: peers that lie, are silent, strangers, die or run full. All of them
// have the same IP address, so that who is blamed is blamed by name.

const zooSize = 4<<20 + 777

// liar returns a holding that is whole by its own word, with a wrong byte in every piece.
func liar(data []byte) *p2ptest.Holding {
	h := p2ptest.Full(data)
	for off := int64(0); off < int64(len(data)); off += h.Tree().Object().PieceLength {
		h.Corrupt(off)
	}
	return h
}

// TestLiar: what a liar sends is refused, he is banned by name, and honest nodes beside him are not.
func TestLiar(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	data := p2ptest.Bytes(zooSize, 1)
	lies := w.node("liar", 0)
	lies.join(liar(data), noOrigin, true)

	// As long as there is nobody else, every node falls for him, for a piece or two.
	var nodes []*node
	var holdings []*p2ptest.Holding
	for k := range 3 {
		n := w.node(fmt.Sprintf("node-%d", k), 0)
		h := p2ptest.NewHolding(p2ptest.Tree(data))
		n.join(h, noOrigin, true)
		nodes, holdings = append(nodes, n), append(holdings, h)
	}
	for _, n := range nodes {
		n.log.wait(t, "refused a piece from peers", "sent by liar)", digestOf(holdings[0]).String())
		eventually(t, "the liar is banned", func() bool { return n.engine.Refuses("liar") })
	}
	for i, h := range holdings {
		if h.Count() != 0 {
			t.Errorf("node %d has %d pieces, where only a liar had them", i, h.Count())
		}
	}

	seed := w.node("seed", 0)
	seed.join(p2ptest.Full(data), noOrigin, true)
	filled(t, data, holdings...)
	for i, n := range nodes {
		s, _ := n.Stats(digestOf(holdings[i]))
		if s.Refused == 0 {
			t.Errorf("node %d has refused no piece", i)
		}
		for _, honest := range []string{"seed", "node-0", "node-1", "node-2"} {
			if n.engine.Refuses(honest) {
				t.Errorf("node %d has banned %s", i, honest)
			}
		}
	}
}

// TestLiarInCrowd: one liar among honest nodes keeps nobody from anything, and
// the pieces that only he has are drawn from the origin.
func TestLiarInCrowd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	data := p2ptest.Bytes(zooSize, 2)
	w.node("liar", 0).join(liar(data), noOrigin, true)
	var nodes []*node
	var holdings []*p2ptest.Holding
	for k := range 3 {
		n := w.nodeAs(newIdentity(t, w.ca, fmt.Sprintf("node-%d", k), time.Hour), 0, p2p.Options{Patience: 200 * time.Millisecond})
		h := partly(t, data, func(i int) bool { return i%4 == k })
		n.join(h, w.from(data), true)
		nodes, holdings = append(nodes, n), append(holdings, h)
	}
	filled(t, data, holdings...)
	nobodyBanned(t, nodes)
}

// TestStranger: a node with a certificate of another CA, or an expired one, gets nothing and disturbs nobody.
func TestStranger(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	data := p2ptest.Bytes(zooSize, 3)
	seed := w.node("seed", 0)
	seed.join(p2ptest.Full(data), noOrigin, true)

	expired := newIdentity(t, w.ca, "expired", time.Second)
	for expired.Check(time.Now()) == nil {
		time.Sleep(10 * time.Millisecond)
	}
	foreign := newIdentity(t, newCA(t), "foreign", time.Hour)
	empty := p2ptest.NewHolding(p2ptest.Tree(data))
	half := partly(t, data, func(i int) bool { return i%2 == 0 })
	for h, stranger := range map[*p2ptest.Holding]*node{
		empty: w.nodeAs(foreign, 0, p2p.Options{}), half: w.nodeAs(expired, 0, p2p.Options{}),
	} {
		stranger.join(h, noOrigin, true)
		says := "unknown authority"
		if h == half {
			says = "issue a new one"
		}
		stranger.log.wait(t, "refused a connection to the mesh", "peer=seed", says) // it dials the seed
		stranger.log.wait(t, "refused a connection to the mesh", "remote error")    // the seed dials it
	}

	good := p2ptest.NewHolding(p2ptest.Tree(data))
	w.node("good", 0).join(good, noOrigin, true)
	filled(t, data, good)
	if empty.Count() != 0 || half.Count() != (half.Tree().Object().Pieces()+1)/2 {
		t.Errorf("strangers have got pieces: %d of none, %d of half", empty.Count(), half.Count())
	}
	if s, _ := seed.Stats(digestOf(good)); s.Sent > zooSize {
		t.Errorf("the seed sent %d bytes to the one node that it knows", s.Sent)
	}
}

// TestImpostor: a node of the mesh cannot take another one's name.
func TestImpostor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	data := p2ptest.Bytes(zooSize, 4)
	h := liar(data)
	impostor := w.node("impostor", 0)
	impostor.join(h, noOrigin, true)
	// He tells the tracker that the honest node is where he is.
	o := h.Tree().Object()
	have := tracker.NewBitmap(o.Pieces())
	for i := range o.Pieces() {
		have.Set(i)
	}
	n := w.node("node", 0)
	got := p2ptest.NewHolding(h.Tree())
	eventually(t, "the impostor has announced himself", func() bool {
		p, err := w.Announce(t.Context(), tracker.Announce{
			Node: "honest", Addr: impostor.engine.Addr(),
			Swarms: []tracker.Holding{{Swarm: tracker.SwarmOf(o), Pieces: o.Pieces(), Have: have}},
		})
		return err == nil && len(p.Swarms) == 1
	})
	n.join(got, w.from(data), true)
	if err := n.Fetch(soon(t), digestOf(got), 1); err != nil {
		t.Error(err)
	}
	if n.engine.Refuses("honest") {
		t.Error("the honest node is banned for what the impostor did")
	}
}

// silent is a holding whose bytes never come.
type silent struct {
	*p2ptest.Holding
	until context.Context
}

func (s silent) ReadAt([]byte, int64) (int, error) {
	<-s.until.Done()
	return 0, s.until.Err()
}

// TestSilentPeer: a connected peer that holds everything and sends nothing holds up neither readers nor a fill.
func TestSilentPeer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	data := p2ptest.Bytes(zooSize, 5)
	until, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	w.node("silent", 0).join(silent{p2ptest.Full(data), until}, noOrigin, true)

	reader := w.node("reader", 0)
	read := p2ptest.NewHolding(p2ptest.Tree(data))
	reader.join(read, w.from(data), false)
	if err := reader.Fetch(soon(t), digestOf(read), 9); err != nil {
		t.Fatal(err)
	}
	filler := w.nodeAs(newIdentity(t, w.ca, "filler", time.Hour), 0, p2p.Options{Patience: 200 * time.Millisecond})
	h := p2ptest.NewHolding(p2ptest.Tree(data))
	filler.join(h, w.from(data), true)
	filled(t, data, h)
	cancel()
}

// TestDeadNode: a node that dies while it holds leases, and pieces that nobody else has, holds nobody up for long.
func TestDeadNode(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.restartTracker(tracker.Options{Interval: 500 * time.Millisecond, LeaseTTL: time.Second})
	data := p2ptest.Bytes(zooSize, 6)
	hung := make(chan struct{}, 100)
	dead := w.node("dead", 0)
	deadHolding := p2ptest.NewHolding(p2ptest.Tree(data))
	dead.join(deadHolding, p2p.OriginFunc(func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		if off < zooSize/2 {
			return w.from(data).Range(ctx, off, n)
		}
		hung <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}), true)
	<-hung
	dead.stop()
	if deadHolding.Count() == 0 {
		t.Fatal("the node that is to die holds nothing")
	}
	var holdings []*p2ptest.Holding
	for k := range 3 {
		h := p2ptest.NewHolding(p2ptest.Tree(data))
		w.node(fmt.Sprintf("node-%d", k), 0).join(h, w.from(data), true)
		holdings = append(holdings, h)
	}
	filled(t, data, holdings...)
}

// TestOriginGone: once a copy is out, nobody needs the origin.
func TestOriginGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	data := p2ptest.Bytes(zooSize, 7)
	var left atomic.Int64
	left.Store(zooSize)
	once := p2p.OriginFunc(func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		if left.Add(-n) < 0 {
			return nil, errors.New("the registry is gone")
		}
		return w.from(data).Range(ctx, off, n)
	})
	// The first nodes share the copy; the others come when it is out.
	var holdings []*p2ptest.Holding
	for k := range 4 {
		if k == 2 {
			filled(t, data, holdings...)
		}
		h := p2ptest.NewHolding(p2ptest.Tree(data))
		w.node(fmt.Sprintf("node-%d", k), 0).join(h, once, true)
		holdings = append(holdings, h)
	}
	filled(t, data, holdings...)
}

// TestCutOff: nodes whose way to the origin is broken, or changes bytes, are filled by those whose is not.
func TestCutOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	data := p2ptest.Bytes(zooSize, 8)
	wrong := p2p.OriginFunc(func(_ context.Context, off, n int64) (io.ReadCloser, error) {
		return io.NopCloser(io.LimitReader(zeros{}, n)), nil
	})
	var holdings []*p2ptest.Holding
	var nodes []*node
	for k, o := range []p2p.Origin{noOrigin, wrong, w.from(data)} {
		n := w.node(fmt.Sprintf("node-%d", k), 0)
		h := p2ptest.NewHolding(p2ptest.Tree(data))
		n.join(h, o, true)
		nodes, holdings = append(nodes, n), append(holdings, h)
	}
	filled(t, data, holdings...)
	if s, _ := nodes[1].Stats(digestOf(holdings[1])); s.OriginWrong > 0 && s.Refused > 0 {
		t.Errorf("peers are blamed for what the origin did: %+v", s)
	}
	nobodyBanned(t, nodes)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestTrackerRestarts: a tracker that starts anew in the middle is not noticed.
func TestTrackerRestarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const rate = 4 << 20
	data := p2ptest.Bytes(zooSize, 9)
	url := w.serve(data, rate)
	var holdings []*p2ptest.Holding
	for k := range 3 {
		n, h := w.node(fmt.Sprintf("node-%d", k), rate), p2ptest.NewHolding(p2ptest.Tree(data))
		n.join(h, w.http(url, n.link), true)
		holdings = append(holdings, h)
	}
	pieces := holdings[0].Tree().Object().Pieces()
	for _, part := range []int{1, pieces / 2} {
		eventually(t, "the transfer is under way", func() bool { return holdings[0].Count() >= part })
		w.restartTracker(tracker.Options{})
	}
	filled(t, data, holdings...)
	copies := float64(w.origin.Load()) / zooSize
	t.Logf("the origin sent %.2f copies", copies)
	if copies > 1.5 {
		t.Error("the peers were not asked for what they hold")
	}
}

// TestDemandFirst: what a reader waits for overtakes the fill.
func TestDemandFirst(t *testing.T) {
	w := newWorld(t)
	const rate = 4 << 20
	data := p2ptest.Bytes(3*rate, 10) // three seconds
	tree := p2ptest.Tree(data)
	url := w.serve(data, rate)
	w.node("seed", 0).join(partly(t, data, func(i int) bool { return i%2 == 0 }), noOrigin, true)
	n := w.node("node", rate)
	h := p2ptest.NewHolding(tree)
	n.join(h, w.http(url, n.link), true)
	eventually(t, "the fill has begun", func() bool { return h.Count() > 0 })
	pieces := tree.Object().Pieces()
	for _, i := range []int{pieces - 1, pieces - 2} { // one of the origin and one of the seed
		if err := n.Fetch(soon(t), tree.Object().Digest, i); err != nil {
			t.Fatal(err)
		}
		if count := h.Count(); count > pieces/2 {
			t.Errorf("piece %d of %d came after %d others", i, pieces, count)
		}
	}
	filled(t, data, h)
}

// TestDemandOnly: without a fill nothing comes but what is read, and what follows it.
func TestDemandOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	data := p2ptest.Bytes(4*zooSize, 11)
	tree := p2ptest.Tree(data)
	w.node("seed", 0).join(p2ptest.Full(data), noOrigin, true)
	n := w.nodeAs(newIdentity(t, w.ca, "node", time.Hour), 0, p2p.Options{Readahead: 1})
	h := p2ptest.NewHolding(tree)
	n.join(h, noOrigin, false)
	allowed := map[int]bool{}
	for _, i := range []int{50, 10, 30, 31, 5} {
		if err := n.Fetch(soon(t), tree.Object().Digest, i); err != nil {
			t.Fatal(err)
		}
		allowed[i], allowed[i+1] = true, true
	}
	for i := range tree.Object().Pieces() {
		if h.Has(i) && !allowed[i] {
			t.Errorf("piece %d came, which nobody reads", i)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Fetch(ctx, tree.Object().Digest, 40); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
}

// TestResume: nodes that have different parts complete each other, and a seed seeds, with no origin at all.
func TestResume(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	data := p2ptest.Bytes(zooSize, 12)
	var holdings []*p2ptest.Holding
	for k := range 3 {
		h := partly(t, data, func(i int) bool { return i%3 == k })
		w.node(fmt.Sprintf("node-%d", k), 0).join(h, noOrigin, true)
		holdings = append(holdings, h)
	}
	filled(t, data, holdings...)

	small := p2ptest.Bytes(1, 1)
	w.node("seed", 0).join(p2ptest.Full(small), noOrigin, true)
	h := p2ptest.NewHolding(p2ptest.Tree(small))
	w.node("late", 0).join(h, noOrigin, true)
	filled(t, small, h)
}

// full is a holding on a disk that is full while full is set: already for
// blocks, or only when a piece is to be recorded.
type full struct {
	*p2ptest.Holding
	blocks bool
	full   atomic.Bool
}

var errFull = fmt.Errorf("write: %w", syscall.ENOSPC)

func (f *full) Put(v piece.Verified) error {
	if f.full.Load() {
		return errFull
	}
	return f.Holding.Put(v)
}

func (f *full) WriteBlock(i int, p []byte, off int64) error {
	if f.full.Load() && f.blocks {
		return errFull
	}
	return f.Holding.WriteBlock(i, p, off)
}

func (f *full) Commit(i int) error {
	if f.full.Load() {
		return errFull
	}
	return f.Holding.Commit(i)
}

// TestFullDisk: a full disk hurts its own node only, which goes on to share what it has, and recovers.
func TestFullDisk(t *testing.T) {
	for _, blocks := range []bool{true, false} {
		t.Run(fmt.Sprint("blocks=", blocks), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			data := p2ptest.Bytes(zooSize, 13)
			isFull := &full{Holding: partly(t, data, func(i int) bool { return i < 3 }), blocks: blocks}
			isFull.full.Store(true)
			n := w.node("full", 0)
			n.join(isFull, noOrigin, true)
			var holdings []*p2ptest.Holding
			for k := range 2 {
				h := partly(t, data, func(i int) bool { return i >= 3 && i%2 == k })
				w.node(fmt.Sprintf("node-%d", k), 0).join(h, noOrigin, true)
				holdings = append(holdings, h)
			}
			filled(t, data, holdings...) // pieces 0 to 2 are the full node's
			n.log.wait(t, "the object's download rests", "no space left on device")
			s, _ := n.Stats(digestOf(isFull))
			if s.Received > 2*zooSize {
				t.Errorf("%d bytes of %d were received in vain", s.Received, int64(zooSize))
			}
			if s.Refused > 0 || n.engine.Refuses("node-0") || n.engine.Refuses("node-1") {
				t.Error("peers are blamed for the full disk")
			}
			isFull.full.Store(false)
			filled(t, data, isFull.Holding)
		})
	}
}

// TestLeaveInTheMiddle: a node that leaves, joins again and leaves again while
// pieces come keeps what it has, and the others are filled.
func TestLeaveInTheMiddle(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	data := p2ptest.Bytes(2*zooSize, 14)
	var holdings []*p2ptest.Holding
	for k := range 2 {
		h := p2ptest.NewHolding(p2ptest.Tree(data))
		w.node(fmt.Sprintf("node-%d", k), 8<<20).join(h, w.from(data), true)
		holdings = append(holdings, h)
	}
	fickle := w.node("fickle", 8<<20)
	h := p2ptest.NewHolding(p2ptest.Tree(data))
	for k := 1; k <= 10; k++ {
		fickle.join(h, w.from(data), true)
		eventually(t, "more pieces come", func() bool { return h.Count() >= 2*k })
		fickle.Leave(digestOf(h))
		if s, ok := fickle.Stats(digestOf(h)); ok {
			t.Errorf("it left, with %+v", s)
		}
	}
	filled(t, data, holdings...)
	fickle.join(h, noOrigin, true)
	filled(t, data, h)
}

// slowly is a holding whose first commit waits for something.
type slowly struct {
	*p2ptest.Holding
	first atomic.Bool
	wait  func()
}

func (s *slowly) Commit(i int) error {
	if !s.first.Swap(true) {
		s.wait()
	}
	return s.Holding.Commit(i)
}

// TestLeaveDuringCommit: an object that left once, joined again and leaves in
// the middle of a commit is not kept by what it told the first swarm's watcher.
func TestLeaveDuringCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	data := p2ptest.Bytes(zooSize, 15)
	w.node("seed", 0).join(p2ptest.Full(data), noOrigin, true)
	n := w.node("node", 0)
	h := &slowly{Holding: p2ptest.NewHolding(p2ptest.Tree(data))}
	left := make(chan struct{})
	h.wait = func() {
		go func() {
			n.Leave(digestOf(h))
			close(left)
		}()
		for { // until Leave has the locks that it waits with for this commit
			answered := make(chan struct{})
			go func() {
				n.Stats(digestOf(h))
				close(answered)
			}()
			select {
			case <-answered:
			case <-time.After(100 * time.Millisecond):
				return
			}
		}
	}
	n.join(h, noOrigin, false)
	n.Leave(digestOf(h))
	n.join(h, noOrigin, true)
	select {
	case <-left:
	case <-time.After(patience):
		t.Fatal("Leave does not return")
	}
	n.join(h, noOrigin, true)
	filled(t, data, h.Holding)
}

// TestDrawnAhead: what a node draws from the origin is shared, also of an
// object that its fill has not come to.
func TestDrawnAhead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.node("node", 0)
	for k := range 20 { // in front of it, and going nowhere
		n.join(p2ptest.NewHolding(p2ptest.Tree(p2ptest.Bytes(1000, uint64(100+k)))), noOrigin, true)
	}
	data := p2ptest.Bytes(zooSize, 16)
	ahead := p2ptest.NewHolding(p2ptest.Tree(data))
	n.join(ahead, w.from(data), true)
	filled(t, data, ahead)

	late := p2ptest.NewHolding(p2ptest.Tree(data))
	w.node("late", 0).join(late, noOrigin, true)
	filled(t, data, late)
}
