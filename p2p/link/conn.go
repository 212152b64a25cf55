package link

import (
	"io"
	"math"
	"net"
	"sync"
)

const (
	// socketBuffer is how much the kernel may buffer, in bytes, of a limited
	// connection. Its own choice would hide megabytes from the limit, and a
	// demand read would wait behind them. A connection that was limited once keeps it.
	socketBuffer = 256 << 10

	// run is how much the kernel sends itself before a new limit is seen.
	run = 4 << 20
)

// A conn is a connection behind a link.
type conn struct {
	net.Conn
	link   *Link
	shrink sync.Once
	once   sync.Once
	closed chan struct{} // closed with the connection, so that no waiter outlives it
}

// limited reports whether anything limits the direction. The first time it
// does, the kernel is told to buffer less.
func (c *conn) limited(d direction) bool {
	for l := c.link; l != nil; l = l.parent {
		if l.limits[d].limit.Load() != nil {
			c.shrink.Do(c.bufferLess)
			return true
		}
	}
	return false
}

func (c *conn) bufferLess() {
	if b, ok := c.Conn.(interface {
		SetReadBuffer(int) error
		SetWriteBuffer(int) error
	}); ok {
		b.SetReadBuffer(socketBuffer)
		b.SetWriteBuffer(socketBuffer)
	}
}

// portion is how many bytes may pass before a new limit is seen.
func (c *conn) portion(d direction) int {
	if c.limited(d) {
		return chunk
	}
	return run
}

// take waits for n bytes' tokens of every limit, and reports whether the connection is open still.
func (c *conn) take(d direction, n int, spent bool) bool {
	for l := c.link; l != nil; l = l.parent {
		if !l.limits[d].take(n, spent, c.closed) {
			return false
		}
	}
	return true
}

func (c *conn) count(d direction, n int64) {
	for l := c.link; l != nil; l = l.parent {
		l.passed[d].Add(n)
	}
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), c.portion(down))])
	c.count(down, int64(n))
	if !c.take(down, n, true) && err == nil {
		err = net.ErrClosed
	}
	return n, err
}

func (c *conn) Write(p []byte) (n int, err error) {
	for first := true; first || len(p) > 0; first = false {
		part := p[:min(len(p), c.portion(up))]
		if !c.take(up, len(part), false) {
			return n, net.ErrClosed
		}
		m, err := c.Conn.Write(part)
		n += m
		c.count(up, int64(m))
		if err != nil {
			return n, err
		}
		p = p[m:]
	}
	return n, nil
}

// ReadFrom lets the kernel send a file itself (sendfile) where nothing limits the link up.
func (c *conn) ReadFrom(r io.Reader) (n int64, err error) {
	rf, ok := c.Conn.(io.ReaderFrom)
	if !ok {
		return io.Copy(struct{ io.Writer }{c}, r)
	}
	all, ok := r.(*io.LimitedReader) // the kernel's way is found through one of them only
	if !ok {
		all = &io.LimitedReader{R: r, N: math.MaxInt64}
	}
	for err == nil && all.N > 0 {
		part := &io.LimitedReader{R: all.R, N: min(all.N, run)}
		var m int64
		if c.limited(up) {
			m, err = io.Copy(struct{ io.Writer }{c}, part)
		} else {
			m, err = rf.ReadFrom(part)
			c.count(up, m)
		}
		n += m
		all.N -= m
		if part.N > 0 {
			break // the end
		}
	}
	return n, err
}

func (c *conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
