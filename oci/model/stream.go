package model

import (
	"context"
	"io"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/spate-project/spate/cache/piece"
)

const (
	chunkSize = 1 << 20 // bytes of one read
	chunks    = 4       // how far reading, hashing and sending may be apart
)

// A stream reads a file once and feeds two consumers with it, a hasher and
// whoever reads the stream, each at its own pace. Reading, hashing and sending
// so take as long as the slowest of them. Memory is chunks*chunkSize at most.
type stream struct {
	ctx    context.Context // governs Read, which the transport calls without one
	free   chan *chunk
	toHash chan *chunk
	toSend chan *chunk
	cur    *chunk // being sent
	rest   []byte // of cur
	err    error  // why reading ended; set before toSend is closed
	tree   chan *piece.Tree
}

// A chunk goes back to the free ones when both consumers have let go of it.
type chunk struct {
	buf   []byte
	data  []byte
	users atomic.Int32
}

// startStream starts the goroutines of a stream in g. They end when src does or
// ctx is done.
func startStream(ctx context.Context, g *errgroup.Group, src io.Reader, size int64) *stream {
	n := int(min(chunks, size/chunkSize+1))
	s := &stream{
		ctx:    ctx,
		free:   make(chan *chunk, n),
		toHash: make(chan *chunk, n),
		toSend: make(chan *chunk, n),
		tree:   make(chan *piece.Tree, 1),
	}
	for range n {
		s.free <- &chunk{buf: make([]byte, min(chunkSize, size+1))}
	}
	g.Go(func() error { s.fill(src); return nil })
	g.Go(func() error { s.hash(size); return nil })
	return s
}

// fill reads src into free chunks. The channels are as large as there are
// chunks, so only a free one is ever waited for.
func (s *stream) fill(src io.Reader) {
	defer close(s.toHash)
	defer close(s.toSend)
	for {
		var c *chunk
		select {
		case c = <-s.free:
		case <-s.ctx.Done():
			s.err = s.ctx.Err()
			return
		}
		n, err := io.ReadFull(src, c.buf)
		if n > 0 {
			c.data = c.buf[:n]
			c.users.Store(2)
			s.toHash <- c
			s.toSend <- c
		}
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			s.err = io.EOF
			return
		default:
			s.err = err
			return
		}
	}
}

// hash leaves the proven tree in s.tree, or closes it when src did not have size bytes.
func (s *stream) hash(size int64) {
	defer close(s.tree)
	h := piece.NewHasher(size)
	for c := range s.toHash {
		h.Write(c.data)
		s.release(c)
	}
	if tree, err := h.Sum(); err == nil {
		s.tree <- tree
	}
}

func (s *stream) release(c *chunk) {
	if c.users.Add(-1) == 0 {
		s.free <- c
	}
}

// Read is the second consumer.
func (s *stream) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if s.cur != nil {
			s.release(s.cur)
			s.cur = nil
		}
		select {
		case c, ok := <-s.toSend:
			if !ok {
				return 0, s.err
			}
			s.cur, s.rest = c, c.data
		case <-s.ctx.Done():
			return 0, s.ctx.Err()
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}
