// Package link holds a node's bandwidth limits. One Link stands for the node's
// network link: every connection that passes through it shares one limit up
// and one limit down, whatever the connection is for.
package link

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// chunk is how much of a read or write takes its tokens at once. It is small
// against a second of any link worth limiting, so that connections take turns.
const chunk = 32 << 10

// A Link limits and counts bytes. It is safe for concurrent use. A connection's
// deadline does not end its wait for the limit, only its being closed does; a
// deadline that passed meanwhile fails the write that follows.
type Link struct {
	up, down         *rate.Limiter // nil is no limit
	sent, received   atomic.Int64
	socketBufferSize int // bytes; 0 leaves the kernel's choice
}

// New returns a Link of up and down bytes a second; 0 is no limit.
func New(up, down int64) *Link {
	l := &Link{up: limiter(up), down: limiter(down)}
	if l.up != nil || l.down != nil {
		// The kernel's buffers would hide megabytes from the limit, and a
		// demand read would wait behind them.
		l.socketBufferSize = 256 << 10
	}
	return l
}

func limiter(bytesPerSecond int64) *rate.Limiter {
	if bytesPerSecond <= 0 {
		return nil
	}
	burst := max(2*chunk, int(bytesPerSecond/100)) // 10 ms
	return rate.NewLimiter(rate.Limit(bytesPerSecond), burst)
}

// Sent returns the bytes written so far, over all connections.
func (l *Link) Sent() int64 { return l.sent.Load() }

// Received returns the bytes read so far, over all connections.
func (l *Link) Received() int64 { return l.received.Load() }

// Conn returns c behind the link.
func (l *Link) Conn(c net.Conn) net.Conn {
	if b, ok := c.(interface {
		SetReadBuffer(int) error
		SetWriteBuffer(int) error
	}); ok && l.socketBufferSize > 0 {
		b.SetReadBuffer(l.socketBufferSize)
		b.SetWriteBuffer(l.socketBufferSize)
	}
	return &conn{Conn: c, link: l, closed: make(chan struct{})}
}

// Listener returns ln whose connections are behind the link.
func (l *Link) Listener(ln net.Listener) net.Listener {
	return listener{ln, l}
}

// A DialFunc is net.Dialer's DialContext.
type DialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// Dial returns dial whose connections are behind the link.
func (l *Link) Dial(dial DialFunc) DialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return l.Conn(c), nil
	}
}

type listener struct {
	net.Listener
	link *Link
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.link.Conn(c), nil
}

type conn struct {
	net.Conn
	link   *Link
	once   sync.Once
	closed chan struct{} // closed with the connection, so that no waiter outlives it
}

// wait returns when r's tokens are due, and reports whether the connection is open still.
func (c *conn) wait(r *rate.Reservation) bool {
	delay := r.Delay()
	if delay == 0 {
		return true
	}
	t := time.NewTimer(delay)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.closed:
		return false
	}
}

func (c *conn) Read(p []byte) (int, error) {
	if c.link.down != nil {
		p = p[:min(len(p), chunk)]
	}
	n, err := c.Conn.Read(p)
	c.link.received.Add(int64(n))
	if n > 0 && c.link.down != nil && !c.wait(c.link.down.ReserveN(time.Now(), n)) && err == nil {
		err = net.ErrClosed
	}
	return n, err
}

func (c *conn) Write(p []byte) (n int, err error) {
	if c.link.up == nil {
		n, err = c.Conn.Write(p)
		c.link.sent.Add(int64(n))
		return n, err
	}
	for len(p) > 0 {
		part := p[:min(len(p), chunk)]
		tokens := c.link.up.ReserveN(time.Now(), len(part))
		if !c.wait(tokens) {
			tokens.Cancel()
			return n, net.ErrClosed
		}
		m, err := c.Conn.Write(part)
		n += m
		c.link.sent.Add(int64(m))
		if err != nil {
			return n, err
		}
		p = p[m:]
	}
	return n, nil
}

func (c *conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// ReadFrom lets the kernel send a file itself (sendfile) where nothing limits the link up.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	rf, ok := c.Conn.(io.ReaderFrom)
	if !ok || c.link.up != nil {
		return io.Copy(struct{ io.Writer }{c}, r)
	}
	n, err := rf.ReadFrom(r)
	c.link.sent.Add(n)
	return n, err
}
