package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/spate-project/spate/cache"
	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/tracker"
)

// A hinted is a blob whose root nobody signed, open in the cache and in the mesh.
// Peers get its pieces as what its root says, which they believe as little.
type hinted struct {
	object  *cache.Object
	checked bool // all of it is here and has its digest; guarded by Agent.mu
	users   int  // who bring or read it; guarded by Agent.mu. Without one its object lingers
}

// errPeersOnly is what the mesh gets of the origin for a hinted blob: nobody's
// credential is kept for it, and who cannot have it from peers asks with its caller's.
var errPeersOnly = fmt.Errorf("a blob without a trusted index comes from peers alone: %w", piece.ErrNotHere)

// held returns blob d where it is here whole and checked, else nil. Each held is
// matched by one release.
func (h *hints) held(d piece.Digest) *hinted {
	h.agent.mu.Lock()
	defer h.agent.mu.Unlock()
	b := h.blobs[d]
	if b == nil || !b.checked || b.object.Err() != nil || b.users == 0 && !b.object.Reopen() {
		return nil
	}
	b.users++
	return b
}

// release ends one use of b. It stays open and is shared until the cache needs its room.
func (h *hints) release(b *hinted) {
	h.agent.mu.Lock()
	defer h.agent.mu.Unlock()
	if b.users--; b.users == 0 && h.blobs[b.object.Tree().Object().Digest] == b {
		b.object.Linger()
	}
}

// errYielded says that a blob gave way to the object of a trusted index.
var errYielded = errors.New("a trusted index that was opened meanwhile cuts the blob otherwise, or has it filled")

// enter opens the object of t and takes it into the mesh, which fills it before
// all else: a caller waits. The caller has the blob's turn, and matches each
// enter by one release.
func (h *hints) enter(ctx context.Context, t *piece.Tree) (*hinted, error) {
	a, d := h.agent, t.Object().Digest
	a.mu.Lock()
	if b := h.blobs[d]; b != nil { // checked once, and in quarantine since
		h.leave(b)
	}
	o, err := a.store.Open(t, a.mesh)
	if err != nil {
		a.mu.Unlock()
		return nil, err
	}
	a.dropEvicted()
	a.objects[d]++
	b := &hinted{object: o, users: 1}
	h.blobs[d] = b
	a.mu.Unlock()
	err = o.Recheck(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	if h.blobs[d] != b {
		return nil, errYielded
	}
	if err == nil {
		err = a.mesh.Join(o, p2p.JoinOptions{
			Origin: p2p.OriginFunc(func(context.Context, int64, int64) (io.ReadCloser, error) { return nil, errPeersOnly }),
			Fill:   true, Priority: math.MaxInt,
		})
	}
	if err != nil {
		h.leave(b)
		return nil, err
	}
	return b, nil
}

// approve makes b count as held: all of it is here and has its digest.
func (h *hints) approve(b *hinted) error {
	h.agent.mu.Lock()
	defer h.agent.mu.Unlock()
	if h.blobs[b.object.Tree().Object().Digest] != b {
		return errYielded
	}
	b.checked = true
	return nil
}

// fetch brings blob d by a hint and checks it. An error of the class errWrongHint
// leaves nothing of it in the cache. Each fetch is matched by one release.
func (h *hints) fetch(ctx context.Context, hint tracker.Hint, d piece.Digest, size int64) (*hinted, error) {
	t, err := treeOfHint(hint, d, size)
	if err != nil {
		return nil, err
	}
	b, err := h.enter(ctx, t)
	if err == nil {
		err = h.check(ctx, b)
	}
	if _, wrong := errors.AsType[*piece.WrongBytesError](err); wrong {
		err = errors.Join(fmt.Errorf("%w: %w", errWrongHint, err), h.remove(d))
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// check hashes the blob as its pieces come, and returns when all of it is here
// and has its digest. After an error the blob is dropped.
func (h *hints) check(ctx context.Context, b *hinted) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(hintStall, func() { cancel(fmt.Errorf("no piece came for %v", hintStall)) })
	defer stalled.Stop()
	b.object.OnPresent(func(int) { stalled.Reset(hintStall) })
	arriving := readerAt(func(p []byte, off int64) (int, error) {
		first, last := b.object.Tree().Object().Range(off, int64(len(p)))
		for i := first; i < last; i++ {
			if err := b.object.Wait(ctx, i); err != nil {
				return 0, err
			}
		}
		return b.object.ReadAt(p, off)
	})
	if err := b.object.Tree().Audit(io.NewSectionReader(arriving, 0, b.object.Size())); err != nil {
		h.drop(b)
		return err
	}
	return h.approve(b)
}

// drop closes b.
func (h *hints) drop(b *hinted) {
	h.agent.mu.Lock()
	defer h.agent.mu.Unlock()
	h.leave(b)
}

// leave closes b unless it is closed. The caller holds Agent.mu.
func (h *hints) leave(b *hinted) {
	d := b.object.Tree().Object().Digest
	if h.blobs[d] == b {
		delete(h.blobs, d)
		h.agent.closeObject(b.object, b.users > 0 || b.object.Reopen())
	}
}

// remove takes what the cache has of an object that nothing has open.
func (h *hints) remove(d piece.Digest) error {
	h.agent.mu.Lock()
	defer h.agent.mu.Unlock()
	if h.agent.objects[d] > 0 {
		return nil
	}
	return h.agent.store.Remove(d)
}

// yield makes room for the object of a trusted tree: a hinted blob of its digest
// that is cut otherwise, or is not checked, gives way. Who waits for it asks the
// origin. The caller holds Agent.mu.
func (h *hints) yield(trusted *piece.Tree) {
	b := h.blobs[trusted.Object().Digest]
	if b != nil && !(b.checked && b.object.Tree().Object() == trusted.Object()) {
		h.leave(b)
	}
}
