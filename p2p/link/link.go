// Package link holds a node's bandwidth limits. One Link stands for the node's
// network link: every connection that passes through it shares one limit up
// and one limit down, whatever the connection is for. A Link within another
// limits a part of its traffic further.
package link

import (
	"context"
	"net"
	"sync/atomic"
)

// A Link limits and counts bytes. It is safe for concurrent use. A connection's
// deadline does not end its wait for the limit, only its being closed does; a
// deadline that passed meanwhile fails the write that follows.
type Link struct {
	parent *Link // nil for the whole link
	limits [2]bucket
	passed [2]atomic.Int64 // bytes
}

// A direction of a link.
type direction int

const (
	up direction = iota
	down
)

// New returns a Link of so many bytes a second; 0 or less is no limit.
func New(bytesUp, bytesDown int64) *Link { return (*Link)(nil).Within(bytesUp, bytesDown) }

// Within returns a Link for a part of l's traffic: its own limits hold, and
// l's too. What passes through it is counted by both.
func (l *Link) Within(bytesUp, bytesDown int64) *Link {
	part := &Link{parent: l}
	part.SetLimits(bytesUp, bytesDown)
	return part
}

// Limits returns the limits in bytes a second; 0 is none.
func (l *Link) Limits() (bytesUp, bytesDown int64) {
	return l.limits[up].rate(), l.limits[down].rate()
}

// SetLimits changes the limits to so many bytes a second; 0 or less is no
// limit. They hold at once, also for open connections and for whoever waits.
func (l *Link) SetLimits(bytesUp, bytesDown int64) {
	l.limits[up].set(bytesUp)
	l.limits[down].set(bytesDown)
}

// Sent returns the bytes written so far, over all connections.
func (l *Link) Sent() int64 { return l.passed[up].Load() }

// Received returns the bytes read so far, over all connections.
func (l *Link) Received() int64 { return l.passed[down].Load() }

// Conn returns c behind the link.
func (l *Link) Conn(c net.Conn) net.Conn {
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
