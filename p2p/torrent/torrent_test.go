package torrent_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/link"
	"github.com/spate-project/spate/p2p/p2ptest"
	"github.com/spate-project/spate/p2p/torrent"
)

func rangeOf(off, n int64) string { return fmt.Sprintf("bytes=%d-%d", off, off+n-1) }

// TestSwarm starts nodes together that hold nothing, with objects of all kinds of sizes.
func TestSwarm(t *testing.T) {
	w := newWorld(t)
	sizes := []int64{1, 100 << 10, 256 << 10, 256<<10 + 1, 9<<20 + 12345}
	var nodes []*node
	for k := range 4 {
		nodes = append(nodes, w.node(fmt.Sprintf("node-%d", k), 0))
	}
	var total int64
	all := make([][]*p2ptest.Holding, len(sizes))
	for s, size := range sizes {
		data := p2ptest.Bytes(size, uint64(s))
		total += size
		for _, n := range nodes {
			h := p2ptest.NewHolding(p2ptest.Tree(data))
			n.join(h, w.from(data), true)
			all[s] = append(all[s], h)
		}
	}
	for s, size := range sizes {
		filled(t, p2ptest.Bytes(size, uint64(s)), all[s]...)
	}
	copies := float64(w.origin.Load()) / float64(total)
	t.Logf("origin copies: %.3f", copies)
	if copies > 1.3 {
		t.Errorf("the origin sent %.2f copies to %d nodes", copies, len(nodes))
	}
}

// TestMaxConns: nodes that may have no more than the least number of connections
// bring all objects to each other all the same, and keep to that number while
// there is more to want.
func TestMaxConns(t *testing.T) {
	w := newWorld(t)
	w.maxConns = 1
	var nodes []*node
	for k := range 6 {
		nodes = append(nodes, w.node(fmt.Sprintf("node-%d", k), 0))
	}
	const objects, pieces = 3, 12 // the last of which nobody has
	holdings := make([][]*p2ptest.Holding, objects)
	for s := range objects {
		data := p2ptest.Bytes(pieces*piece.MinLength, uint64(s))
		for k, n := range nodes {
			h := partly(t, data, func(i int) bool { return i%len(nodes) == k && i < pieces-1 })
			n.join(h, noOrigin, true)
			holdings[s] = append(holdings[s], h)
		}
	}
	ctx := soon(t)
	for s := range objects {
		for k, h := range holdings[s] {
			for i := range pieces - 1 {
				if err := h.Wait(ctx, i); err != nil {
					t.Fatalf("node %d has %d pieces of object %d: %v", k, h.Count(), s, err)
				}
			}
		}
	}
	for k, n := range nodes {
		eventually(t, "a node keeps to its number of connections", func() bool {
			conns := 0
			for s := range objects {
				st, _ := n.Stats(digestOf(holdings[s][k]))
				conns += st.Peers
			}
			return 0 < conns && conns <= objects*torrent.Few
		})
	}
}

// TestEngine is of what an engine refuses.
func TestEngine(t *testing.T) {
	w := newWorld(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e, err := torrent.New(torrent.Options{
		Identity: newIdentity(t, w.ca, "node", time.Hour), Listener: ln, Addr: "node.example:6881", Link: link.New(0, 0), Logger: quiet(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- e.Run(ctx) }()
	if e.Addr() != "node.example:6881" {
		t.Errorf("its address is %s", e.Addr())
	}
	h := p2ptest.NewHolding(p2ptest.Tree(p2ptest.Bytes(1<<20, 1)))
	s, err := e.Join(h)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Join(h); err == nil {
		t.Error("an object has joined twice")
	}
	s.Leave()
	s.Leave()
	if _, err = e.Join(h); err != nil {
		t.Errorf("an object that left cannot join again: %v", err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run returned %v, want context.Canceled", err)
	}
	if _, err := e.Join(p2ptest.NewHolding(p2ptest.Tree(p2ptest.Bytes(1<<20, 2)))); err == nil {
		t.Error("an object joined an engine that has ended")
	}
	m := p2p.New(p2p.Options{Node: "node", Engine: e, Logger: quiet()})
	shared := p2ptest.Full(p2ptest.Bytes(1<<20, 3))
	if err := m.Join(shared, p2p.JoinOptions{Origin: noOrigin}); err == nil {
		t.Error("what cannot be shared has joined a mesh")
	}
	if _, ok := m.Stats(digestOf(shared)); ok {
		t.Error("what was refused is in the mesh")
	}
	s.Leave()
	if _, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		t.Error("the listener is open still")
	}
	// The holding lives on, and what comes into it tells the engine nothing.
	filler := partly(t, p2ptest.Bytes(1<<20, 1), func(int) bool { return true })
	for i := range h.Tree().Object().Pieces() {
		p := make([]byte, h.Tree().Object().PieceLength)
		n, _ := filler.ReadAt(p, int64(i)*h.Tree().Object().PieceLength)
		v, err := h.Tree().Verify(i, p[:n])
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Put(v); err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkStorm starts four empty nodes at once behind links of 25 MiB/s, the
// origin's too. The bound is one copy at that rate.
func BenchmarkStorm(b *testing.B) {
	const count, size, rate = 4, 128 << 20, 25 << 20
	data := p2ptest.Bytes(size, 1)
	tree := p2ptest.Tree(data)
	for b.Loop() {
		w := newWorld(b)
		url := w.serve(data, rate)
		var nodes []*node
		for k := range count {
			nodes = append(nodes, w.node(fmt.Sprintf("node-%d", k), rate))
		}
		start := time.Now()
		var wg sync.WaitGroup
		for _, n := range nodes {
			h := p2ptest.NewHolding(tree)
			n.join(h, w.http(url, n.link), true)
			wg.Go(func() { h.WaitAll(b.Context()) })
		}
		wg.Wait()
		b.ReportMetric(float64(size)/rate/time.Since(start).Seconds(), "efficiency")
		b.ReportMetric(float64(w.origin.Load())/size, "copies")
		var wasted int64
		for _, n := range nodes {
			s, _ := n.Stats(tree.Object().Digest)
			wasted += s.Wasted
			n.stop()
		}
		b.ReportMetric(float64(wasted), "wasted-blocks")
	}
}

// A watched holding counts its watchers and, before the first, lets a piece arrive.
type watched struct {
	*p2ptest.Holding
	watchers int
	arrive   func()
}

func (w *watched) OnPresent(f func(i int)) {
	if w.watchers++; w.watchers == 1 {
		w.arrive()
	}
	w.Holding.OnPresent(f)
}

// TestJoinWatches: a piece that comes while its object joins is shared, and a
// Join that fails leaves nothing behind.
func TestJoinWatches(t *testing.T) {
	w := newWorld(t)
	const late = 3
	data := p2ptest.Bytes(zooSize, 11)
	h := &watched{Holding: partly(t, data, func(i int) bool { return i != late })}
	h.arrive = func() {
		off, n := h.Tree().Object().Span(late)
		v, err := h.Tree().Verify(late, data[off:off+n])
		if err != nil {
			t.Error(err)
		} else if err := h.Put(v); err != nil {
			t.Error(err)
		}
	}
	holder := w.node("holder", 0)
	holder.join(h, noOrigin, false)
	if _, err := holder.engine.Join(h); err == nil {
		t.Error("an object has joined twice")
	}
	if h.watchers != 1 {
		t.Errorf("two Joins, one of which failed, left %d watchers", h.watchers)
	}
	reader, read := w.node("reader", 0), p2ptest.NewHolding(h.Tree())
	reader.join(read, noOrigin, true)
	filled(t, data, read)
}
