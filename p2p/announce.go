package p2p

import (
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"time"

	"github.com/spate-project/spate/cache/piece"
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

	// parting is how long a tracker may take to answer a node that ends.
	parting = time.Second

	// shortest is the shortest interval between announces that a tracker may ask for.
	shortest = 100 * time.Millisecond

	// heading is what an announce takes without its swarms, and listing what a
	// swarm takes of it beside the bitmap, in bytes, at most.
	heading = 1 << 10
	listing = 128
)

// announce tells the tracker what this node holds, soon after a change and
// otherwise at the tracker's interval, and makes its peers known to the swarms. At
// the end it tells that this node holds nothing, so that nobody waits for it.
func (m *Mesh) announce(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	early := false   // the next announce comes from a change
	failing := false // the next announce is a retry
	for {
		select {
		case <-ctx.Done():
			if !failing {
				m.depart(context.WithoutCancel(ctx))
			}
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
		case errors.Is(err, tracker.ErrRefused):
			m.log.Error("the mesh's tracker refuses this node's announce; transfers go on with the peers at hand", "err", err)
			next = announceRetry
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
	a := tracker.Announce{Node: m.opts.Node, Zone: m.opts.Zone}
	if m.opts.Engine != nil {
		a.Addr = m.opts.Engine.Addr()
	}
	members := listed(m.list())
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
	keeps, kept := make(map[piece.Digest]bool, len(p.Keeps)), make(map[tracker.SwarmID]bool, len(p.Keeps))
	for _, id := range p.Keeps {
		kept[id] = true
	}
	for _, mb := range members {
		mb.meet(p.Swarms[mb.id])
		if kept[mb.id] {
			keeps[mb.object.Digest] = true
		}
	}
	m.keeps.Store(&keeps)
	return max(time.Duration(p.Interval), shortest), nil
}

// depart takes this node out of all swarms at the tracker, if it answers soon.
func (m *Mesh) depart(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, parting)
	defer cancel()
	if _, err := m.opts.Tracker.Announce(ctx, tracker.Announce{Node: m.opts.Node, Zone: m.opts.Zone}); err != nil {
		m.log.Info("the mesh's tracker takes this node for a holder until it notices", "err", err)
	}
}

// Keeps reports whether this node is the keeper of an object, as the tracker last
// said: of the nodes of its zone that hold all of it the one that is to let go of it
// last. It waits for nobody.
func (m *Mesh) Keeps(d piece.Digest) bool {
	keeps := m.keeps.Load()
	return keeps != nil && (*keeps)[d]
}

// listed returns which of members, given by time of joining, an announce has
// room for: those that have business with the tracker first, in the order in
// which the origin is drawn, then what joined last.
func listed(members []*member) []*member {
	var all, idle []*member
	for _, mb := range members {
		if mb.busy() {
			all = append(all, mb)
		} else {
			idle = append(idle, mb)
		}
	}
	slices.Reverse(idle)
	all = append(all, idle...)
	size := heading
	for k, mb := range all {
		size += listing + base64.StdEncoding.EncodedLen((mb.object.Pieces()+7)/8)
		if k == tracker.MaxSwarms || size > tracker.MaxBody {
			return all[:k]
		}
	}
	return all
}

// busy reports whether the object is being filled or read, or has something to report.
func (mb *member) busy() bool {
	mb.mu.Lock()
	defer mb.mu.Unlock()
	return mb.readers.Load() > 0 || mb.fills() || len(mb.done)+len(mb.failed) > 0
}
