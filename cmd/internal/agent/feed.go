package agent

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/spate-project/spate/cache"
	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/prefetch"
)

const (
	// feeding bounds the bytes of a plan that are on their way at once, and
	// feedingSpans the runs of pieces that they lie in: the mesh names twice as
	// many of an object (tracker.MaxSpans), and readers have some too.
	feeding      = 64 << 20
	feedingSpans = 32

	// longestSpan makes spans short, so that what comes makes room soon.
	longestSpan = 2 << 20

	// asking is after what time the mesh is asked again for what did not come.
	asking = 5 * time.Second
)

// A feed has the mesh bring what plans name, in order, a window of it at a time.
type feed struct {
	// ask asks the mesh for pieces [first, last) of an object, until release is called.
	ask func(d piece.Digest, first, last int) (release func())

	// here is told of each part of the plan that is here: what was before, and what
	// was fetched. It is called from several goroutines.
	here func(bytes int64, fetched bool)

	rate *rate.Limiter // of bytes; its burst is a span at least

	window *semaphore.Weighted
	group  *errgroup.Group // waits for spans
}

// A span is the pieces [first, last) of an object.
type span struct {
	object      *cache.Object
	first, last int
	bytes       int64
}

// run returns when all that reads names of the artifacts is here, or with why
// that is not to be: the context's error, or that of an object.
func (f *feed) run(ctx context.Context, reads prefetch.Plan, artifacts ...*artifact) error {
	objects, known := objectsOf(artifacts)
	f.window = semaphore.NewWeighted(feeding)
	f.group, ctx = errgroup.WithContext(ctx)
	f.group.SetLimit(1 + feedingSpans)
	f.group.Go(func() error {
		var s span
		for d, i := range reads.Pieces(known...) {
			object := objects[d]
			here, err := object.Settle(i)
			if err != nil {
				return err
			}
			_, n := object.Tree().Object().Span(i)
			if here {
				f.here(n, false)
				continue
			}
			if s.object != object || s.last != i || s.bytes+n > longestSpan {
				if err := f.begin(ctx, s); err != nil {
					return err
				}
				s = span{object: object, first: i, last: i}
			}
			s.last++
			s.bytes += n
		}
		return f.begin(ctx, s)
	})
	return f.group.Wait()
}

// objectsOf returns the objects of artifacts by their digests, and what they are.
func objectsOf(artifacts []*artifact) (map[piece.Digest]*cache.Object, []piece.Object) {
	objects, known := make(map[piece.Digest]*cache.Object), []piece.Object(nil)
	for _, art := range artifacts {
		for _, file := range art.files {
			o := file.object.Tree().Object()
			objects[o.Digest] = file.object
			known = append(known, o)
		}
	}
	return objects, known
}

// begin asks for s once there is room for it in the window.
func (f *feed) begin(ctx context.Context, s span) error {
	if s.object == nil {
		return ctx.Err()
	}
	if err := f.rate.WaitN(ctx, int(s.bytes)); err != nil {
		return err
	}
	room := min(s.bytes, feeding)
	if err := f.window.Acquire(ctx, room); err != nil {
		return err
	}
	release := f.ask(s.object.Tree().Object().Digest, s.first, s.last)
	f.group.Go(func() error {
		defer f.window.Release(room)
		return f.await(ctx, s, release)
	})
	return nil
}

// await returns when all of s, which was asked for, is here. It asks again where
// the mesh has given it up or takes a part of it at a time.
func (f *feed) await(ctx context.Context, s span, release func()) error {
	defer func() { release() }()
	for i := s.first; i < s.last; {
		waiting, cancel := context.WithTimeout(ctx, asking)
		err := s.object.Wait(waiting, i)
		late := waiting.Err() != nil
		cancel()
		switch {
		case err == nil:
			i++
		case ctx.Err() != nil || !late:
			return err
		default:
			release()
			release = f.ask(s.object.Tree().Object().Digest, i, s.last)
		}
	}
	f.here(s.bytes, true)
	return nil
}
