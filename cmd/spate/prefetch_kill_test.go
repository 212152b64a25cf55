package main

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/spate-project/spate/prefetch/orders"
)

// TestPrefetchKills: registry, agents and command are killed at ten moments each
// while an order is carried out. It is not lost and does not begin anew, and no
// byte that a node had is fetched again.
func TestPrefetchKills(t *testing.T) {
	const inFlight = 1 << 20
	names := []string{"a", "b"}
	s := newSite(t, names)
	ref := s.pushModel("qwen", 64<<20, "--sign-key", s.keys.Sign())
	nodes := s.newPool(names, slow)
	p := s.prefetch(ref, "--ready", "2")
	order := s.placed("each node fetches", fetchedSome)
	had, begun := make([]int64, len(nodes)), make([]bool, len(nodes))

	// fetchedOnce looks at what a node has fetched since its agent was started.
	fetchedOnce := func(i int) {
		t.Helper()
		st := nodes[i].status()
		if len(st.Artifacts) == 0 { // it has not been given the order yet
			return
		}
		art, has := st.Artifacts[0], st.Cache.Bytes
		if fetched := art.Origin + art.Peers; begun[i] && fetched > has-had[i]+inFlight {
			t.Errorf("%s has fetched %d bytes since it was killed, and has %d more", nodes[i].name, fetched, has-had[i])
		}
		had[i], begun[i] = has, true
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	kills := map[string]func(){
		"registry": func() {
			s.server.Process.Kill()
			s.server.Wait()
			s.server = s.start("registry", "registry", "--data", filepath.Join(s.dir, "registry"), "--listen", s.registry)
			s.answers(s.registry)
			if v := s.order("status", order.ID); v.Run != 1 || v.State != orders.Active {
				t.Fatalf("after the registry was killed the order is %+v", v.Order)
			}
		},
		"agent": func() {
			i := random.IntN(len(nodes))
			fetchedOnce(i)
			nodes[i].kill()
			nodes[i].startAgent(slow, "--label", "pool=gpu", "--mesh", s.keys.Mesh(names[i]), "--mesh-listen", free(t))
		},
		"command": func() {
			p.cmd.Process.Kill()
			p.cmd.Wait()
			p = s.prefetch(ref, "--ready", "2")
		},
	}
	var moments []string
	for _, who := range []string{"registry", "agent", "command"} {
		moments = append(moments, slices.Repeat([]string{who}, 10)...)
	}
	random.Shuffle(len(moments), func(i, j int) { moments[i], moments[j] = moments[j], moments[i] })
	for _, who := range moments {
		time.Sleep(time.Duration(random.IntN(600)) * time.Millisecond)
		kills[who]()
	}
	for _, n := range nodes {
		n.lift()
	}
	v, _ := p.ends(0)
	if v.ID != order.ID || v.Run != 1 || v.Holding != 2 || v.State != orders.Done {
		t.Errorf("the result is %+v", v)
	}
	for i := range nodes {
		fetchedOnce(i)
	}
}
