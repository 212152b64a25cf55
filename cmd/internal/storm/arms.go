package storm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spate-project/spate/cmd/internal/agent"
	"github.com/spate-project/spate/cmd/internal/lab"
)

// An arm is one way to bring the model to the nodes.
type arm struct {
	name   string
	agents bool    // take part, and so do faults
	phases []phase // what each node does, one after the other, together with all others
	turns  bool    // one node after the other instead, see takeTurns
	plain  bool    // the last of them is compared with plain files when the measurement is over
}

// A phase brings a node one step and notes when it was ready. start is when the
// node was told to.
type phase func(ctx context.Context, n *node, s *storm, start time.Time) error

var lone = arm{name: "lone", phases: []phase{direct}}

// arms in the order in which they take turns.
var arms = []arm{
	lone,
	{name: "direct", phases: []phase{direct}},
	{name: "mesh", agents: true, phases: []phase{fetch}},
	{name: "mesh-lazy", agents: true, phases: []phase{load}},
	{name: "prefetched", agents: true, phases: []phase{fetch, load}, plain: true},
	{name: "traced", agents: true, phases: []phase{startUp}, turns: true},
	{name: "traced-load", agents: true, phases: []phase{loadUp}, turns: true},
}

// ArmNames returns the names of all arms.
func ArmNames() (names []string) {
	for _, a := range arms {
		names = append(names, a.name)
	}
	return names
}

// direct downloads the files from the registry alone, each in parallel ranges, hashed on the way.
func direct(ctx context.Context, n *node, s *storm, _ time.Time) error {
	var out bytes.Buffer
	p, err := n.spawn(lab.Command{
		Args:   []string{"pull", "--direct", n.ref, n.view, "--plain-http", "--key", n.keys.Verify(), "--output", "json"},
		Stdout: &out,
	})
	if err != nil {
		return err
	}
	if err := p.Wait(ctx); err != nil {
		return err
	}
	n.ready = s.since()
	var pulled struct {
		Seconds float64 `json:"seconds"`
	}
	err = json.Unmarshal(out.Bytes(), &pulled)
	n.transfer = pulled.Seconds
	return err
}

// load mounts the model and reads it at once, as an inference engine does.
func load(ctx context.Context, n *node, s *storm, start time.Time) error {
	if err := n.client.Mount(ctx, agent.MountRequest{Reference: n.ref, Dir: n.view}); err != nil {
		return err
	}
	r, err := n.loader(ctx, n.view, start)
	if err != nil {
		return err
	}
	n.firstByte = r.FirstByte.Seconds()
	n.ready = start.Add(r.LastTensor).Sub(s.start).Seconds()
	return nil
}

// comparePlain has one node after the other load the model through its mount once
// more, and from a copy of the plain files: each alone, as a node of its own has its
// own CPUs, and both from the page cache, where they were just read or written. What
// counts is until the bytes were copied: an engine has no source to compare with.
func (s *storm) comparePlain(ctx context.Context, nodes []Node) error {
	plain := filepath.Join(s.dir, "plain")
	if err := os.CopyFS(plain, os.DirFS(s.model)); err != nil {
		return err
	}
	for i, n := range s.nodes {
		for _, of := range []struct {
			dir  string
			took *float64
		}{{n.view, &nodes[i].Load}, {plain, &nodes[i].Plain}} {
			r, err := n.loader(ctx, of.dir, time.Now())
			if err != nil {
				return err
			}
			*of.took = r.Waited.Seconds()
		}
	}
	return nil
}

// loader runs an engine's loader over the model in dir. Its times count from start.
func (n *node) loader(ctx context.Context, dir string, start time.Time, flags ...string) (r lab.LoadResult, err error) {
	out, err := n.herd.Output(ctx, lab.Command{Name: n.name() + "-load", Args: append([]string{
		"load", dir, n.model, "--start", strconv.FormatInt(start.UnixNano(), 10), "--output", "json",
	}, flags...)})
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(out, &r)
}

// fetch has the agent bring the model into its cache and nothing else.
func fetch(ctx context.Context, n *node, s *storm, _ time.Time) error {
	if err := n.client.Mount(ctx, agent.MountRequest{Reference: n.ref, Dir: n.view, Wait: true}); err != nil {
		return err
	}
	n.ready = s.since()
	return n.client.Unmount(ctx, agent.UnmountRequest{Dir: n.view})
}

// persist goes through a phase, again when the node was killed in it.
func (n *node) persist(ctx context.Context, s *storm, p phase, start time.Time) error {
	for {
		kills, up := n.fate()
		if s.arm.agents {
			select {
			case <-up:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		err := p(ctx, n, s, start)
		if err == nil {
			return nil
		}
		if now, _ := n.fate(); now == kills {
			return fmt.Errorf("%s: %w", n.name(), err)
		}
	}
}

// armNamed returns the arm of that name, the zero arm when there is none.
func armNamed(name string) arm {
	for _, a := range arms {
		if a.name == name {
			return a
		}
	}
	return arm{}
}
