package storm

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/spate-project/spate/cmd/internal/agent"
	"github.com/spate-project/spate/cmd/internal/lab"
)

// In an arm with turns each node in turn does the same cold start, and then leaves
// the mesh: the first one without a trace, which is made of what it read, the
// others with that.

// startShare is how much of the model a start reads: one MiB of so many.
const startShare = 4

// takeTurns has one node after the other go through the arm's phases.
func (s *storm) takeTurns(ctx context.Context, p phase) error {
	for i, n := range s.nodes {
		s.start = time.Now()
		if err := p(ctx, n, s, s.start); err != nil {
			return fmt.Errorf("%s: %w", n.name(), err)
		}
		if i == 0 {
			if err := n.publishTrace(ctx); err != nil {
				return err
			}
		}
		if err := n.leave(ctx); err != nil {
			return err
		}
	}
	return nil
}

// startUp reads a part of the model at random places, the same on every node, as a
// program that starts reads its files, and computes after each read for as long as
// what it read takes on the link.
func startUp(ctx context.Context, n *node, s *storm, _ time.Time) error {
	places, err := s.places()
	if err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(s.seed, 0))
	random.Shuffle(len(places), func(i, j int) { places[i], places[j] = places[j], places[i] })
	if err := n.client.Mount(ctx, agent.MountRequest{Reference: n.ref, Dir: n.view, Lazy: true}); err != nil {
		return err
	}
	buf := make([]byte, readSize)
	for _, p := range places[:max(1, len(places)/startShare)] {
		begin := time.Now()
		if err := readAt(filepath.Join(n.view, p.path), buf, p.off); err != nil {
			return err
		}
		n.stall += time.Since(begin).Seconds()
		if !sleep(ctx, seconds(readSize/s.rate)) {
			return ctx.Err()
		}
	}
	n.ready = s.since()
	return nil
}

// loadUp loads the model as an inference engine does whose accelerator takes
// tensors as fast as the link brings them.
func loadUp(ctx context.Context, n *node, s *storm, start time.Time) error {
	if err := n.client.Mount(ctx, agent.MountRequest{Reference: n.ref, Dir: n.view, Lazy: true}); err != nil {
		return err
	}
	r, err := n.loader(ctx, n.view, start, "--copy", fmt.Sprint(int64(s.rate)))
	if err != nil {
		return err
	}
	n.stall, n.ready = r.Waited.Seconds(), s.since()
	return nil
}

// publishTrace attaches a trace of what was read on n to the model.
func (n *node) publishTrace(ctx context.Context) error {
	_, err := n.herd.Output(ctx, lab.Command{
		Name: "trace", Args: []string{"trace", n.ref, "--plain-http", "--sign-key", n.keys.Sign(), "--data", n.data},
		Env: []string{"COSIGN_PASSWORD="}, Network: n.host.Namespace(),
	})
	return err
}

// leave ends the node's agent, so that it is nobody's peer, and forgets its cache.
func (n *node) leave(ctx context.Context) error {
	past := n.traffic(ctx)
	if err := n.client.Unmount(ctx, agent.UnmountRequest{Dir: n.view, Force: true}); err != nil {
		return err
	}
	n.mu.Lock()
	n.past = past
	p := n.processes[len(n.processes)-1]
	n.mu.Unlock()
	if err := p.Stop(stopGrace); err != nil {
		return err
	}
	return os.RemoveAll(n.data)
}
