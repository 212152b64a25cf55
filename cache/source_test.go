package cache

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/spate-project/spate/cache/piece"
)

// The zoo of sources: each is well-behaved in every way but its own.

// What only reads bring.
type onDemand struct{}

func (onDemand) Ahead(piece.Digest, int, int) {}

// An origin has everything. It puts pieces whole, or in blocks of the given size.
type origin struct {
	onDemand
	into  *Object
	data  []byte
	block int
	asked atomic.Int64
}

func (s *origin) Fetch(_ context.Context, _ piece.Digest, i int) error {
	s.asked.Add(1)
	if s.block == 0 {
		return putPiece(s.into, s.data, i)
	}
	off, n := s.into.object.Span(i)
	for at := int64(0); at < n; at += int64(s.block) {
		end := min(at+int64(s.block), n)
		if err := s.into.WriteBlock(i, s.data[off+at:off+end], at); err != nil {
			return err
		}
	}
	return s.into.Commit(i)
}

// below is the cache under another one.
type below struct {
	onDemand
	from, into *Object
}

func (s *below) Fetch(ctx context.Context, _ piece.Digest, i int) error {
	off, n := s.into.object.Span(i)
	buf := make([]byte, n)
	if _, err := s.from.ReadContext(ctx, buf, off); err != nil {
		return err
	}
	v, err := s.into.tree.Verify(i, buf)
	if err != nil {
		return err
	}
	return s.into.Put(v)
}

// A flaky source fails the first tries.
type flaky struct {
	origin
	failures atomic.Int64 // still to come
	err      error
}

func (s *flaky) Fetch(ctx context.Context, d piece.Digest, i int) error {
	if s.failures.Add(-1) >= 0 {
		s.asked.Add(1)
		return s.err
	}
	return s.origin.Fetch(ctx, d, i)
}

// A liar sends the right number of wrong bytes.
type liar struct {
	onDemand
	into *Object
}

func (s *liar) Fetch(_ context.Context, _ piece.Digest, i int) error {
	_, n := s.into.object.Span(i)
	if err := s.into.WriteBlock(i, make([]byte, n), 0); err != nil {
		return err
	}
	err := s.into.Commit(i)
	if wrong := (*piece.WrongBytesError)(nil); errors.As(err, &wrong) {
		wrong.From = "liar"
	}
	return err
}

// An empty source says that it brought the piece and did not.
type empty struct{ onDemand }

func (empty) Fetch(context.Context, piece.Digest, int) error { return nil }

// A silent source answers when its context ends.
type silent struct {
	onDemand
	asked chan int // gets the piece
	ended chan int // gets it when the context ended; may be nil
}

func (s *silent) Fetch(ctx context.Context, _ piece.Digest, i int) error {
	s.asked <- i
	<-ctx.Done()
	if s.ended != nil {
		s.ended <- i
	}
	return ctx.Err()
}

// A slow source waits to be told before it brings a piece.
type slow struct {
	origin
	begun chan int
	goOn  chan struct{}
}

func (s *slow) Fetch(ctx context.Context, d piece.Digest, i int) error {
	s.begun <- i
	select {
	case <-s.goOn:
		return s.origin.Fetch(ctx, d, i)
	case <-ctx.Done():
		return ctx.Err()
	}
}
