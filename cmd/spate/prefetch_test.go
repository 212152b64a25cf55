package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/spate-project/spate/cmd/internal/lab"
	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/prefetch/orders"
)

// pushModel pushes a model, which the given flags sign or not, and returns its name.
func (s *site) pushModel(name string, size int64, flags ...string) string {
	s.t.Helper()
	dir, ref := filepath.Join(s.dir, name+"-source"), s.registry+"/"+name+":v1"
	if err := lab.Synthesize(s.t.Context(), dir, size, lab.ModelOptions{}); err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.spate(append([]string{"push", dir, ref}, flags...)...); err != nil {
		s.t.Fatal(err)
	}
	return ref
}

// newPool starts an agent of the pool gpu for each name, which has the given flags too.
func (s *site) newPool(names []string, flags ...string) (nodes []*node) {
	s.t.Helper()
	for _, name := range names {
		nodes = append(nodes, s.newPeer(name, append(flags, "--label", "pool=gpu")...))
	}
	return nodes
}

// slow is the flag of an agent that takes a while to prefetch, until lift lets it.
const slow = "--limit-prefetch=1MiB"

func (n *node) lift() {
	n.t.Helper()
	if _, err := n.spate("limit", "--prefetch", "0", "--data", n.data()); err != nil {
		n.t.Fatal(err)
	}
}

// kill kills the node's agent as nothing can prevent, and waits until it has ended.
func (n *node) kill() {
	n.t.Helper()
	if err := n.agent.Process.Kill(); err != nil {
		n.t.Fatal(err)
	}
	n.agent.Wait()
}

// A prefetching is a `spate prefetch` that runs.
type prefetching struct {
	*site
	cmd    *exec.Cmd
	stdout bytes.Buffer
	stderr string // path
}

// prefetch starts a prefetch by the pool gpu; it is killed when the test ends before it does.
func (s *site) prefetch(args ...string) *prefetching {
	s.t.Helper()
	p := &prefetching{site: s, cmd: exec.Command("spate", append([]string{"prefetch", "--pool", "gpu", "--output", "json"}, args...)...)}
	stderr, err := os.CreateTemp(s.dir, "prefetch-*.log")
	if err != nil {
		s.t.Fatal(err)
	}
	defer stderr.Close()
	p.stderr = stderr.Name()
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		p.cmd.Process.Kill()
		p.cmd.Wait()
	})
	return p
}

// said returns what the prefetch has said so far.
func (p *prefetching) said() string {
	p.t.Helper()
	b, err := os.ReadFile(p.stderr)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(b)
}

// ends waits until the prefetch has ended with code, and returns its result and what it said.
func (p *prefetching) ends(code int) (v orders.View, said string) {
	p.t.Helper()
	p.cmd.Wait()
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.t.Fatalf("the prefetch ended with %d, want %d\n%s\n%s", got, code, &p.stdout, p.said())
	}
	if err := json.Unmarshal(p.stdout.Bytes(), &v); err != nil {
		p.t.Fatalf("%v in %q", err, &p.stdout)
	}
	return v, p.said()
}

// order asks about an order, or does something to it.
func (s *site) order(do, id string) (v orders.View) {
	s.t.Helper()
	out, err := s.spate("prefetch", do, id, "--registry", "http://"+s.registry, "--output", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &v)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// placed waits until the only order that the registry keeps has come to something, and returns it.
func (s *site) placed(what string, is func(orders.View) bool) (v orders.View) {
	s.t.Helper()
	s.eventually(what, func() bool {
		var list []orders.View
		out, err := s.spate("prefetch", "ls", "--registry", "http://"+s.registry, "--output", "json")
		if err == nil {
			err = json.Unmarshal([]byte(out), &list)
		}
		if err != nil {
			s.t.Fatal(err)
		}
		if len(list) != 1 {
			return false
		}
		v = s.order("status", list[0].ID)
		return is(v)
	})
	return v
}

// fetchedSome reports whether each node has a part of the order, but not all of it.
func fetchedSome(v orders.View) bool {
	for _, n := range v.Nodes {
		if n.Have == 0 || n.Have == n.Total {
			return false
		}
	}
	return len(v.Nodes) > 0
}

// TestPrefetch: all nodes of the pool hold the model when the command ends, the
// registry has sent it about once, and what is placed again is the same order.
func TestPrefetch(t *testing.T) {
	names := []string{"a", "b", "c"}
	s := newSite(t, append(names, "other"))
	ref := s.pushModel("qwen", 24<<20, "--sign-key", s.keys.Sign())
	nodes := s.newPool(names)
	other := s.newPeer("other")
	v, said := s.prefetch(ref).ends(ui.ExitDone)
	if v.State != orders.Done || v.Holding != 3 || v.Need != 3 || len(v.Nodes) != 3 {
		t.Errorf("the result is %+v", v)
	}
	if !strings.Contains(v.References[0], "@sha256:") {
		t.Errorf("the order is of %s", v.References[0])
	}
	if !strings.Contains(said, `"task":"a"`) || !strings.Contains(said, `"state":"ended"`) {
		t.Errorf("there is no progress in %s", said)
	}
	origin := int64(0)
	for _, n := range nodes {
		st := n.status()
		if len(st.Artifacts) != 1 || st.Artifacts[0].Present != st.Artifacts[0].Size {
			t.Fatalf("%s: the status is %+v", n.name, st.Artifacts)
		}
		origin += st.Artifacts[0].Origin
	}
	if size := v.Nodes[0].Total; origin > size*3/2 {
		t.Errorf("%d bytes came from the registry for %d", origin, size)
	}
	if st := other.status(); len(st.Artifacts) != 0 {
		t.Errorf("a node that is not of the pool has %+v", st.Artifacts)
	}
	again, _ := s.prefetch(ref).ends(ui.ExitDone)
	if again.ID != v.ID || again.Run != 2 {
		t.Errorf("placed again it is order %s, run %d; was %s", again.ID, again.Run, v.ID)
	}
}

// TestPrefetchKilledNodes: of eight nodes two are killed. Where all have to be ready
// the command ends with 4 and names them; where six are enough it ends well.
func TestPrefetchKilledNodes(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	s := newSite(t, names)
	ref := s.pushModel("qwen", 16<<20, "--sign-key", s.keys.Sign())
	nodes := s.newPool(names, slow)
	all := s.prefetch(ref, "--ready", "8", "--deadline", "30s")
	s.placed("each node fetches", fetchedSome)
	for i, n := range nodes {
		if i < 2 {
			n.kill()
		} else {
			n.lift()
		}
	}
	enough, _ := s.prefetch(ref, "--ready", "6").ends(ui.ExitDone)
	if enough.Holding != 6 {
		t.Errorf("%d nodes hold it, want 6", enough.Holding)
	}
	v, said := all.ends(ui.ExitPartly)
	if v.State != orders.Late || v.Holding != 6 || v.Nodes[0].Connected || v.Nodes[1].Connected {
		t.Errorf("the result is %+v", v)
	}
	if !regexp.MustCompile(`6 of 8 nodes are ready; missing: a \(gone, [^)]*\), b \(gone, [^)]*\)"`).MatchString(said) {
		t.Errorf("the killed nodes, and no other, are not named in %s", said)
	}
}

// TestPrefetchNotTrusted: what no key of the nodes has signed is refused, and nothing of it is fetched.
func TestPrefetchNotTrusted(t *testing.T) {
	s := newSite(t, []string{"a", "b"})
	ref := s.pushModel("qwen", 1<<20)
	nodes := s.newPool([]string{"a", "b"})
	v, said := s.prefetch(ref, "--ready", "2").ends(ui.ExitNotTrusted)
	if v.State != orders.Refused || !strings.Contains(said, "refuses") {
		t.Errorf("the result is %+v: %s", v, said)
	}
	for _, n := range nodes {
		if st := n.status(); st.Cache.Bytes != 0 {
			t.Errorf("%s holds %d bytes", n.name, st.Cache.Bytes)
		}
	}
}

// TestPrefetchKilled: registry, agent and command are killed while nodes fetch. The
// order goes on, and no byte that a node had is fetched again.
func TestPrefetchKilled(t *testing.T) {
	names := []string{"a", "b"}
	s := newSite(t, names)
	ref := s.pushModel("qwen", 24<<20, "--sign-key", s.keys.Sign())
	nodes := s.newPool(names, slow)
	first, second := s.prefetch(ref, "--ready", "2"), s.prefetch(ref, "--ready", "2")
	order := s.placed("each node fetches", fetchedSome)
	if err := second.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}

	s.server.Process.Kill()
	s.server.Wait()
	s.server = s.start("registry", "registry", "--data", filepath.Join(s.dir, "registry"), "--listen", s.registry)
	s.answers(s.registry)
	if v := s.order("status", order.ID); v.Run != 1 || v.State != orders.Active {
		t.Errorf("after the registry was killed the order is %+v", v.Order)
	}

	had := int64(0)
	s.eventually("the node has told a part", func() bool {
		had = nodes[0].status().Cache.Bytes
		return had > 3<<20
	})
	nodes[0].kill()
	nodes[0].startAgent("--label", "pool=gpu", "--mesh", s.keys.Mesh("a"), "--mesh-listen", free(t))
	nodes[1].lift()

	v, _ := first.ends(ui.ExitDone)
	if v.ID != order.ID || v.Run != 1 || v.Holding != 2 {
		t.Errorf("the result is %+v", v)
	}
	art := nodes[0].status().Artifacts[0]
	const inFlight = 1 << 20
	if fetched := art.Origin + art.Peers; fetched > art.Size-had+inFlight {
		t.Errorf("a node that had %d of %d bytes has fetched %d after its restart", had, art.Size, fetched)
	}
}

// TestPrefetchLeft: an order that nobody waits for goes on, can be asked for, and can be cancelled.
func TestPrefetchLeft(t *testing.T) {
	s := newSite(t, []string{"a", "b"})
	ref := s.pushModel("qwen", 24<<20, "--sign-key", s.keys.Sign())
	nodes := s.newPool([]string{"a", "b"}, slow)
	v, _ := s.prefetch(ref, "--ready", "2", "--wait=false").ends(ui.ExitDone)
	if v.State != orders.Active || v.Run != 1 {
		t.Errorf("the result is %+v", v)
	}
	s.placed("each node fetches", fetchedSome)
	if c := s.order("cancel", v.ID); c.State != orders.Cancelled {
		t.Errorf("a cancelled order is %s", c.State)
	}
	for _, n := range nodes {
		s.eventually(n.name+" lets go of it", func() bool { return len(n.status().Artifacts) == 0 })
	}
	out, err := s.spate("prefetch", "status", v.ID, "--registry", "http://"+s.registry)
	if err != nil || !strings.Contains(out, fmt.Sprintf("order %s for pool gpu: cancelled, 0 of 2 nodes are ready", v.ID)) {
		t.Errorf("%v: %s", err, out)
	}
}

// TestPrefetchInterrupted: a command that is interrupted leaves its order as it is.
func TestPrefetchInterrupted(t *testing.T) {
	s := newSite(t, []string{"a"})
	ref := s.pushModel("qwen", 8<<20, "--sign-key", s.keys.Sign())
	nodes := s.newPool([]string{"a"}, slow)
	p := s.prefetch(ref, "--ready", "1")
	s.eventually("it waits", func() bool { return strings.Contains(p.said(), `"task":"a"`) })
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	p.cmd.Wait()
	if code := p.cmd.ProcessState.ExitCode(); code != ui.ExitFailed || !strings.Contains(p.said(), "goes on; end it with `spate prefetch cancel ") {
		t.Errorf("the command ended with %d: %s", code, p.said())
	}
	nodes[0].lift()
	s.placed("the order is done", func(v orders.View) bool { return v.State == orders.Done && v.Run == 1 })
}
