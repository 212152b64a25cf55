package tracker_test

import (
	"testing"

	"github.com/spate-project/spate/p2p/tracker"
)

func TestStats(t *testing.T) {
	b := newBench(t, 10)
	if got := b.server.Stats(); got != (tracker.Stats{}) {
		t.Errorf("an empty tracker has %+v", got)
	}
	b.announce("a", 0, 1)
	b.announce("b", 1)
	if _, err := b.server.Lease(tracker.LeaseRequest{Node: "a", Swarm: b.id, Want: -1, Max: 4}); err != nil {
		t.Fatal(err)
	}
	expect := func(when string, want tracker.Stats) {
		t.Helper()
		got := b.server.Stats()
		if got.Memory <= 0 {
			t.Errorf("%s: %d bytes of memory are used", when, got.Memory)
		}
		if got.Memory = 0; got != want {
			t.Errorf("%s: %+v, want %+v", when, got, want)
		}
	}
	expect("with a lease", tracker.Stats{Nodes: 2, Swarms: 1, Leases: 4, Open: 8})
	if _, err := b.server.Lease(tracker.LeaseRequest{Node: "a", Swarm: b.id, Want: -1, Done: []int{2}, Failed: []int{3}}); err != nil {
		t.Fatal(err)
	}
	expect("with one piece drawn and one given back", tracker.Stats{Nodes: 2, Swarms: 1, Leases: 2, Open: 7})
	b.now = b.now.Add(ttl)
	expect("with its leases over", tracker.Stats{Nodes: 2, Swarms: 1, Open: 7})
	b.now = b.now.Add(4 * interval)
	if got := b.server.Stats(); got != (tracker.Stats{}) {
		t.Errorf("with all nodes gone: %+v", got)
	}
}
