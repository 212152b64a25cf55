package tracker_test

import (
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p/tracker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	interval = 10 * time.Second
	ttl      = 15 * time.Second
)

// A bench is a tracker of one swarm under a clock that the test moves.
type bench struct {
	t      testing.TB
	now    time.Time
	server *tracker.Server
	id     tracker.SwarmID
	pieces int
}

func newBench(t testing.TB, pieces int) *bench {
	b := &bench{t: t, now: time.Unix(1e9, 0), id: tracker.SwarmID{1}, pieces: pieces}
	b.restart()
	t.Cleanup(func() {
		if err := b.server.Audit(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// restart makes the tracker forget everything.
func (b *bench) restart() {
	b.server = tracker.New(tracker.Options{
		Interval: interval, LeaseTTL: ttl, Now: func() time.Time { return b.now }, Logger: slog.New(slog.DiscardHandler),
	})
}

func bits(n int, have ...int) tracker.Bitmap {
	m := tracker.NewBitmap(n)
	for _, i := range have {
		m.Set(i)
	}
	return m
}

// announce says that node is in the swarm and holds the given pieces.
func (b *bench) announce(node string, have ...int) []tracker.Peer {
	b.t.Helper()
	p, err := b.server.Announce(tracker.Announce{
		Node: node, Addr: node + ":1",
		Swarms: []tracker.Holding{{Swarm: b.id, Pieces: b.pieces, Have: bits(b.pieces, have...)}},
	})
	if err != nil {
		b.t.Fatalf("announce %s: %v", node, err)
	}
	return p.Swarms[b.id]
}

func (b *bench) request(r tracker.LeaseRequest) tracker.Lease {
	b.t.Helper()
	r.Swarm = b.id
	l, err := b.server.Lease(r)
	if err != nil {
		b.t.Fatalf("lease %+v: %v", r, err)
	}
	return l
}

// next asks for the next pieces in order.
func (b *bench) next(node string, most int) tracker.Lease {
	b.t.Helper()
	return b.request(tracker.LeaseRequest{Node: node, Want: -1, Max: most})
}

func (b *bench) want(node string, i int, unheld bool) tracker.Lease {
	b.t.Helper()
	return b.request(tracker.LeaseRequest{Node: node, Want: i, Unheld: unheld, Max: 1})
}

func (b *bench) done(node string, pieces ...int) {
	b.t.Helper()
	b.request(tracker.LeaseRequest{Node: node, Want: -1, Done: pieces})
}

func (b *bench) failed(node string, pieces ...int) {
	b.t.Helper()
	b.request(tracker.LeaseRequest{Node: node, Want: -1, Failed: pieces})
}

// is fails the test unless l leases the pieces [first, first+count) and leaves open open.
func (b *bench) is(l tracker.Lease, first, count, open int) {
	b.t.Helper()
	if l.Count != count || (count > 0 && l.First != first) || l.Open != open {
		b.t.Errorf("leased %d pieces from %d on with %d open, want %d from %d on with %d open",
			l.Count, l.First, l.Open, count, first, open)
	}
}

func TestLease(t *testing.T) {
	for _, test := range []struct {
		name   string
		pieces int
		run    func(b *bench)
	}{
		{"in order among some", 12, func(b *bench) {
			b.announce("a", 6)
			b.announce("b")
			among := func(node string, most int, spans ...tracker.Span) tracker.Lease {
				return b.request(tracker.LeaseRequest{Node: node, Want: -1, Max: most, Among: spans})
			}
			b.is(among("a", 9, tracker.Span{First: 5, Count: 3}, tracker.Span{First: 1, Count: 2}), 5, 1, 11)
			b.is(among("b", 9, tracker.Span{First: 5, Count: 3}, tracker.Span{First: 1, Count: 2}), 7, 1, 11)
			b.is(among("b", 9, tracker.Span{First: 5, Count: 3}, tracker.Span{First: 1, Count: 2}), 1, 2, 11)
			b.is(among("b", 9, tracker.Span{First: 5, Count: 3}, tracker.Span{First: 1, Count: 2}), 0, 0, 11)
			b.failed("a", 5)
			b.is(among("b", 9, tracker.Span{First: 5, Count: 3}, tracker.Span{First: 3, Count: 1}), 3, 1, 11)
			b.is(among("b", 9, tracker.Span{First: 5, Count: 3}), 5, 1, 11)
			b.is(b.next("a", 1), 0, 1, 11)
		}},
		{"each piece to one node at a time", 5, func(b *bench) {
			b.announce("a")
			b.announce("b")
			b.is(b.next("a", 2), 0, 2, 5)
			b.is(b.next("b", 2), 2, 2, 5)
			b.is(b.next("a", 2), 4, 1, 5)
			b.is(b.next("b", 2), 0, 0, 5)
			b.is(b.next("a", 2), 0, 0, 5)
		}},
		{"only reporting leases nothing", 2, func(b *bench) {
			b.announce("a")
			b.is(b.request(tracker.LeaseRequest{Node: "a", Want: -1}), 0, 0, 2)
			b.is(b.next("a", 2), 0, 2, 2)
		}},
		{"no more than 64 pieces", 1000, func(b *bench) {
			b.announce("a")
			b.is(b.request(tracker.LeaseRequest{Node: "a", Want: 5, Max: 1000}), 5, 64, 1000)
		}},
		{"held pieces are passed over", 6, func(b *bench) {
			b.announce("a", 0, 1, 4)
			b.announce("b")
			b.is(b.next("b", 9), 2, 2, 3)
			b.is(b.next("b", 9), 5, 1, 3)
			b.is(b.next("b", 9), 0, 0, 3)
		}},
		{"done is held", 3, func(b *bench) {
			b.announce("a")
			b.announce("b")
			b.next("a", 2)
			b.done("a", 0, 1)
			b.is(b.next("b", 9), 2, 1, 1)
			b.done("b", 2, 2)
			b.is(b.next("a", 9), 0, 0, 0)
		}},
		{"expiry moves a lease", 2, func(b *bench) {
			b.announce("a")
			b.announce("b")
			b.is(b.next("a", 2), 0, 2, 2)
			b.now = b.now.Add(ttl - 1)
			b.is(b.next("b", 2), 0, 0, 2)
			b.now = b.now.Add(1)
			b.is(b.next("b", 2), 0, 2, 2)
			b.failed("a", 0, 1) // too late to mean anything
			b.is(b.next("a", 2), 0, 0, 2)
			b.done("a", 0) // late but true
			b.is(b.want("b", 0, false), 0, 0, 1)
		}},
		{"given back pieces move at once, after all others", 4, func(b *bench) {
			b.announce("a")
			b.announce("b")
			b.is(b.next("a", 2), 0, 2, 4)
			b.failed("a", 0, 1)
			b.is(b.next("b", 9), 2, 2, 4)
			b.is(b.next("b", 9), 0, 1, 4) // one by one: one of them may be what the origin cannot give
			b.is(b.next("a", 9), 1, 1, 4)
			b.is(b.next("a", 9), 0, 0, 4)
		}},
		{"one given back again and again does not keep the others", 3, func(b *bench) {
			b.announce("a")
			b.next("a", 3)
			b.failed("a", 0, 1, 2)
			for _, i := range []int{0, 1, 2, 0, 1} {
				b.now = b.now.Add(time.Second)
				b.is(b.next("a", 1), i, 1, 3)
				b.failed("a", i)
			}
		}},
		{"a reader gets a given back piece before its turn", 4, func(b *bench) {
			b.announce("a")
			b.next("a", 1)
			b.failed("a", 0)
			b.is(b.want("a", 0, false), 0, 1, 4)
		}},
		{"a wanted piece out of order", 9, func(b *bench) {
			b.announce("a")
			b.announce("b")
			b.is(b.want("a", 7, false), 7, 1, 9)
			b.is(b.want("b", 7, false), 0, 0, 9)
			b.is(b.want("b", 7, true), 0, 0, 9) // a live lease stands in the way of that too
			b.is(b.want("a", 7, false), 7, 1, 9)
			b.is(b.request(tracker.LeaseRequest{Node: "b", Want: 5, Max: 9}), 5, 2, 9) // up to the leased one
			b.now = b.now.Add(ttl)
			b.is(b.want("b", 7, false), 7, 1, 9)
		}},
		{"a wanted piece that others hold", 2, func(b *bench) {
			b.announce("a", 0)
			b.announce("b")
			b.is(b.want("b", 0, false), 0, 0, 1)
			b.is(b.want("b", 0, true), 0, 1, 1)
			b.announce("c")
			b.is(b.want("c", 0, true), 0, 0, 1) // b draws it
			b.done("b", 0)
			b.is(b.want("c", 0, true), 0, 1, 1)
		}},
		{"a dead node's pieces are open again", 4, func(b *bench) {
			b.announce("a")
			b.next("a", 2)
			b.done("a", 0)
			b.announce("b", 2)
			b.is(b.next("b", 9), 3, 1, 2)
			for range 3 { // b lives, a is silent
				b.now = b.now.Add(interval)
				b.announce("b", 2)
			}
			b.is(b.want("b", 0, false), 0, 0, 2) // three intervals are not too long
			b.now = b.now.Add(interval)
			b.is(b.next("b", 9), 0, 2, 3)
			if peers := b.announce("b", 2); len(peers) != 0 {
				b.t.Errorf("the dead node is still a peer: %v", peers)
			}
		}},
		{"a lease request is a sign of life", 2, func(b *bench) {
			b.announce("a", 0)
			b.announce("b")
			for range 8 {
				b.now = b.now.Add(interval)
				b.done("a")
				b.announce("b")
			}
			b.is(b.want("b", 0, false), 0, 0, 1)
		}},
		{"leaving gives leases and pieces up", 4, func(b *bench) {
			b.announce("a", 0)
			b.announce("b")
			b.is(b.next("a", 2), 1, 2, 3)
			if _, err := b.server.Announce(tracker.Announce{Node: "a"}); err != nil {
				b.t.Fatal(err)
			}
			b.is(b.next("b", 9), 0, 4, 4)
			if _, err := b.server.Lease(tracker.LeaseRequest{Node: "a", Swarm: b.id, Want: -1}); err != tracker.ErrUnknown {
				b.t.Errorf("lease after leaving: %v, want ErrUnknown", err)
			}
		}},
		{"a restart is made good by announces", 4, func(b *bench) {
			b.announce("a", 0)
			b.announce("b", 1)
			b.next("a", 1)
			b.restart()
			if _, err := b.server.Lease(tracker.LeaseRequest{Node: "a", Swarm: b.id, Want: -1, Max: 1, Done: []int{2}}); err != tracker.ErrUnknown {
				b.t.Errorf("lease before the announce: %v, want ErrUnknown", err)
			}
			b.announce("a", 0, 2)
			if peers := b.announce("b", 1); len(peers) != 1 || peers[0] != (tracker.Peer{Node: "a", Addr: "a:1"}) {
				b.t.Errorf("peers %v", peers)
			}
			b.is(b.next("b", 9), 3, 1, 1)
		}},
		{"an announce replaces what was held", 3, func(b *bench) {
			b.announce("a", 0, 1)
			b.announce("a", 1, 2)
			b.announce("b")
			b.is(b.next("b", 9), 0, 1, 1)
		}},
		{"done outlives an announce that was under way, and no second one", 2, func(b *bench) {
			b.announce("a")
			b.announce("b")
			b.next("a", 1)
			b.done("a", 0)
			b.announce("a") // made before the piece came
			b.is(b.want("b", 0, false), 0, 0, 1)
			b.announce("a") // the node lost it
			b.is(b.want("b", 0, false), 0, 1, 2)
		}},
		{"the order starts at the first open piece again", 4, func(b *bench) {
			b.announce("a", 0, 1, 2, 3)
			b.announce("b")
			b.is(b.next("b", 1), 0, 0, 0)
			b.announce("a", 1, 2, 3)
			b.is(b.next("b", 1), 0, 1, 1)
		}},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(newBench(t, test.pieces)) })
	}
}

// TestReadersFirst: while a reader waits for a piece that it was leased, fills of all
// swarms get one piece at a time; what readers come to is leased as always.
func TestReadersFirst(t *testing.T) {
	b := newBench(t, 40)
	for _, node := range []string{"reader", "a", "b"} {
		b.announce(node)
	}
	other := tracker.SwarmID{2}
	announce := tracker.Announce{Node: "b", Swarms: []tracker.Holding{
		{Swarm: b.id, Pieces: 40, Have: bits(40)}, {Swarm: other, Pieces: 9, Have: bits(9)},
	}}
	if _, err := b.server.Announce(announce); err != nil {
		t.Fatal(err)
	}
	b.is(b.next("a", 2), 0, 2, 40)
	b.is(b.want("reader", 30, false), 30, 1, 40)
	if l := b.next("b", 2); l.Count != 0 || l.Again == 0 {
		t.Errorf("while a reader waits a fill is leased %+v", l)
	}
	if l, err := b.server.Lease(tracker.LeaseRequest{Node: "b", Swarm: other, Want: -1, Max: 2}); err != nil || l.Count != 1 {
		t.Errorf("while a reader waits the fill of another object is leased %+v, %v", l, err)
	}
	if l := b.request(tracker.LeaseRequest{Node: "b", Want: -1, Max: 2, Read: true, Among: []tracker.Span{{First: 20, Count: 4}}}); l.First != 20 || l.Count == 0 {
		t.Errorf("what a reader comes to: %+v", l)
	}
	b.done("a", 0, 1)
	b.is(b.next("a", 2), 2, 1, 38)
	b.done("reader", 30)
	if l := b.next("b", 2); l.Count == 0 {
		t.Errorf("when the reader has its piece a fill is leased %+v", l)
	}
	b.want("reader", 35, false)
	b.now = b.now.Add(2 * time.Second)
	if l := b.next("b", 2); l.Count == 0 {
		t.Errorf("long after a reader was leased a piece a fill is leased %+v", l)
	}
}

func TestPeers(t *testing.T) {
	b := newBench(t, 2)
	if peers := b.announce("a"); len(peers) != 0 {
		t.Errorf("alone, but with peers %v", peers)
	}
	if peers := b.announce("b"); len(peers) != 1 || peers[0].Node != "a" {
		t.Errorf("peers of b: %v, want a", peers)
	}
	b.announce("seed-1", 0, 1)
	if peers := b.announce("seed-2", 0, 1); slices.ContainsFunc(peers, func(p tracker.Peer) bool { return p.Node == "seed-1" }) || len(peers) != 2 {
		t.Errorf("peers of a node that holds everything: %v, want those that do not", peers)
	}
	if peers := b.announce("a", 0); len(peers) != 3 {
		t.Errorf("peers of a: %v, want all three", peers)
	}
	// A node that cannot be reached is nobody's peer.
	if _, err := b.server.Announce(tracker.Announce{Node: "deaf", Swarms: []tracker.Holding{{Swarm: b.id, Pieces: 2}}}); err != nil {
		t.Fatal(err)
	}
	if peers := b.announce("a"); len(peers) != 3 {
		t.Errorf("peers of a: %v, want the three that have an address", peers)
	}

	for i := range 200 {
		b.announce(fmt.Sprintf("n-%d", i))
	}
	seen := make(map[string]bool)
	for range 50 {
		peers := b.announce("a")
		if len(peers) != 50 {
			t.Fatalf("%d peers in one answer, want 50 of 204", len(peers))
		}
		for _, p := range peers {
			if seen[p.Node] = true; p.Node == "a" {
				t.Error("a is its own peer")
			}
		}
	}
	if len(seen) < 150 {
		t.Errorf("50 answers name %d of 204 nodes: not a random part", len(seen))
	}
}

// TestKeeper: of the nodes of a zone that hold everything exactly one is the keeper,
// another one when that goes, and of many swarms each node keeps some.
func TestKeeper(t *testing.T) {
	b := newBench(t, 2)
	keeps := func(node, zone string, have ...int) bool {
		t.Helper()
		bits := tracker.NewBitmap(2)
		for _, i := range have {
			bits.Set(i)
		}
		p, err := b.server.Announce(tracker.Announce{Node: node, Zone: zone, Swarms: []tracker.Holding{{Swarm: b.id, Pieces: 2, Have: bits}}})
		if err != nil {
			t.Fatal(err)
		}
		return slices.Equal(p.Keeps, []tracker.SwarmID{b.id})
	}
	if keeps("part", "east", 0) {
		t.Error("a node with a part is the keeper")
	}
	if !keeps("0", "east", 0, 1) || !keeps("far", "west", 0, 1) {
		t.Error("the only node of its zone that holds everything is not the keeper")
	}
	var keepers []string
	for round := range 2 {
		keepers = nil
		for i := range 8 {
			if name := fmt.Sprint(i); keeps(name, "east", 0, 1) {
				keepers = append(keepers, name)
			}
		}
		if round == 1 && len(keepers) != 1 {
			t.Fatalf("keepers are %v", keepers)
		}
	}
	keeps(keepers[0], "east", 0)
	others := 0
	for i := range 8 {
		if name := fmt.Sprint(i); name != keepers[0] && keeps(name, "east", 0, 1) {
			others++
		}
	}
	if others != 1 || !keeps("far", "west", 0, 1) {
		t.Errorf("%d keepers when the one before has let go", others)
	}

	counts := make(map[string]int)
	var swarms []tracker.Holding
	all := tracker.NewBitmap(1)
	all.Set(0)
	for i := range 64 {
		swarms = append(swarms, tracker.Holding{Swarm: tracker.SwarmID{byte(i), 1}, Pieces: 1, Have: all})
	}
	for range 2 {
		for _, node := range []string{"a", "b", "c"} {
			p, err := b.server.Announce(tracker.Announce{Node: node, Swarms: swarms})
			if err != nil {
				t.Fatal(err)
			}
			counts[node] = len(p.Keeps)
		}
	}
	if counts["a"]+counts["b"]+counts["c"] != 64 || min(counts["a"], counts["b"], counts["c"]) == 0 {
		t.Errorf("of 64 swarms the nodes keep %v", counts)
	}
}

func TestRefused(t *testing.T) {
	b := newBench(t, 8)
	b.announce("a", 3)
	holding := tracker.Holding{Swarm: b.id, Pieces: 8}
	long := strings.Repeat("x", 300)
	for name, a := range map[string]tracker.Announce{
		"no name":              {Swarms: []tracker.Holding{holding}},
		"a long name":          {Node: long, Swarms: []tracker.Holding{holding}},
		"no port":              {Node: "b", Addr: "host", Swarms: []tracker.Holding{holding}},
		"no host":              {Node: "b", Addr: ":1", Swarms: []tracker.Holding{holding}},
		"no address":           {Node: "b", Addr: "0.0.0.0:1", Swarms: []tracker.Holding{holding}},
		"no IPv6 address":      {Node: "b", Addr: "[::]:1", Swarms: []tracker.Holding{holding}},
		"no mapped address":    {Node: "b", Addr: "[::ffff:0.0.0.0]:1", Swarms: []tracker.Holding{holding}},
		"no address of a link": {Node: "b", Addr: "[::%eth0]:1", Swarms: []tracker.Holding{holding}},
		"a long address":       {Node: "b", Addr: long + ":1", Swarms: []tracker.Holding{holding}},
		"no pieces":            {Node: "b", Swarms: []tracker.Holding{{Swarm: b.id}}},
		"negative pieces":      {Node: "b", Swarms: []tracker.Holding{{Swarm: b.id, Pieces: -1}}},
		"too many pieces":      {Node: "b", Swarms: []tracker.Holding{{Swarm: b.id, Pieces: 4*piece.TargetPieces + 1}}},
		"a short bitmap":       {Node: "b", Swarms: []tracker.Holding{{Swarm: tracker.SwarmID{2}, Pieces: 9, Have: bits(8)}}},
		"a long bitmap":        {Node: "b", Swarms: []tracker.Holding{{Swarm: b.id, Pieces: 8, Have: bits(9)}}},
		"another size":         {Node: "b", Swarms: []tracker.Holding{{Swarm: tracker.SwarmID{2}, Pieces: 8}, {Swarm: b.id, Pieces: 7}}},
		"a swarm twice":        {Node: "b", Swarms: []tracker.Holding{holding, holding}},
		"too many swarms":      {Node: "b", Swarms: make([]tracker.Holding, tracker.MaxSwarms+1)},
		"of a known node too":  {Node: "a", Swarms: []tracker.Holding{{Swarm: b.id, Pieces: 7}}},
	} {
		if _, err := b.server.Announce(a); err == nil {
			t.Errorf("an announce with %s is accepted", name)
		}
	}
	for name, r := range map[string]tracker.LeaseRequest{
		"no name":            {Want: -1},
		"a negative maximum": {Node: "a", Want: -1, Max: -1},
		"a piece too far":    {Node: "a", Want: 8, Max: 1},
		"a negative piece":   {Node: "a", Want: -2, Max: 1},
		"too far a report":   {Node: "a", Want: -1, Done: []int{1, 8}},
		"a negative report":  {Node: "a", Want: -1, Failed: []int{-1}},
		"no pieces":          {Node: "a", Want: -1, Max: 1, Among: []tracker.Span{{First: 2}}},
		"negative pieces":    {Node: "a", Want: -1, Max: 1, Among: []tracker.Span{{First: -1, Count: 2}}},
		"pieces too far":     {Node: "a", Want: -1, Max: 1, Among: []tracker.Span{{First: 7, Count: 2}}},
		"endless pieces":     {Node: "a", Want: -1, Max: 1, Among: []tracker.Span{{First: 1, Count: math.MaxInt}}},
		"too many spans":     {Node: "a", Want: -1, Max: 1, Among: slices.Repeat([]tracker.Span{{First: 0, Count: 1}}, tracker.MaxSpans+1)},
		"too many pieces":    {Node: "a", Want: -1, Max: 1, Among: slices.Repeat([]tracker.Span{{First: 0, Count: 4 * piece.TargetPieces}}, 2)},
		"too many reports":   {Node: "a", Want: -1, Done: make([]int, 4*piece.TargetPieces+1)},
	} {
		r.Swarm = b.id
		if _, err := b.server.Lease(r); err == nil {
			t.Errorf("a lease request with %s is accepted", name)
		}
	}
	for name, r := range map[string]tracker.LeaseRequest{
		"an unknown node":  {Node: "b", Swarm: b.id, Want: -1, Max: 1},
		"an unknown swarm": {Node: "a", Swarm: tracker.SwarmID{2}, Want: -1, Max: 1},
	} {
		if _, err := b.server.Lease(r); err != tracker.ErrUnknown {
			t.Errorf("a lease for %s: %v, want ErrUnknown", name, err)
		}
	}
	// Nothing of all that has left a trace.
	if peers := b.announce("a", 3); len(peers) != 0 {
		t.Errorf("peers %v", peers)
	}
	b.is(b.next("a", 9), 0, 3, 7)
}

// TestSpareBits: bits beyond the last piece are nobody's.
func TestSpareBits(t *testing.T) {
	b := newBench(t, 3)
	for range 2 {
		_, err := b.server.Announce(tracker.Announce{Node: "a", Swarms: []tracker.Holding{{Swarm: b.id, Pieces: 3, Have: tracker.Bitmap{0xff}}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	b.is(b.next("a", 9), 0, 0, 0)
	b.announce("a")
	b.is(b.next("a", 9), 0, 3, 3)
}

// TestNoStarvation: whatever nodes die, restart empty, forget, come late, draw
// too slowly or give back, and whenever the tracker restarts, every piece ends held.
func TestNoStarvation(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		b := newBench(t, 1+r.IntN(40))
		type node struct {
			name  string
			alive bool
			have  map[int]bool
			lease []int
			done  []int
		}
		var nodes []*node
		for i := range 1 + r.IntN(6) {
			nodes = append(nodes, &node{name: fmt.Sprintf("n%d", i), alive: true, have: make(map[int]bool)})
		}
		announce := func(n *node) {
			var have []int
			for i := range n.have {
				have = append(have, i)
			}
			b.announce(n.name, have...)
		}
		for _, n := range nodes {
			announce(n)
		}
		step := func(n *node, calm bool) {
			what := r.IntN(20)
			switch {
			case !n.alive:
				if what == 0 || calm { // it restarts, with or without its cache
					if n.alive = true; r.IntN(2) == 0 {
						clear(n.have)
					}
					n.lease, n.done = nil, nil
					announce(n)
				}
				return
			case what == 0 && !calm:
				n.alive = false
				return
			case what == 1:
				announce(n)
			case what == 2 && !calm:
				b.restart()
			case what < 6: // peers pass pieces on
				for i := range nodes[r.IntN(len(nodes))].have {
					n.have[i] = true
				}
			}
			if len(n.lease) > 0 && (what%2 == 0 || calm) {
				for _, i := range n.lease {
					n.have[i] = true
				}
				n.lease, n.done = nil, n.lease
			}
			req := tracker.LeaseRequest{Node: n.name, Swarm: b.id, Want: -1, Max: 1 + r.IntN(4), Done: n.done}
			if what == 7 && !calm {
				req.Failed, n.lease = n.lease, nil
			}
			if len(n.lease) > 0 {
				req.Max = 0
			}
			l, err := b.server.Lease(req)
			if err == tracker.ErrUnknown {
				announce(n)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			n.done = nil
			for i := l.First; i < l.First+l.Count; i++ {
				n.lease = append(n.lease, i)
			}
		}
		for range 300 {
			b.now = b.now.Add(time.Duration(r.IntN(3000)) * time.Millisecond)
			step(nodes[r.IntN(len(nodes))], false)
			if err := b.server.Audit(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		// Now let the survivors live and announce in time.
		held := func() int {
			all := make(map[int]bool)
			for _, n := range nodes {
				for i := range n.have {
					if n.alive {
						all[i] = true
					}
				}
			}
			return len(all)
		}
		for round := 0; held() < b.pieces; round++ {
			if round == 200 {
				t.Fatalf("seed %d: %d of %d pieces are held by %d nodes", seed, held(), b.pieces, len(nodes))
			}
			for _, n := range nodes {
				b.now = b.now.Add(interval / 10)
				if n.alive {
					announce(n)
				}
				step(n, true)
			}
		}
	}
}
