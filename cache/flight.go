package cache

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/spate-project/spate/cache/piece"
)

// A Source brings pieces that are absent. It is safe for concurrent use.
type Source interface {
	// Fetch brings piece i of object d: nil means that it was Put or Committed.
	// It also returns once the piece came by another way. The context ends when
	// nobody waits for the piece any more before it came. After
	// piece.ErrNotTrusted it is not asked again, after a *piece.WrongBytesError a
	// few times; after any other error, and while the time allows, it is.
	Fetch(ctx context.Context, d piece.Digest, i int) error

	// Ahead tells that a reader is on its way to pieces [first, last) of object
	// d, and returns soon. The source may bring them; what it does not is
	// Fetched when the reader comes there.
	Ahead(d piece.Digest, first, last int)
}

// Between two tries of a fetch.
const (
	firstPause   = 50 * time.Millisecond
	longestPause = 5 * time.Second
)

// mostWrong is how many times a source may have nothing but wrong bytes.
const mostWrong = 2

// A flight is one piece on its way, whoever waits for it.
type flight struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when err is final
	err    error

	waiters int   // guarded by Object.mu, as the rest
	disk    error // the disk refused the piece
}

// need returns when piece i is present, and has it fetched if it is not.
func (o *Object) need(ctx context.Context, i int) error {
	if ctx.Err() != nil {
		return o.fetchFailed(i, context.Cause(ctx))
	}
	here, err := o.Settle(i)
	if err != nil {
		return err
	}
	if here {
		o.store.stats.hits.Add(1)
		return nil
	}
	o.store.stats.misses.Add(1)
	if o.src == nil {
		return o.absent(i)
	}
	f, arrived, err := o.board(ctx, i)
	if f == nil {
		return err
	}
	defer o.leave(i, f)
	select {
	case <-arrived:
		return nil
	case <-o.dead:
		return o.Err()
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return o.fetchFailed(i, context.Cause(ctx))
	}
}

// board joins the flight of piece i, or starts one. There is none when the piece arrived meanwhile.
func (o *Object) board(ctx context.Context, i int) (*flight, <-chan struct{}, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil || o.states[i] == present {
		return nil, nil, o.err
	}
	f := o.flights[i]
	if f == nil {
		f = &flight{done: make(chan struct{})}
		ctx, f.cancel = context.WithTimeout(context.WithoutCancel(ctx), o.store.opts.FetchTimeout)
		o.flights[i] = f
		o.flying.Go(func() {
			f.err = o.fly(ctx, i, f)
			o.mu.Lock()
			o.land(i, f)
			o.mu.Unlock()
			close(f.done)
		})
	}
	f.waiters++
	return f, o.arrival(i), nil
}

// leave ends one waiter's part in a flight; the last one's cancels it, unless
// the piece came: with it the source may be bringing others, which it would drop half-way.
func (o *Object) leave(i int, f *flight) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if f.waiters--; f.waiters == 0 && o.states[i] != present {
		o.land(i, f)
	}
}

// land cancels a flight and takes it out of the table, so that who comes now starts another. o.mu is held.
func (o *Object) land(i int, f *flight) {
	f.cancel()
	if o.flights[i] == f {
		delete(o.flights, i)
	}
}

// fly asks the source for piece i until it is present. The error names the piece.
func (o *Object) fly(ctx context.Context, i int, f *flight) error {
	var last error
	wrong := 0
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		err := o.src.Fetch(ctx, o.object.Digest, i)
		if o.Has(i) {
			return nil
		}
		if disk := o.refused(f); disk != nil {
			return disk
		}
		switch {
		case ctx.Err() != nil && last != nil:
			return o.gaveUp(i, last)
		case ctx.Err() != nil && err != nil:
			return o.gaveUp(i, err)
		case err == nil:
			last = errors.New("the source reported success but the piece is not here")
		case errors.Is(err, piece.ErrNotTrusted):
			return o.fetchFailed(i, err)
		default:
			last = err
		}
		if _, ok := errors.AsType[*piece.WrongBytesError](err); ok {
			if wrong++; wrong == mostWrong {
				return o.fetchFailed(i, err)
			}
		}
		o.store.log.Debug("fetch failed", "object", o.object.Digest, "piece", i, "error", last, "next", pause)
		select {
		case <-ctx.Done():
			return o.gaveUp(i, last)
		case <-time.After(pause/2 + rand.N(pause)):
		}
	}
}

func (o *Object) refused(f *flight) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return f.disk
}

// gaveUp words the end of a flight's time. Only the classes of package piece can
// be tested for: a source's own cancellation is not the reader's.
func (o *Object) gaveUp(i int, last error) error {
	wrong := (*piece.WrongBytesError)(nil)
	if !errors.Is(last, piece.ErrNotHere) && !errors.As(last, &wrong) {
		last = errors.New(last.Error())
	}
	return o.fetchFailed(i, fmt.Errorf("gave up after %v: %w", o.store.opts.FetchTimeout, last))
}
