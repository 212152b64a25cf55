package storm

import (
	"context"
	"errors"
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/spate-project/spate/cmd/internal/lab"
	"github.com/spate-project/spate/cmd/internal/lab/netns"
	"github.com/spate-project/spate/cmd/internal/ui"
)

// A plan is what a run needs to know of the runs before.
type plan struct {
	bound float64 // seconds; faults happen within
	rate  float64 // of a lone download, in bytes a second
	seed  uint64
}

// A storm is one run of one arm.
type storm struct {
	*world
	plan
	arm      arm
	dir      string
	nodes    []*node
	readers  []*node
	registry *lab.Process

	start        time.Time     // of the phase
	firstReady   chan struct{} // closed when a node is
	originKilled float64       // seconds after start; 0: it was not

	mu    sync.Mutex
	lying []*lab.Process
	reads []float64 // seconds that each random read took
}

// since returns the seconds since all nodes were told to begin.
func (s *storm) since() float64 { return time.Since(s.start).Seconds() }

// run does one run of an arm on hosts, with fresh caches, and takes all of it down again.
func (w *world) run(ctx context.Context, a arm, hosts []*netns.Host, p plan) (_ Sample, err error) {
	s := &storm{world: w, plan: p, arm: a, dir: w.path(a.name)}
	defer func() { err = errors.Join(err, s.end()) }()
	if err := s.prepare(ctx, hosts); err != nil {
		return Sample{}, err
	}
	m, err := s.measure(ctx)
	if err != nil {
		return Sample{}, err
	}
	var before float64
	for i, ph := range a.phases {
		if a.turns {
			err = s.takeTurns(ctx, ph)
		} else {
			err = s.rush(ctx, ph, i == 0)
		}
		if err != nil {
			return Sample{}, err
		}
		if i < len(a.phases)-1 {
			for _, n := range s.nodes {
				before = max(before, n.ready)
			}
		}
	}
	sample, err := m.finish(ctx, before)
	if err != nil || !a.plain {
		return sample, err
	}
	return sample, s.comparePlain(ctx, sample.Nodes)
}

// prepare starts what takes part, in parallel.
func (s *storm) prepare(ctx context.Context, hosts []*netns.Host) (err error) {
	// A registry of its own for each run: its tracker knows no node of another.
	if s.registry, err = s.startRegistry(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, h := range hosts {
		n, err := s.newNode(h, s.dir)
		if err != nil {
			return err
		}
		s.nodes = append(s.nodes, n)
		if s.arm.agents {
			g.Go(func() error { return n.start(ctx) })
		}
	}
	if s.arm.agents {
		for _, h := range s.world.readers {
			n, err := s.newNode(h, s.dir)
			if err != nil {
				return err
			}
			s.readers = append(s.readers, n)
			g.Go(func() error { return s.startReader(ctx, n) })
		}
		for i, h := range s.liars {
			g.Go(func() error { return s.startLiar(ctx, i, h) })
		}
	}
	return g.Wait()
}

// end stops everything and removes what it has written.
func (s *storm) end() error {
	var g errgroup.Group
	for _, n := range append(s.nodes, s.readers...) {
		g.Go(n.stop)
	}
	for _, p := range s.lying {
		g.Go(func() error { return p.Stop(stopGrace) })
	}
	err := g.Wait()
	if s.registry != nil {
		err = errors.Join(err, s.registry.Stop(stopGrace))
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

// rush has all nodes go through a phase, the first one with stagger and faults.
func (s *storm) rush(ctx context.Context, p phase, first bool) error {
	progress := ui.NewProgress(s.out, "lab")
	defer progress.Close()
	task := progress.Task(s.arm.name, s.size*int64(len(s.nodes)))
	err := s.rushNodes(ctx, p, first, task)
	task.Done(err)
	return err
}

func (s *storm) rushNodes(ctx context.Context, p phase, first bool, task *ui.Task) error {
	g, ctx := errgroup.WithContext(ctx)
	during, over := context.WithCancel(ctx)
	defer over()
	s.start, s.firstReady = time.Now(), make(chan struct{})
	firstReady := sync.OnceFunc(func() { close(s.firstReady) })
	var nodes sync.WaitGroup
	for i, n := range s.nodes {
		nodes.Add(1)
		g.Go(func() error {
			defer nodes.Done()
			start := s.start
			if first {
				start = start.Add(s.Stagger * time.Duration(i))
			}
			if !sleep(ctx, time.Until(start)) {
				return ctx.Err()
			}
			if err := n.persist(ctx, s, p, start); err != nil {
				return err
			}
			firstReady()
			return nil
		})
	}
	g.Go(func() error {
		nodes.Wait()
		over()
		return nil
	})
	g.Go(func() error { return s.watch(during, task) })
	if first && s.arm.agents {
		s.faults(ctx, during, g)
	}
	return g.Wait()
}

// watchEvery is how often processes and links are looked at.
const watchEvery = 100 * time.Millisecond

// watch tells task what has arrived, and notes the processes' peaks before they end.
func (s *storm) watch(ctx context.Context, task *ui.Task) error {
	arrived := make([]int64, len(s.nodes))
	for i, n := range s.nodes {
		c, err := n.host.Counters()
		if err != nil {
			return err
		}
		arrived[i] = c.Received()
	}
	for sleep(ctx, watchEvery) {
		for i, n := range s.nodes {
			n.usage()
			c, err := n.host.Counters()
			if err != nil {
				return err
			}
			task.Add(c.Received() - arrived[i])
			arrived[i] = c.Received()
		}
	}
	return nil
}

// sleep reports whether d passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// seconds returns s as a duration.
func seconds(s float64) time.Duration { return time.Duration(math.Round(s * float64(time.Second))) }
