package liar

import (
	"context"
	"net"

	"golang.org/x/time/rate"
)

const (
	// perSecond is what a trickling connection sends a second, free what it
	// sends at once before, which the handshakes take.
	perSecond = 1 << 10
	free      = 8 << 10
)

// A tricklingListener's connections send slowly.
type tricklingListener struct{ net.Listener }

func (l tricklingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &tricklingConn{c, rate.NewLimiter(perSecond, free), ctx, cancel}, nil
}

type tricklingConn struct {
	net.Conn
	limit  *rate.Limiter
	ctx    context.Context // ends when the connection is closed
	cancel context.CancelFunc
}

func (c *tricklingConn) Write(p []byte) (int, error) {
	for n := 0; n < len(p); {
		part := p[n:min(len(p), n+perSecond/4)]
		if err := c.limit.WaitN(c.ctx, len(part)); err != nil {
			return n, net.ErrClosed
		}
		k, err := c.Conn.Write(part)
		if n += k; err != nil {
			return n, err
		}
	}
	return len(p), nil
}

func (c *tricklingConn) Close() error {
	c.cancel()
	return c.Conn.Close()
}
