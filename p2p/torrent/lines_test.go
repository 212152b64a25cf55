package torrent

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/spate-project/spate/p2p/tracker"
)

// pair returns the lines of two nodes, over a connection that this one dials to that.
func pair(t *testing.T, a, b net.Conn) (this, that *lines) {
	t.Helper()
	end := func(c net.Conn, peer string) *peerConn {
		g := &gatherer{Conn: c}
		return &peerConn{g, g, peerAddr(peer), time.Now().Add(time.Hour)}
	}
	this, that = newLines("a", slog.New(slog.DiscardHandler)), newLines("b", slog.New(slog.DiscardHandler))
	t.Cleanup(this.close)
	t.Cleanup(that.close)
	if err := that.add(end(b, "a"), false); err != nil {
		t.Fatal(err)
	}
	if err := this.add(end(a, "b"), true); err != nil {
		t.Fatal(err)
	}
	return this, that
}

// loopback returns the two ends of a TCP connection.
func loopback(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// TestLineBothWays: however much streams carry both ways at once, no side ends up
// waiting for room that only the other one can make.
func TestLineBothWays(t *testing.T) {
	const streams, size = 64, 2 << 20
	a, b := loopback(t)
	this, that := pair(t, a, b)
	var done sync.WaitGroup
	full := make(chan struct{}) // the line is, both ways: nobody has read yet
	exchange := func(c net.Conn) {
		done.Go(func() {
			if _, err := c.Write(make([]byte, size)); err != nil {
				t.Errorf("write: %v", err)
			}
		})
		done.Go(func() {
			<-full
			if n, err := io.CopyN(io.Discard, struct{ io.Reader }{c}, size); err != nil {
				t.Errorf("read %d bytes of %d: %v", n, size, err)
			}
		})
	}
	var ends []net.Conn
	for range streams {
		c, err := this.dial(t.Context(), tracker.Peer{Node: "b"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, c, <-that.taken)
	}
	for _, c := range ends {
		exchange(c)
	}
	time.Sleep(time.Second)
	close(full)
	ended := make(chan struct{})
	go func() { done.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("both sides wait for the other one")
		this.close()
		that.close()
		<-ended
	}
}

// TestLineStalled: closing a stream does not wait for a peer that reads nothing,
// for the engine does it with its client's lock held.
func TestLineStalled(t *testing.T) {
	a, b := loopback(t)
	this, _ := pair(t, a, stalled{b, t.Context()})
	var all []net.Conn
	var writing sync.WaitGroup
	for range 64 {
		c, err := this.dial(t.Context(), tracker.Peer{Node: "b"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	for _, c := range all {
		writing.Go(func() { c.Write(make([]byte, 1<<20)) })
	}
	time.Sleep(time.Second) // the connection is full by then
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		for _, c := range all {
			c.Close()
		}
	}()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Error("closing a stream waits for the peer")
	}
	this.close()
	<-closed
	writing.Wait()
}

// A stalled connection reads nothing until its context ends.
type stalled struct {
	net.Conn
	ctx context.Context
}

func (s stalled) Read([]byte) (int, error) {
	<-s.ctx.Done()
	return 0, io.EOF
}
