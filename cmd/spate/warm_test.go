package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spate-project/spate/cmd/internal/agent"
	"github.com/spate-project/spate/prefetch/orders"
)

// warm changes the warm set of the pool gpu, as warm add or warm rm does.
func (s *site) warm(do, ref string, flags ...string) {
	s.t.Helper()
	if _, err := s.spate(append([]string{"warm", do, ref, "--pool", "gpu", "--sign-key", s.keys.Sign()}, flags...)...); err != nil {
		s.t.Fatal(err)
	}
}

// warmEntry returns how far the node is with the entry called ref; its State is empty where the set has no such one.
func (n *node) warmEntry(ref string) (e agent.WarmEntry) {
	n.t.Helper()
	for _, s := range n.status().Warm {
		for _, e := range s.Entries {
			if e.Name() == ref {
				return e
			}
		}
	}
	return e
}

// warms waits until the node holds the entry called ref.
func (n *node) warms(ref string) {
	n.t.Helper()
	n.eventually(n.name+" holds "+ref, func() bool { return n.warmEntry(ref).State == orders.Ready })
}

// cached returns what the node's cache holds.
func (n *node) cached() (v agent.CacheView) {
	n.t.Helper()
	out, err := n.spate("cache", "ls", "--data", n.data(), "--output", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &v)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return v
}

// pins returns what pins objects in the node's cache.
func (n *node) pins() (names string) {
	n.t.Helper()
	for _, o := range n.cached().Objects {
		names += strings.Join(o.Pins, " ") + "\n"
	}
	return names
}

// TestWarm: an agent of the pool begins by itself, in order of priority; one that
// is killed in the middle goes on by piece; without a registry the last set holds;
// what was taken out is no longer pinned.
func TestWarm(t *testing.T) {
	s := newSite(t, []string{"a"})
	const size = 12 << 20
	large := s.pushModel("large", size, "--sign-key", s.keys.Sign())
	small := s.pushModel("small", 2<<20, "--sign-key", s.keys.Sign())
	s.warm("add", large)
	s.warm("add", small, "--priority", "1")

	began := time.Now()
	n := s.newNode("a", "--label", "pool=gpu", "--limit-prefetch=4MiB")
	n.eventually("the agent has fetched a byte", func() bool {
		return n.metric(n.listen, `spate_received_bytes_total{source="origin"} `) > 0
	})
	t.Logf("from the agent's start to its first fetched byte, as seen by polling: %v", time.Since(began))
	var had int64
	n.eventually("half of the large one is here", func() bool { had = n.warmEntry(large).Have; return had > size/2 })
	if state := n.warmEntry(small).State; state != orders.Ready {
		t.Errorf("what has a higher priority is %s", state)
	}
	n.kill()
	if had >= size {
		t.Fatal("the large one was here before the agent could be killed")
	}

	before := s.sent()
	n.startAgent("--label", "pool=gpu")
	n.warms(large)
	total := n.warmEntry(large).Total
	// What was in flight is fetched again, and no more.
	sent := s.sent() - before
	t.Logf("after the kill the registry sent %d bytes; %d of %d were here", sent, had, total)
	if sent > total-had+3<<20 {
		t.Error("what was here was fetched again")
	}
	if pins := n.pins(); !strings.Contains(pins, "warm:gpu:"+s.registry+"/large@") || !strings.Contains(pins, "warm:gpu:"+s.registry+"/small@") {
		t.Errorf("pinned are %s", pins)
	}

	s.server.Process.Signal(syscall.SIGKILL)
	s.server.Wait()
	n.kill()
	n.startAgent("--label", "pool=gpu")
	n.warms(large)
	n.warms(small)
	if w := n.status().Warm; len(w) != 1 || w[0].Version != 2 || w[0].SignedBy == "" {
		t.Errorf("without a registry the set is %+v", w)
	}

	s.server = s.start("registry", "registry", "--data", filepath.Join(s.dir, "registry"), "--listen", s.registry)
	s.answers(s.registry)
	s.warm("rm", large)
	n.eventually("the large one is not of the set", func() bool { return n.warmEntry(large).State == "" && !strings.Contains(n.pins(), "/large@") })
	if !strings.Contains(n.pins(), "/small@") {
		t.Error("the small one is pinned no more")
	}
	if out, err := s.spate("cache", "rm", large, "--data", n.data()); err != nil {
		t.Errorf("what was taken out cannot be removed: %s, %v", out, err)
	}
}

// TestWarmSeeds: one node of each zone fetches first and the others wait for it;
// when it is gone another one takes its place.
func TestWarmSeeds(t *testing.T) {
	names := []string{"a", "b", "c", "d"}
	s := newSite(t, names)
	ref := s.pushModel("qwen", 24<<20, "--sign-key", s.keys.Sign())
	var nodes []*node
	for i, name := range names {
		nodes = append(nodes, s.newPeer(name, slow, "--label", "pool=gpu", "--zone", []string{"east", "east", "east", "west"}[i]))
	}
	s.eventually("all nodes are known", func() bool {
		out, err := s.spate("placement", ref, "--pool", "gpu")
		return err == nil && strings.Count(out, "east") == 3
	})
	s.warm("add", ref, "--seeds", "1")
	var seed *node
	s.eventually("one node of the east fetches, and the others wait", func() bool {
		fetching, waiting := 0, 0
		for _, n := range nodes[:3] {
			switch e := n.warmEntry(ref); {
			case e.State == orders.Fetching && e.Have > 0:
				seed = n
				fetching++
			case e.State == orders.Waiting && strings.Contains(e.Error, "0 of 1 seeds"):
				waiting++
			}
		}
		return fetching == 1 && waiting == 2 && nodes[3].warmEntry(ref).State == orders.Fetching
	})
	seed.kill()
	var next *node
	s.eventually("another one fetches", func() bool {
		for _, n := range nodes[:3] {
			if n != seed && n.warmEntry(ref).State == orders.Fetching {
				next = n
			}
		}
		return next != nil
	})
	next.lift()
	for _, n := range nodes[:3] {
		if n != seed {
			n.lift()
			n.warms(ref)
		}
	}
}
