package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/spate-project/spate/cmd/internal/lab"
	"github.com/spate-project/spate/cmd/internal/ui"
)

// push packs, pushes, indexes and signs the model, over a link without limit.
func (s *story) push(ctx context.Context) (err error) {
	if s.addr, err = freeAddr(); err != nil {
		return err
	}
	s.ref = s.addr + "/demo/model:v1"
	if err := s.startRegistry(ctx, 0); err != nil {
		return err
	}
	start := time.Now()
	if _, err := s.spate(ctx, "push", s.model, s.ref, "--sign-key", s.keys.Sign()); err != nil {
		return err
	}
	took := time.Since(start)
	s.result.PushSeconds = took.Seconds()
	s.say("packed, pushed and signed %s in %s: each file was read once", ui.Size(s.result.ModelBytes), ui.Duration(took))
	// From here on the registry is behind its link.
	if err := s.registry.Stop(stopGrace); err != nil {
		return err
	}
	return s.startRegistry(ctx, s.opts.Link)
}

// mesh has every node load the model in the same second.
func (s *story) mesh(ctx context.Context) error {
	for i := range s.opts.Nodes {
		n, err := s.startNode(ctx, i)
		if err != nil {
			return err
		}
		s.nodes = append(s.nodes, n)
	}
	before, err := s.registrySent(ctx)
	if err != nil {
		return err
	}
	bound, _ := lab.Bound(s.result.ModelBytes, s.opts.Nodes, float64(s.opts.Link), float64(s.opts.Link), float64(s.opts.Link))
	s.say("%d nodes load it now, links of %s/s each, one registry link the same", s.opts.Nodes, ui.Size(s.opts.Link))

	loads := make([]lab.LoadResult, len(s.nodes))
	g, gctx := errgroup.WithContext(ctx)
	start := time.Now()
	for i, n := range s.nodes {
		g.Go(func() (err error) {
			if err := s.open(gctx, n); err != nil {
				return fmt.Errorf("%s: %w", n.name, err)
			}
			if loads[i], err = s.load(gctx, n.view, start); err != nil {
				return fmt.Errorf("%s: %w", n.name, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	sent, err := s.registrySent(ctx)
	if err != nil {
		return err
	}
	var last time.Duration
	for i, n := range s.nodes {
		last = max(last, loads[i].LastTensor)
		art, err := n.artifact(ctx, s.ref)
		if err != nil {
			return err
		}
		usage := n.process.Usage()
		s.result.Nodes = append(s.result.Nodes, NodeResult{
			Name:         n.name,
			FirstByte:    loads[i].FirstByte.Seconds(),
			LastTensor:   loads[i].LastTensor.Seconds(),
			OriginBytes:  art.Origin,
			PeerBytes:    art.Peers,
			ServedBytes:  art.Served,
			CPUSeconds:   usage.CPU.Seconds(),
			PeakRSSBytes: usage.PeakRSS,
		})
	}
	s.result.Verified = true // Load compared every tensor, or there was an error
	s.result.Link = s.opts.Link
	s.result.LastReady = last.Seconds()
	s.result.OriginCopies = float64(sent-before) / float64(s.result.ModelBytes)
	if s.opts.Link > 0 {
		s.result.Bound = bound.Seconds()
		s.result.Efficiency = bound.Seconds() / last.Seconds()
	}
	s.say("every node has checked every tensor after %s; the registry sent %.2f copies", ui.Duration(last), s.result.OriginCopies)

	// The first one stays, to be tampered with; the rest makes room.
	for _, n := range s.nodes[1:] {
		if err := n.process.Stop(stopGrace); err != nil {
			return err
		}
		if err := errors.Join(os.RemoveAll(n.data), os.RemoveAll(n.view)); err != nil {
			return err
		}
	}
	return nil
}

// direct is the same load by as many downloads straight from the registry.
func (s *story) direct(ctx context.Context) error {
	if !s.opts.Direct {
		return nil
	}
	s.say("the same load by %d direct downloads", s.opts.Nodes)
	rate := strconv.FormatInt(s.opts.Link, 10)
	last := make([]time.Duration, s.opts.Nodes)
	g, gctx := errgroup.WithContext(ctx)
	start := time.Now()
	for i := range s.opts.Nodes {
		g.Go(func() error {
			dir := s.path("direct", nodeName(i))
			defer os.RemoveAll(dir)
			if _, err := s.spate(gctx, "pull", "--direct", s.ref, dir, "--key", s.keys.Verify(),
				"--limit-up", rate, "--limit-down", rate); err != nil {
				return err
			}
			r, err := s.load(gctx, dir, start)
			last[i] = r.LastTensor
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("direct download: %w", err)
	}
	for _, d := range last {
		s.result.Direct = max(s.result.Direct, d.Seconds())
	}
	s.result.Speedup = s.result.Direct / s.result.LastReady
	s.say("direct downloads took %.1f s: the mesh was %.1f times as fast", s.result.Direct, s.result.Speedup)
	return nil
}
