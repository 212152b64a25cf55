package storm

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/spate-project/spate/cmd/internal/lab"
	"github.com/spate-project/spate/cmd/internal/lab/netns"
)

// faults adds to g what happens to the nodes while during lives. ctx is of what
// must be brought to an end.
func (s *storm) faults(ctx, during context.Context, g *errgroup.Group) {
	random := rand.New(rand.NewPCG(s.seed, uint64(s.Churn)))
	for _, i := range random.Perm(len(s.nodes))[:s.Churn] {
		n := s.nodes[i]
		begin := s.Stagger * time.Duration(i)
		when := begin + seconds(s.bound*(0.05+0.85*random.Float64()))
		down := 200*time.Millisecond + time.Duration(random.Int64N(int64(time.Second)))
		g.Go(func() error {
			if !sleep(during, when) {
				return nil
			}
			n.kill(ctx)
			if !sleep(ctx, down) {
				return ctx.Err()
			}
			return n.start(ctx)
		})
	}
	if s.KillOriginAt > 0 {
		g.Go(func() error { return s.killOrigin(during) })
	}
	for i, n := range s.readers {
		g.Go(func() error { return s.readAtRandom(during, n, rand.New(rand.NewPCG(s.seed, uint64(i)))) })
	}
}

// killOrigin kills the registry once that many copies have left it, at the
// latest when a node is ready, which has all that there is.
func (s *storm) killOrigin(ctx context.Context) error {
	before, err := s.origin.Counters()
	if err != nil {
		return err
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for copies := 0.0; copies < s.KillOriginAt; {
		c, err := s.origin.Counters()
		if err != nil {
			return err
		}
		copies = float64(c.Sub(before).Sent()) / float64(s.size)
		select {
		case <-tick.C:
			continue
		case <-s.firstReady:
		case <-ctx.Done():
		}
		break
	}
	s.registry.Kill()
	s.originKilled = s.since()
	return nil
}

// modes are how liars lie, in turn.
var modes = [...]string{"wrong", "silent", "trickle"}

// startLiar starts the i-th liar and waits until it takes part.
func (s *storm) startLiar(ctx context.Context, i int, h *netns.Host) error {
	p, err := s.herd.Start(lab.Command{
		Name: h.Name(),
		Args: []string{
			"liar", s.ref, "--registry", "http://" + s.originAddr(), "--plain-http", "--key", s.keys.Verify(),
			"--mesh", s.keys.Mesh(h.Name()), "--mesh-listen", fmt.Sprintf("%v:%d", h.Addr(), meshPort),
			"--mode", modes[i%len(modes)],
		},
		Network: h.Namespace(),
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.lying = append(s.lying, p)
	s.mu.Unlock()
	_, err = p.Line(ctx, " lies at ")
	return err
}
