package tracker_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/spate-project/spate/p2p/tracker"
)

// settle announces node in zone and returns the names of its peers, sorted.
func (b *bench) settle(node, zone string, have ...int) []string {
	b.t.Helper()
	p, err := b.server.Announce(tracker.Announce{
		Node: node, Addr: node + ":1", Zone: zone,
		Swarms: []tracker.Holding{{Swarm: b.id, Pieces: b.pieces, Have: bits(b.pieces, have...)}},
	})
	if err != nil {
		b.t.Fatalf("announce %s: %v", node, err)
	}
	names := []string{}
	for _, p := range p.Swarms[b.id] {
		names = append(names, p.Node)
	}
	slices.Sort(names)
	return names
}

func (b *bench) peersAre(node, zone string, want ...string) {
	b.t.Helper()
	if got := b.settle(node, zone); !slices.Equal(got, want) {
		b.t.Errorf("peers of %s in zone %q: %v, want %v", node, zone, got, want)
	}
}

func TestZones(t *testing.T) {
	b := newBench(t, 4)
	for _, n := range []string{"a1", "a2", "a3"} {
		b.settle(n, "a")
	}
	for _, n := range []string{"b1", "b2"} {
		b.settle(n, "b")
	}
	b.settle("c1", "")
	b.peersAre("a1", "a", "a2", "a3", "b1", "c1") // the bridge
	b.peersAre("a2", "a", "a1", "a3")
	b.peersAre("b1", "b", "a1", "b2", "c1")
	b.peersAre("b2", "b", "b1")
	b.peersAre("c1", "", "a1", "b1")

	// What another zone holds is not drawn from the origin again.
	b.settle("a2", "a", 0, 1, 2)
	b.is(b.next("b2", 9), 3, 1, 1)

	// A bridge that moves, dies, or cannot be reached any more has a successor.
	b.settle("a1", "b")
	b.settle("a2", "a")
	b.peersAre("a2", "a", "a3", "b1", "c1")
	b.now = b.now.Add(4 * interval)
	b.settle("b2", "b")
	b.settle("c1", "")
	b.peersAre("b2", "b", "c1")
	if _, err := b.server.Announce(tracker.Announce{
		Node: "b2", Zone: "b", Swarms: []tracker.Holding{{Swarm: b.id, Pieces: 4}},
	}); err != nil {
		t.Fatal(err)
	}
	b.settle("b3", "b")
	b.peersAre("c1", "", "b3")
}

// TestZoneTraffic: each node asks whoever it is told of for each piece once.
// Whatever nodes come and leave, each zone gets at most one copy from elsewhere.
func TestZoneTraffic(t *testing.T) {
	const pieces = 8
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 2))
		b := newBench(t, pieces)
		zoneOf, have := map[string]string{}, map[string][]int{}
		copies := map[string]int{}
		for i := range 30 {
			n := fmt.Sprintf("n%d", i)
			zoneOf[n] = []string{"", "x", "y"}[r.IntN(3)]
			b.settle(n, zoneOf[n])
		}
		whole := func() bool {
			for n := range zoneOf {
				if len(have[n]) < pieces {
					return false
				}
			}
			return true
		}
		for rounds := 0; !whole(); rounds++ {
			if rounds == 100 {
				t.Fatalf("seed %d: after %d rounds not every node has everything", seed, rounds)
			}
			for n, zone := range zoneOf {
				b.now = b.now.Add(interval / 100)
				if l := b.next(n, 1); l.Count > 0 {
					have[n] = append(have[n], l.First)
					b.done(n, l.First)
				}
				for _, peer := range b.settle(n, zone, have[n]...) {
					for _, i := range have[peer] {
						if slices.Contains(have[n], i) {
							continue
						}
						have[n] = append(have[n], i)
						if zoneOf[peer] != zone {
							copies[zone]++
						}
					}
				}
			}
		}
		for zone, n := range copies {
			if n > pieces {
				t.Errorf("seed %d: zone %q got %d pieces from other zones, of %d", seed, zone, n, pieces)
			}
		}
	}
}

func TestBacklog(t *testing.T) {
	b := newBench(t, 100)
	ask := func(node string, backlog int) int {
		l := b.request(tracker.LeaseRequest{Node: node, Want: -1, Max: 1, Backlog: backlog})
		if (l.Again > 0) == (l.Count > 0) {
			t.Errorf("%d pieces were given, and it is to ask again after %v", l.Count, time.Duration(l.Again))
		}
		if l.Count > 0 {
			b.done(node, l.First)
		}
		return l.Count
	}
	b.announce("a")
	if ask("a", 50) != 1 {
		t.Error("who asks alone is refused for its backlog")
	}
	b.announce("b")
	b.announce("c")
	ask("b", 1)
	ask("c", 0)
	for _, step := range []struct {
		node    string
		backlog int
		want    int
	}{
		{"a", 4, 0}, {"b", 1, 1}, {"c", 0, 1}, {"a", 2, 1}, {"a", 3, 0},
		{"b", 3, 1}, {"c", 3, 1}, {"a", 3, 1}, {"a", 5, 0},
	} {
		if got := ask(step.node, step.backlog); got != step.want {
			t.Errorf("%s with a backlog of %d gets %d pieces, want %d", step.node, step.backlog, got, step.want)
		}
	}
	// What a reader waits for is leased all the same.
	if l := b.request(tracker.LeaseRequest{Node: "a", Want: 99, Max: 1, Backlog: 50}); l.Count != 1 {
		t.Error("a reader is refused for the node's backlog")
	}
	// A node that asks no more is not counted.
	b.now = b.now.Add(3 * time.Second)
	if ask("a", 9) != 1 {
		t.Error("who asks alone again is refused for its backlog")
	}
}
