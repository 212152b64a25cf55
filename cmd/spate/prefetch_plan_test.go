package main

import (
	"cmp"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/agent"
	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/prefetch"
	"github.com/spate-project/spate/prefetch/orders"
)

// prefetchBy prefetches by nodes by name, and returns the result.
func (s *site) prefetchBy(nodes string, args ...string) (v orders.View, said string) {
	s.t.Helper()
	return s.prefetch(append([]string{"--pool", "", "--nodes", nodes}, args...)...).ends(ui.ExitDone)
}

// sameFiles fails the test unless two directories hold the same files.
func sameFiles(t *testing.T, a, b string) {
	t.Helper()
	if out, err := exec.Command("diff", "-r", a, b).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestPrefetchRanks: two nodes fetch what one rank each needs of a model, which is
// less than all of it, and all of it together; both show all of it, and what they
// hold by then they keep and share after the orders.
func TestPrefetchRanks(t *testing.T) {
	s := newSite(t, []string{"a", "b", "c"})
	ref := s.pushModel("qwen", 48<<20, "--sign-key", s.keys.Sign())
	nodes := []*node{s.newPeer("a"), s.newPeer("b")}
	var parts []int64
	for rank, n := range nodes {
		v, _ := s.prefetchBy(n.name, ref, "--pp", "2", "--rank", fmt.Sprint(rank))
		held := n.held()
		switch {
		case len(v.Nodes) != 1 || v.Nodes[0].Node != n.name || v.Plan != (orders.Plan{Order: orders.OrderModel, PP: 2, Rank: rank}):
			t.Fatalf("the result is %+v", v)
		case held.Present < v.Nodes[0].Have || held.Present > v.Nodes[0].Have+8*piece.MinLength: // what comes with the heads
			t.Errorf("%s told of %d bytes and has %d", n.name, v.Nodes[0].Have, held.Present)
		case held.Present > held.Size*2/3:
			t.Errorf("one rank of two has %d bytes of %d", held.Present, held.Size)
		}
		parts = append(parts, held.Present)
		if out, err := s.spate("prefetch", "status", v.ID, "--registry", "http://"+s.registry); err != nil || !strings.Contains(out, fmt.Sprintf("rank %d of TP 1 x PP 2", rank)) {
			t.Errorf("%v: %s", err, out)
		}
	}
	size := nodes[0].held().Size
	if sum := parts[0] + parts[1]; sum < size {
		t.Errorf("two ranks have %d and %d bytes of %d", parts[0], parts[1], size)
	}

	// What the orders brought is still open and shared when nobody holds the model.
	third := s.newPeer("c")
	dir := third.mountLazy(ref)
	sameFiles(t, dir, filepath.Join(s.dir, "qwen-source"))
	if st := third.held(); st.Peers < parts[0]/2 {
		t.Errorf("of %d bytes %d came from peers that hold them", size, st.Peers)
	}
}

// TestPrefetchModelOrder: nodes with the same plan share out what they draw of it.
func TestPrefetchModelOrder(t *testing.T) {
	names := []string{"a", "b", "c"}
	s := newSite(t, names)
	ref := s.pushModel("qwen", 48<<20, "--sign-key", s.keys.Sign())
	nodes := s.newPool(names)
	v, _ := s.prefetch(ref, "--order", "model").ends(ui.ExitDone)
	origin, size := int64(0), v.Nodes[0].Total
	for _, n := range nodes {
		held := n.held()
		if held.Present != held.Size || size != held.Size {
			t.Errorf("%s holds %d bytes of %d, the plan has %d", n.name, held.Present, held.Size, size)
		}
		origin += held.Origin
	}
	if origin > size*3/2 {
		t.Errorf("%d bytes came from the registry for %d", origin, size)
	}
	s.eventually("one node keeps each object longest", func() bool {
		keepers, files := 0, len(nodes[0].held().Files)
		for _, n := range nodes {
			for _, o := range n.cached().Objects {
				if o.Keep {
					keepers++
				}
			}
		}
		return keepers == files
	})
}

// TestPrefetchTrace: nodes fetch what a trace names and no more; without a trace they say so.
func TestPrefetchTrace(t *testing.T) {
	s := newSite(t, []string{"a"})
	ref := s.pushModel("qwen", 8<<20, "--sign-key", s.keys.Sign())
	t.Setenv("COSIGN_PASSWORD", "")
	a := s.newPeer("a")
	dir := a.mountLazy(ref)
	files := a.held().Files
	if _, err := a.spate("umount", dir, "--data", a.data()); err != nil {
		t.Fatal(err)
	}
	waits := s.prefetch("--pool", "", "--ready", "1", "--order", "trace", ref)
	s.placed("the node misses a trace", func(v orders.View) bool {
		return len(v.Nodes) == 1 && v.Nodes[0].State == orders.Failing && strings.Contains(v.Nodes[0].Error, "no trace")
	})
	largest := slices.MaxFunc(files, func(a, b agent.ObjectStatus) int { return cmp.Compare(a.Size, b.Size) })
	d, err := piece.ParseDigest(largest.Digest)
	if err != nil {
		t.Fatal(err)
	}
	s.attachTrace(ref, prefetch.Trace{Reads: prefetch.Plan{{Object: d, Offset: piece.MinLength + 7, Length: piece.MinLength}}}, s.keys.Sign())
	v, _ := waits.ends(ui.ExitDone)
	if n := v.Nodes[0]; n.Have != 2*piece.MinLength || n.Total != n.Have {
		t.Errorf("the result is %+v", v)
	}
	if st := a.status(); st.Cache.Bytes != 2*piece.MinLength {
		t.Errorf("the node has %d bytes", st.Cache.Bytes)
	}
}

// TestPrefetchPlanKilled: an agent that is killed while it fetches a plan goes on from what it has.
func TestPrefetchPlanKilled(t *testing.T) {
	s := newSite(t, []string{"a"})
	ref := s.pushModel("qwen", 24<<20, "--sign-key", s.keys.Sign())
	a := s.newPeer("a")
	p := s.prefetch("--pool", "", "--nodes", "a", "--order", "model", "--rate", "4MiB", ref)
	s.placed("the node fetches", func(v orders.View) bool { return fetchedSome(v) && v.Nodes[0].Have > 6<<20 })
	had := a.status().Cache.Bytes
	a.kill()
	a.startAgent("--mesh", s.keys.Mesh("a"), "--mesh-listen", free(t))
	v, _ := p.ends(ui.ExitDone)
	art := a.held()
	const inFlight = 1 << 20
	if fetched := art.Origin + art.Peers; v.Run != 1 || fetched > art.Size-had+inFlight {
		t.Errorf("a node that had %d of %d bytes has fetched %d after its restart, in run %d", had, art.Size, fetched, v.Run)
	}
}

// TestPrefetchRate: a node fetches for an order no faster than that says.
func TestPrefetchRate(t *testing.T) {
	s := newSite(t, []string{"a"})
	ref := s.pushModel("qwen", 8<<20, "--sign-key", s.keys.Sign())
	s.newPeer("a")
	begun := time.Now()
	v, _ := s.prefetchBy("a", ref, "--rate", "2MiB")
	if took := time.Since(begun); took < 2*time.Second {
		t.Errorf("%d bytes took %v at 2 MiB/s, of which 2 MiB come at once", v.Nodes[0].Total, took)
	}
}

// TestPrefetchHours: out of an order's hours nodes wait and say for what; a
// deadline does not wait for them.
func TestPrefetchHours(t *testing.T) {
	s := newSite(t, []string{"a"})
	ref := s.pushModel("qwen", 2<<20, "--sign-key", s.keys.Sign())
	a := s.newPeer("a")
	between := func(begin, end time.Duration) string {
		now := time.Now()
		return now.Add(begin).Format("15:04") + "-" + now.Add(end).Format("15:04")
	}
	later := between(2*time.Hour, 3*time.Hour)
	v, said := s.prefetch("--pool", "", "--nodes", "a", "--between", later, "--deadline", "3s", ref).ends(ui.ExitPartly)
	if n := v.Nodes[0]; n.State != orders.Waiting || !strings.Contains(n.Error, later) || !strings.Contains(said, "a (waiting, nothing here)") {
		t.Errorf("the result is %+v: %s", v, said)
	}
	if st := a.status(); st.Cache.Bytes != 0 {
		t.Errorf("the node has %d bytes", st.Cache.Bytes)
	}
	if v, _ := s.prefetchBy("a", ref, "--between", between(-time.Hour, time.Hour)); v.State != orders.Done {
		t.Errorf("the result is %+v", v)
	}
}

// TestPrefetchCancelledUnderMount: what a cancelled order was fetching is fetched
// no more where a lazy mount has it open too.
func TestPrefetchCancelledUnderMount(t *testing.T) {
	s := newSite(t, []string{"a"})
	ref := s.pushModel("qwen", 48<<20, "--sign-key", s.keys.Sign())
	a := s.newPeer("a", slow)
	dir := a.mountLazy(ref)
	v, _ := s.prefetch("--pool", "", "--nodes", "a", "--wait=false", ref).ends(ui.ExitDone)
	s.placed("the node fetches", fetchedSome)
	s.order("cancel", v.ID)
	a.lift()
	var had int64
	s.eventually("nothing comes any more", func() bool {
		before := had
		had = a.held().Present
		return had == before
	})
	if size := a.held().Size; had == size {
		t.Errorf("all %d bytes came after the order was cancelled", size)
	}
	sameFiles(t, dir, filepath.Join(s.dir, "qwen-source"))
}
