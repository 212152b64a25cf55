package storm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
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
	{name: "prefetched", agents: true, phases: []phase{fetch, load}},
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
	out, err := n.herd.Output(ctx, lab.Command{Name: n.name() + "-load", Args: []string{
		"load", n.view, n.model, "--start", strconv.FormatInt(start.UnixNano(), 10), "--output", "json",
	}})
	if err != nil {
		return err
	}
	var r lab.LoadResult
	if err := json.Unmarshal(out, &r); err != nil {
		return err
	}
	n.firstByte = r.FirstByte.Seconds()
	n.ready = start.Add(r.LastTensor).Sub(s.start).Seconds()
	return nil
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
