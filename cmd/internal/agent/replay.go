package agent

import (
	"context"
	"fmt"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/time/rate"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/cache"
	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/prefetch"
	"github.com/spate-project/spate/signing"
)

const (
	// tracing is how long after the first read of an artifact reads are of its start.
	tracing = 5 * time.Minute
)

// recorded is an object whose reads through a mount are recorded.
type recorded struct {
	*cache.Object
	recorder *prefetch.Recorder
}

func (r recorded) ReadContext(ctx context.Context, p []byte, off int64) (int, error) {
	r.recorder.Read(r.Tree().Object().Digest, off, int64(len(p)))
	return r.Object.ReadContext(ctx, p, off)
}

// A TraceRequest asks for what was read of Reference.
type TraceRequest struct {
	Reference string `json:"reference"`
}

// A Recording is what was read of an artifact through mounts since it was
// opened, in the first minutes after the first read.
type Recording struct {
	Manifest ocispec.Descriptor `json:"manifest"` // of what was read; of an image for several platforms this machine's
	Reads    prefetch.Plan      `json:"reads"`
	Full     bool               `json:"full,omitempty"` // there was more than a trace holds
}

// Recording returns what was read of a reference that is open now.
func (a *Agent) Recording(ctx context.Context, reference string) (*Recording, error) {
	admission, err := a.admit(ctx, reference, online)
	if err != nil {
		return nil, err
	}
	r := &Recording{Manifest: admission.Trusted.Manifest().Descriptor}
	a.mu.Lock()
	art := a.artifacts[r.Manifest.Digest.String()]
	a.mu.Unlock()
	if art != nil {
		r.Reads, r.Full = art.recorder.Reads()
	}
	if len(r.Reads) == 0 {
		return nil, ui.WithHint(fmt.Errorf("trace %s: nothing was read of it through a mount of this agent: %w", reference, errdef.ErrNotFound),
			"mount it, or start it in a container, and ask again while it is mounted")
	}
	return r, nil
}

// replay finds the trace of an admitted artifact, or where an image has none its
// program, and has the mesh bring what that names and is absent before readers
// come there, until art is closed. Whatever fails costs readers their time and no more.
func (a *Agent) replay(ctx context.Context, art *artifact, admission *Admission) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(art.open, cancel)()
	trace, err := a.findTrace(ctx, admission)
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		a.log.Warn("look for a trace", "reference", art.reference, "err", err)
		return
	}
	var reads prefetch.Plan
	if trace != nil {
		reads = trace.Reads
		a.log.Info("replay a trace", "reference", art.reference, "workload", trace.Workload, "reads", len(reads), "bytes", reads.Bytes())
		// It knows better than their reads so far what readers come to.
		a.keepAhead(art, 0)
		defer a.keepAhead(art, readAhead)
	} else if reads, err = a.program(ctx, admission); err != nil {
		a.log.Info("nothing is known of what a container reads first", "reference", art.reference, "err", err)
	}
	f := feed{
		ask: func(d piece.Digest, first, last int) (release func()) {
			a.mesh.Ahead(d, first, last)
			return func() {}
		},
		here: func(bytes int64, fetched bool) {
			if fetched {
				a.replayed.Add(bytes)
			}
		},
		rate: rate.NewLimiter(rate.Inf, 0),
	}
	if err := f.run(ctx, reads, art); err != nil && ctx.Err() == nil {
		a.log.Warn("what is read first is not fetched to its end", "reference", art.reference, "err", err)
	}
}

// findTrace returns the newest trace that the policy trusts, nil when there is
// none: the registry's, where that cannot be asked the one that is kept here.
func (a *Agent) findTrace(ctx context.Context, admission *Admission) (*prefetch.Trace, error) {
	documents := newKeeper(admission.repo, a.shelf)
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	trace, steps, err := a.loadTrace(asking, documents, admission.Trusted)
	if err == nil {
		documents.keep(steps)
	} else if ctx.Err() == nil && isAway(err) {
		trace, steps, err = a.loadTrace(ctx, a.shelf, admission.Trusted)
	}
	for _, s := range steps {
		if !s.OK && s.Digest != "" {
			a.log.Warn("a trace is ignored", "reference", admission.Trusted.Reference(), "trace", s.Digest, "why", s.Why)
		}
	}
	return trace, err
}

func (a *Agent) loadTrace(ctx context.Context, documents signing.Repository, subject signing.Trusted) (*prefetch.Trace, []*signing.Step, error) {
	manifest, steps, err := a.opts.Policy.Trace(ctx, documents, subject)
	if err != nil || manifest.Bytes == nil {
		return nil, steps, err
	}
	trace, err := prefetch.LoadTrace(ctx, documents, manifest.Bytes)
	return &trace, steps, err
}
