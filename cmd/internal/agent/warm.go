package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/prefetch/orders"
	"github.com/spate-project/spate/prefetch/warm"
)

// warmEvery is how often a registry is asked whether the warm set has changed, and
// up to a tenth more.
const warmEvery = 10 * time.Second

// A warmth keeps what the warm sets of this node's pool name, one set of each
// registry: fetched in their order, and pinned. What a node keeps changes only by
// a set that the policy admits and that is not older than the last one; where a
// registry has none any more, or one that is refused, the last one holds. It is
// safe for concurrent use.
//
// The last sets are known over a restart: their documents are on the shelf, and
// which ones they are is in the file of marks.
type warmth struct {
	agent   *Agent
	pool    string // empty for a node of no pool
	marks   *marks
	changed chan struct{} // holds a token when there is something to begin or to end

	mu      sync.Mutex
	follows map[string]*follow  // by registry
	entries map[string]*warming // by reference: those that were begun
	group   sync.WaitGroup      // of them
}

// A follow is the warm set of one registry.
type follow struct {
	reference string // of the set
	set       warm.Signed
	known     bool  // set is the last one
	version   int64 // of the last one, which this process may not know otherwise
	problem   string
}

func newWarmth(a *Agent) *warmth {
	w := &warmth{
		agent: a, pool: a.opts.Labels[orders.PoolLabel], marks: openMarks(a.opts.Data, a.log),
		changed: make(chan struct{}, 1), follows: make(map[string]*follow), entries: make(map[string]*warming),
	}
	if w.pool == "" {
		return w
	}
	if err := warm.CheckPool(w.pool); err != nil {
		a.log.Warn("no warm set is kept", "err", err)
		return w
	}
	for _, host := range a.opts.Registries {
		w.follows[host] = &follow{reference: warm.ReferenceOf(host, w.pool)}
	}
	return w
}

// run follows the sets and does as they say until ctx ends. It returns nil.
func (w *warmth) run(ctx context.Context) error {
	w.recall(ctx)
	g, ctx := errgroup.WithContext(ctx)
	for host := range w.follows {
		g.Go(func() error { return w.follow(ctx, host) })
	}
	g.Go(func() error { return w.work(ctx) })
	return g.Wait()
}

// recall takes up what an earlier process knew.
func (w *warmth) recall(ctx context.Context) {
	for host, f := range w.follows {
		m, ok := w.marks.of(f.reference)
		if !ok {
			continue
		}
		set, err := warm.Read(ctx, w.agent.opts.Policy, w.agent.shelf, warm.ReferenceOf(host, m.Digest.String()), w.pool)
		if err != nil {
			w.agent.log.Warn("the last warm set is not known until the registry answers", "set", f.reference, "err", err)
		}
		w.mu.Lock()
		f.set, f.version, f.known = set, m.Version, err == nil
		w.mu.Unlock()
	}
	var references []string
	for _, f := range w.follows {
		references = append(references, f.reference)
	}
	if err := w.marks.retain(references); err != nil {
		w.agent.log.Warn("forget the warm sets of other pools and registries", "err", err)
	}
}

// follow looks for a new set of one registry again and again, until ctx ends. It returns nil.
func (w *warmth) follow(ctx context.Context, host string) error {
	f := w.follows[host]
	repo, err := w.agent.repository(f.reference)
	if err != nil {
		w.note(f, err)
		return nil
	}
	for {
		err := w.look(ctx, f, repo)
		wait := warmEvery + rand.N(warmEvery/10)
		if err != nil && isAway(err) {
			wait = boardRetry + rand.N(boardRetry)
		}
		w.note(f, err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// look takes up the registry's set if it is another one than the last.
func (w *warmth) look(ctx context.Context, f *follow, repo *remote.Repository) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	now, err := repo.Resolve(ctx, w.pool)
	if err != nil {
		return fmt.Errorf("look for the warm set %s: %w", f.reference, err)
	}
	if f.known && now.Digest == f.set.Digest {
		return nil
	}
	documents := newKeeper(repo, w.agent.shelf)
	set, err := warm.Read(ctx, w.agent.opts.Policy, documents, f.reference, w.pool)
	if err != nil {
		return err
	}
	if set.Version < f.version {
		return ui.WithHint(fmt.Errorf("the warm set %s has version %d, and this node had version %d before: an older one is not taken up", f.reference, set.Version, f.version),
			"find out who tagged it; a change by `spate warm` on top of the newest version is taken up")
	}
	documents.keep(set.Steps)
	if err := w.marks.put(f.reference, mark{set.Digest, set.Version}); err != nil {
		w.agent.log.Error("the warm set will not be known after a restart", "set", f.reference, "err", err)
	}
	w.agent.log.Info("a warm set is taken up", "set", f.reference, "version", set.Version, "entries", len(set.Entries), "signedBy", set.SignedBy)
	w.mu.Lock()
	f.set, f.version, f.known = set, set.Version, true
	w.mu.Unlock()
	w.wake()
	return nil
}

// note keeps what came of a look, and logs what is new.
func (w *warmth) note(f *follow, err error) {
	problem, level := "", slog.LevelWarn
	switch {
	case errors.Is(err, errdef.ErrNotFound) && f.version == 0, errors.Is(err, context.Canceled):
	case err == nil:
	case isAway(err):
		problem, level = err.Error(), slog.LevelInfo
	default:
		problem = err.Error()
	}
	w.mu.Lock()
	before := f.problem
	f.problem = problem
	w.mu.Unlock()
	if problem != "" && problem != before {
		w.agent.log.Log(context.Background(), level, "no new warm set is taken up: what the last one says holds", "set", f.reference, "err", err, "hint", ui.Hint(err))
	}
}

func (w *warmth) wake() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// pinName is what an entry of a pool's set is pinned as.
func pinName(pool, reference string) string { return "warm:" + pool + ":" + reference }

// pinned tells which entry of which pool's set a pin is of. Other pins have the
// name of a reference, in which a slash comes before a second colon.
func pinned(name string) (pool, reference string, ok bool) {
	rest, ok := strings.CutPrefix(name, "warm:")
	if !ok {
		return "", "", false
	}
	pool, reference, ok = strings.Cut(rest, ":")
	return pool, reference, ok && warm.CheckPool(pool) == nil
}

// listed returns the entries of all sets in the order in which they are fetched.
// known is false while a set is not known that was before. The caller holds w.mu.
func (w *warmth) listed() (list []warm.Entry, known bool) {
	known = true
	for _, f := range w.follows {
		list = append(list, f.set.Entries...)
		known = known && (f.known || f.version == 0)
	}
	slices.SortFunc(list, warm.Entry.Compare)
	seen := make(map[string]bool, len(list))
	return slices.DeleteFunc(list, func(e warm.Entry) bool {
		again := seen[e.Reference]
		seen[e.Reference] = true
		return again
	}), known
}

// A WarmStatus is the warm set of the node's pool in one registry.
type WarmStatus struct {
	Set      string      `json:"set"` // its name in the registry
	Version  int64       `json:"version"`
	Digest   string      `json:"digest,omitempty"`   // of its manifest
	SignedBy string      `json:"signedBy,omitempty"` // the identity
	Problem  string      `json:"problem,omitempty"`  // why nothing newer is known
	Entries  []WarmEntry `json:"entries"`
}

// A WarmEntry is how far a node is with one entry of a warm set. Bytes are of verified pieces.
type WarmEntry struct {
	warm.Entry
	State orders.Standing `json:"state"`
	Have  int64           `json:"haveBytes"`
	Total int64           `json:"totalBytes"`      // 0 while it is not known
	Error string          `json:"error,omitempty"` // why it fails, is refused or waits
}

// status returns the sets that there are or were, by registry.
func (w *warmth) status() []WarmStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []WarmStatus
	for _, f := range w.follows {
		if f.version == 0 && f.problem == "" {
			continue
		}
		s := WarmStatus{
			Set: f.reference, Version: f.version, Digest: f.set.Digest.String(), SignedBy: f.set.SignedBy, Problem: f.problem,
			Entries: []WarmEntry{},
		}
		for _, e := range f.set.Entries {
			s.Entries = append(s.Entries, w.entries[e.Reference].status(e))
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(x, y WarmStatus) int { return strings.Compare(x.Set, y.Set) })
	return list
}

// warmEntries counts the entries of sets by their state.
func warmEntries(sets []WarmStatus) map[string]float64 {
	n := make(map[string]float64)
	for _, state := range []orders.Standing{orders.Waiting, orders.Fetching, orders.Failing, orders.Denied, orders.Ready} {
		n[string(state)] = 0
	}
	for _, s := range sets {
		for _, e := range s.Entries {
			n[string(e.State)]++
		}
	}
	return n
}
