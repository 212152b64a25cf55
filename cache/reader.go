package cache

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"
)

// ReadAt reads verified bytes, and fetches nothing: where a piece of the range
// is absent it reads none and the error is piece.ErrNotHere. Otherwise it is an io.ReaderAt.
func (o *Object) ReadAt(p []byte, off int64) (int, error) {
	first, last, err := o.pieces(off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	for i := first; i < last; i++ {
		if here, err := o.Settle(i); err != nil {
			return 0, err
		} else if !here {
			return 0, o.absent(i)
		}
	}
	return o.read(p, off)
}

// ReadContext is ReadAt that waits for absent pieces as Ensure does.
func (o *Object) ReadContext(ctx context.Context, p []byte, off int64) (int, error) {
	if err := o.Ensure(ctx, off, int64(len(p))); err != nil {
		return 0, err
	}
	return o.read(p, off)
}

// Ensure returns when every piece of the n bytes at off, cut to the object's
// end, is present. Absent ones are fetched, several at a time; a piece that
// somebody fetches already is waited for. The context governs the waiting: a
// fetch goes on as long as anyone waits for it, within Options.FetchTimeout.
// The error names the object, the piece and the cause; it is piece.ErrNotTrusted,
// piece.ErrNotHere, a *piece.WrongBytesError or the disk's where that was the cause.
func (o *Object) Ensure(ctx context.Context, off, n int64) error {
	first, last, err := o.pieces(off, n)
	if err != nil {
		return err
	}
	lacking, coming, err := o.note(first, last, off, n)
	o.store.stats.hits.Add(int64(last - first - len(lacking)))
	if coming.first < coming.last {
		o.src.Ahead(o.object.Digest, coming.first, coming.last)
	}
	if err != nil || len(lacking) == 0 {
		return err
	}
	ctx, ended := o.store.stall(ctx, o.object.Digest, len(lacking))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(o.store.opts.Flights)
	for _, i := range lacking {
		g.Go(func() error { return o.need(ctx, i) })
	}
	err = g.Wait()
	ended(err)
	return err
}

// note notes a read of the n bytes at off, which are in the pieces [first, last),
// and returns which of these are not present and what the reader comes to.
func (o *Object) note(first, last int, off, n int64) (lacking []int, coming window, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := first; i < last; i++ {
		if o.states[i] != present {
			lacking = append(lacking, i)
		}
	}
	return lacking, o.coming(off, n), o.err
}

// pieces returns the pieces that hold the n bytes at off.
func (o *Object) pieces(off, n int64) (first, last int, err error) {
	if off < 0 || n < 0 {
		return 0, 0, fmt.Errorf("read %d bytes at %d of object %s: out of range", n, off, o.object.Digest)
	}
	first, last = o.object.Range(off, n)
	return first, last, nil
}

// read reads from the file what is known to be present.
func (o *Object) read(p []byte, off int64) (int, error) {
	if err := o.Err(); err != nil {
		return 0, err
	}
	short := int64(len(p)) > o.object.Size-off
	if short {
		p = p[:max(0, o.object.Size-off)]
	}
	n, err := o.data.ReadAt(p, off)
	switch {
	case n < len(p):
		if err == io.EOF { // somebody cut the file
			err = io.ErrUnexpectedEOF
		}
		return n, fmt.Errorf("read object %s at %d: %w", o.object.Digest, off, o.store.explain(err))
	case short:
		return n, io.EOF
	}
	return n, nil
}
