package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/cache"
	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/ui"
)

// A CacheView is what an agent's cache holds.
type CacheView struct {
	Quota   int64          `json:"quotaBytes"`  // 0 is none
	Used    int64          `json:"usedBytes"`   // what counts against it
	Pinned  int64          `json:"pinnedBytes"` // of these, what is pinned, in use or on its way
	Objects []CachedObject `json:"objects"`     // the last used first
}

// A CachedObject is one object in the cache.
type CachedObject struct {
	cache.Held
	References []string `json:"references,omitempty"` // that this agent has opened it for
}

// A CacheRequest asks for something to be done with what Name names: a reference,
// or where that is allowed the digest of an object.
type CacheRequest struct {
	Name string `json:"name"`
}

// A QuotaRequest changes the cache's quota.
type QuotaRequest struct {
	Quota int64 `json:"quotaBytes"` // 0 is none
}

// Cache returns what the cache holds.
func (a *Agent) Cache() CacheView {
	s := a.store.Stats()
	v := CacheView{Quota: s.Quota, Used: s.Used, Pinned: s.Pinned, Objects: []CachedObject{}}
	references := make(map[piece.Digest][]string)
	a.mu.Lock()
	a.dropEvicted()
	for _, art := range a.artifacts {
		for _, f := range art.files {
			d := f.object.Tree().Object().Digest
			references[d] = append(references[d], art.reference)
		}
	}
	a.mu.Unlock()
	for _, h := range a.store.List() {
		refs := references[h.Digest]
		slices.Sort(refs)
		v.Objects = append(v.Objects, CachedObject{h, slices.Compact(refs)})
	}
	return v
}

// SetQuota changes the cache's quota until the agent ends, and evicts what is
// beyond it. Fewer bytes than are pinned or in use are refused.
func (a *Agent) SetQuota(quota int64) error {
	err := a.store.SetQuota(quota)
	if _, ok := errors.AsType[*cache.QuotaError](err); ok {
		return ui.WithHint(err, "see `spate cache ls`; `spate cache unpin` or `spate umount` what is not needed")
	}
	return err
}

// Pin keeps the objects of a reference from being evicted, over restarts too. It
// fetches nothing: what is not here stays once it came. The reference is
// admitted, as it says now what its objects are.
func (a *Agent) Pin(ctx context.Context, reference string) error {
	digests, err := a.listed(ctx, reference)
	if err != nil {
		return err
	}
	return a.store.Pin(reference, digests)
}

// Unpin takes back what Pin did, of the same reference.
func (a *Agent) Unpin(reference string) error {
	was, err := a.store.Unpin(reference)
	if err == nil && !was {
		return ui.WithHint(fmt.Errorf("unpin %s: it is not pinned: %w", reference, errdef.ErrNotFound), "name it as it was pinned, see `spate cache ls`")
	}
	return err
}

// listed returns the objects of what reference names.
func (a *Agent) listed(ctx context.Context, reference string) ([]piece.Digest, error) {
	admission, err := a.admit(ctx, reference, online)
	if err != nil {
		return nil, err
	}
	objects, err := admission.pieces()
	if err != nil {
		return nil, err
	}
	return digestsOf(objects), nil
}

// Remove removes an object from the cache, or those of a reference. What is in
// use or pinned is refused; of a reference's objects those stay that another one
// needs.
func (a *Agent) Remove(ctx context.Context, name string) error {
	digests, one, err := a.named(ctx, name)
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	for _, h := range a.store.List() {
		if !slices.Contains(digests, h.Digest) {
			continue
		}
		switch own := slices.Contains(h.Pins, name); {
		case own, one && len(h.Pins) > 0:
			return ui.WithHint(fmt.Errorf("remove %s: it is pinned as %s", name, strings.Join(h.Pins, ", ")), "`spate cache unpin` it first")
		case one && h.InUse:
			return inUse(name)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, art := range a.artifacts {
		if art.reference == name && art.users > 0 {
			return inUse(name)
		}
	}
	for _, d := range digests {
		if a.letGo(d); a.objects[d] > 0 || len(a.store.Pins(d)) > 0 {
			continue
		}
		err = errors.Join(err, a.store.Remove(d))
	}
	return err
}

func inUse(name string) error {
	return ui.WithHint(fmt.Errorf("remove %s: it is in use", name), "`spate umount` it, or wait until who reads it has ended")
}

// named returns the objects that name names; one is true for that of a digest.
func (a *Agent) named(ctx context.Context, name string) (digests []piece.Digest, one bool, err error) {
	if d, err := piece.ParseDigest(name); err == nil {
		if !slices.ContainsFunc(a.store.List(), func(h cache.Held) bool { return h.Digest == d }) {
			return nil, true, fmt.Errorf("the cache holds no such object: %w", errdef.ErrNotFound)
		}
		return []piece.Digest{d}, true, nil
	}
	a.mu.Lock()
	for _, art := range a.artifacts {
		if art.reference == name {
			for _, f := range art.files {
				digests = append(digests, f.object.Tree().Object().Digest)
			}
		}
	}
	a.mu.Unlock()
	if len(digests) == 0 {
		digests, err = a.listed(ctx, name)
	}
	return digests, false, err
}

// letGo closes what nobody uses and has an object open. The caller holds a.mu.
func (a *Agent) letGo(d piece.Digest) {
	for _, art := range a.artifacts {
		if art.users == 0 && art.object(d) != nil {
			a.drop(art)
		}
	}
	if b := a.hints.blobs[d]; b != nil && b.users == 0 {
		a.hints.leave(b)
	}
}

// CollectGarbage removes what of the cache nobody can use, and evicts down to the quota.
func (a *Agent) CollectGarbage() error {
	if err := a.store.GC(); err != nil {
		return fmt.Errorf("collect garbage: %w", err)
	}
	return nil
}
