package agent

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"net/http"
	"net/url"
	"slices"
	"time"

	"oras.land/oras-go/v2/registry"

	"github.com/spate-project/spate/prefetch/orders"
	"github.com/spate-project/spate/prefetch/placement"
)

const (
	// seedEvery is how often a node looks how far the seeds are that it waits for.
	seedEvery = time.Second

	// seedPatience is how long it waits for seeds that get nothing.
	seedPatience = time.Minute
)

// awaitSeeds returns when this node is to fetch an entry that some nodes of each
// zone hold first: at once where it is one of them, else when they hold all of it,
// get no further, or nobody knows. The nodes agree on who they are without talking
// to each other: those of a zone that have begun are, then they are in an order
// that follows from their names and the reference. One that goes has the next one
// in its place.
func (e *warming) awaitSeeds(ctx context.Context) {
	defer e.wait("")
	a := e.warmth.agent
	base := a.boardOf(e.entry.Reference)
	node, err := a.nodeName()
	if e.entry.Seeds == 0 || base == "" || err != nil {
		return
	}
	client := &http.Client{Transport: a.transport}
	moved, had := time.Now(), int64(-1)
	for {
		asking, cancel := context.WithTimeout(ctx, patience)
		p, err := placement.Ask(asking, client, base, e.entry.Reference, e.warmth.pool, a.opts.Zone)
		cancel()
		if err != nil {
			if ctx.Err() == nil {
				a.log.Info("an entry of the warm set does not wait for its seeds", "reference", e.entry.Reference, "err", err)
			}
			return
		}
		s := seedingOf(p.Nodes, node, a.opts.Zone, e.entry.Reference, e.entry.Seeds)
		if s.have != had {
			moved, had = time.Now(), s.have
		}
		if s.turn || time.Since(moved) > seedPatience {
			return
		}
		e.wait(fmt.Sprintf("%d of %d seeds of its zone hold it", s.whole, e.entry.Seeds))
		select {
		case <-ctx.Done():
			return
		case <-time.After(seedEvery):
		}
	}
}

// wait says what the entry waits for before it is fetched; empty is nothing.
func (e *warming) wait(why string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.waits = why
}

// boardOf returns the base URL of the registry of a reference, as this node was
// told it; empty where it was told none.
func (a *Agent) boardOf(reference string) string {
	ref, err := registry.ParseReference(reference)
	if err != nil {
		return ""
	}
	for _, base := range a.opts.Trackers {
		if u, err := url.Parse(base); err == nil && u.Host == ref.Registry {
			return base
		}
	}
	return ""
}

// A seeding is how far the nodes of a zone are with what some of them hold first.
type seeding struct {
	whole int   // nodes that hold all of it
	have  int64 // bytes of all of them
	turn  bool  // whether the node is to fetch it now
}

// seedingOf looks at a zone. A node that is not listed is not known to the
// registry yet, and waits.
func seedingOf(places []orders.Place, node, zone, reference string, seeds int) (s seeding) {
	places = slices.DeleteFunc(slices.Clone(places), func(p orders.Place) bool { return p.Zone != zone })
	for _, p := range places {
		s.have += p.Have
		if p.Total > 0 && p.Have == p.Total {
			s.whole++
		}
	}
	// Highest random weight: a node that comes or goes changes one place at most.
	weight := func(name string) uint64 {
		h := fnv.New64a()
		fmt.Fprintf(h, "%s\x00%s", reference, name)
		return h.Sum64()
	}
	begun := func(p orders.Place) int64 { return min(p.Have, 1) }
	slices.SortFunc(places, func(a, b orders.Place) int {
		return cmp.Or(cmp.Compare(begun(b), begun(a)), cmp.Compare(weight(a.Node), weight(b.Node)), cmp.Compare(a.Node, b.Node))
	})
	at := slices.IndexFunc(places, func(p orders.Place) bool { return p.Node == node })
	s.turn = s.whole >= seeds || at >= 0 && at < seeds
	return s
}
