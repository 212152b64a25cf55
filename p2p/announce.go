package p2p

import (
	"context"
	"time"

	"github.com/spate-project/spate/p2p/tracker"
)

const (
	// settle is how long changes are gathered before they are announced: a
	// model's files join one after the other.
	settle = 5 * time.Millisecond

	// recheck is when an announce is repeated after a change: simultaneous
	// starters learn of those that came just after them.
	recheck = time.Second

	announceRetry = 2 * time.Second

	// shortest is the shortest interval between announces that a tracker may ask for.
	shortest = 100 * time.Millisecond
)

// announce tells the tracker what this node holds, soon after a change and
// otherwise at the tracker's interval, and makes its peers known to the swarms.
func (m *Mesh) announce(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	early := false   // the next announce comes from a change
	failing := false // the next announce is a retry
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.wake:
			if !early && !failing {
				early = true
				timer.Reset(settle)
			}
			continue
		case <-timer.C:
		}
		next, err := m.announceOnce(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			m.log.Warn("the mesh's tracker cannot be reached; transfers go on with the peers at hand", "err", err)
			next = announceRetry
		case early:
			next = min(next, recheck)
		}
		early, failing = false, err != nil
		timer.Reset(next)
	}
}

func (m *Mesh) announceOnce(ctx context.Context) (time.Duration, error) {
	a := tracker.Announce{Node: m.opts.Node}
	if m.opts.Engine != nil {
		a.Addr = m.opts.Engine.Addr()
	}
	members := m.list()
	for _, mb := range members {
		n := mb.object.Pieces()
		have := tracker.NewBitmap(n)
		for i := range n {
			if mb.Has(i) {
				have.Set(i)
			}
		}
		a.Swarms = append(a.Swarms, tracker.Holding{Swarm: mb.id, Pieces: n, Have: have})
	}
	ctx, cancel := context.WithTimeout(ctx, trackerTimeout)
	defer cancel()
	p, err := m.opts.Tracker.Announce(ctx, a)
	if err != nil {
		return 0, err
	}
	for _, mb := range members {
		mb.meet(p.Swarms[mb.id])
	}
	return max(time.Duration(p.Interval), shortest), nil
}
