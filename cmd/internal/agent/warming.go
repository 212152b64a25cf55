package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/prefetch/orders"
	"github.com/spate-project/spate/prefetch/warm"
)

// A warming is this node's work on one entry of a warm set: it is admitted, has
// room, is pinned, is fetched and then held, until it is not of the set any more.
type warming struct {
	warmth *warmth
	entry  warm.Entry
	cancel context.CancelFunc

	objects []piece.Object // once there is room for them; guarded by warmth.mu

	mu       sync.Mutex
	fetching *fetching // nil before it and while it fails
	err      error     // why there is none
	waits    string    // for what there is none yet
}

// work begins entries in their order, the next one when the one before is ready or
// fails, and ends those that are not listed any more, until ctx ends. It returns nil.
func (w *warmth) work(ctx context.Context) error {
	defer w.group.Wait()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		w.arrange(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-w.changed:
		}
	}
}

func (w *warmth) arrange(ctx context.Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	list, known := w.listed()
	listed := make(map[string]bool, len(list))
	for _, e := range list {
		listed[e.Reference] = true
	}
	busy := false
	for reference, e := range w.entries {
		switch {
		case !listed[reference]:
			e.cancel()
			delete(w.entries, reference)
		case e.busy():
			busy = true
		}
	}
	if known {
		w.unpin(listed)
	}
	next := slices.IndexFunc(list, func(e warm.Entry) bool { return w.entries[e.Reference] == nil })
	if busy || next < 0 {
		return
	}
	mine, cancel := context.WithCancel(ctx)
	begun := &warming{warmth: w, entry: list[next], cancel: cancel}
	w.entries[begun.entry.Reference] = begun
	w.group.Go(func() { begun.run(mine) })
}

// unpin takes back the pins of what is not listed, those of other pools too. The caller holds w.mu.
func (w *warmth) unpin(listed map[string]bool) {
	for _, name := range w.agent.store.Pinned() {
		pool, reference, ok := pinned(name)
		if !ok || pool == w.pool && listed[reference] {
			continue
		}
		if _, err := w.agent.store.Unpin(name); err != nil {
			w.agent.log.Error("a reference stays pinned that is not in the warm set any more", "err", err)
		}
	}
}

// run fetches the entry and holds it until ctx ends. What fails is tried again,
// what the policy refuses too: it may be signed meanwhile.
func (e *warming) run(ctx context.Context) {
	w, said := e.warmth, ""
	for wait := againFirst; ; wait = min(2*wait, againMost) {
		err := e.prepare(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			e.set(nil, nil)
			e.awaitSeeds(ctx)
			f := newFetching(w.agent, orders.Task{Order: pinName(w.pool, e.entry.Reference), References: []string{e.entry.Reference}})
			e.set(f, nil)
			f.run(ctx)
		default:
			e.set(nil, err)
			if text := err.Error(); text != said {
				said = text
				w.agent.log.Warn("an entry of the warm set is not fetched now", "reference", e.entry.Reference, "tag", e.entry.Tag, "err", err, "hint", ui.Hint(err))
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (e *warming) set(f *fetching, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.fetching, e.err = f, err
}

// prepare admits and pins the entry's objects, if the cache has room for them.
func (e *warming) prepare(ctx context.Context) error {
	admission, err := e.warmth.agent.admit(ctx, e.entry.Reference, online)
	if err != nil {
		return err
	}
	objects, err := admission.pieces()
	if err != nil {
		return err
	}
	w := e.warmth
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err // it may be unpinned already
	}
	e.objects = nil
	if err := w.room(objects); err != nil {
		return fmt.Errorf("keep %s warm: %w", e.entry.Reference, err)
	}
	if err := w.agent.store.Pin(pinName(w.pool, e.entry.Reference), digestsOf(objects)); err != nil {
		return err
	}
	e.objects = objects
	return nil
}

// room reports whether the cache's quota has room for objects beside all that is
// pinned or in use, and all that other entries still lack. The caller holds w.mu.
func (w *warmth) room(objects []piece.Object) error {
	stats := w.agent.store.Stats()
	if stats.Quota == 0 {
		return nil
	}
	wanted := make(map[piece.Digest]int64)
	for _, e := range w.entries {
		for _, o := range e.objects {
			wanted[o.Digest] = o.Size
		}
	}
	for _, o := range objects {
		wanted[o.Digest] = o.Size
	}
	need := stats.Pinned
	for _, h := range w.agent.store.List() {
		if size, ok := wanted[h.Digest]; ok && (h.InUse || len(h.Pins) > 0) {
			wanted[h.Digest] = size - h.Bytes // the rest is counted
		}
	}
	for _, size := range wanted {
		need += size
	}
	if need > stats.Quota {
		return ui.WithHint(fmt.Errorf("there is no room: with it %d bytes of the cache would be pinned or in use, more than the quota of %d bytes", need, stats.Quota),
			"raise --cache-quota, or take something out of the warm set with `spate warm rm`; other entries go on")
	}
	return nil
}

// busy reports whether the entry is on its way: no other one may begin in its place.
func (e *warming) busy() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fetching == nil {
		return e.err == nil && e.waits == ""
	}
	state := e.fetching.told().State
	return state == orders.Waiting || state == orders.Fetching
}

// status returns how far entry is. The warming may be nil: not begun.
func (e *warming) status(entry warm.Entry) WarmEntry {
	s := WarmEntry{Entry: entry, State: orders.Waiting}
	if e == nil {
		return s
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.fetching != nil:
		told := e.fetching.told()
		s.State, s.Have, s.Total, s.Error = told.State, told.Have, told.Total, told.Error
	case errors.Is(e.err, piece.ErrNotTrusted):
		s.State, s.Error = orders.Denied, e.err.Error()
	case e.waits != "":
		s.Error = e.waits
	case e.err != nil:
		s.State, s.Error = orders.Failing, e.err.Error()
	}
	return s
}
