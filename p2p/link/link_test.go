package link_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/spate-project/spate/p2p/link"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The tests run in bubbles of their own time, so that they measure the limit and not the machine.

const (
	rate = 1 << 20 // bytes a second
	// slack is what a link may let through at once: its burst, and a chunk for each connection.
	slack = 4 * 32 << 10
)

// pair returns the two ends of a connection, the first one behind l.
func pair(t *testing.T, l *link.Link) (behind, far net.Conn) {
	a, b := net.Pipe()
	behind = l.Conn(a)
	t.Cleanup(func() {
		behind.Close()
		b.Close()
	})
	return behind, b
}

func TestLimitIsShared(t *testing.T) {
	for name, limits := range map[string][2]int64{"up": {rate, 0}, "down": {0, rate}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := link.New(limits[0], limits[1])
				const conns, each = 4, 2 << 20
				start := time.Now()
				var wg sync.WaitGroup
				var slowest, quickest time.Duration
				var mu sync.Mutex
				for range conns {
					behind, far := pair(t, l)
					from, to := behind, far
					if name == "down" {
						from, to = far, behind
					}
					wg.Go(func() {
						if n, err := from.Write(make([]byte, each)); n != each || err != nil {
							t.Errorf("wrote %d bytes: %v", n, err)
						}
						from.Close()
					})
					wg.Go(func() {
						if n, err := io.Copy(io.Discard, to); n != each || err != nil {
							t.Errorf("read %d bytes: %v", n, err)
						}
						took := time.Since(start)
						mu.Lock()
						defer mu.Unlock()
						slowest = max(slowest, took)
						if quickest == 0 || took < quickest {
							quickest = took
						}
					})
				}
				wg.Wait()
				ideal := time.Duration(float64(conns*each) / rate * float64(time.Second))
				most := time.Duration(float64(slack) / rate * float64(time.Second))
				if slowest < ideal-most || slowest > ideal+most {
					t.Errorf("%d connections took %v, want %v within %v", conns, slowest, ideal, most)
				}
				if quickest < ideal*3/4 {
					t.Errorf("one connection was done after %v of %v: they do not take turns", quickest, ideal)
				}
				total := l.Sent()
				if name == "down" {
					total = l.Received()
				}
				if total != conns*each {
					t.Errorf("%d bytes are counted, want %d", total, conns*each)
				}
			})
		})
	}
}

// TestNeverAhead: at no time has more passed than the limit and one burst allow.
func TestNeverAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := link.New(rate, 0)
		behind, far := pair(t, l)
		go behind.Write(make([]byte, 1<<20))
		start := time.Now()
		buf := make([]byte, 1000)
		total := 0
		for total < 1<<20 {
			n, err := far.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			total += n
			if allowed := slack + int(time.Since(start).Seconds()*rate); total > allowed {
				t.Fatalf("%d bytes after %v, at most %d are allowed", total, time.Since(start), allowed)
			}
		}
	})
}

// TestDirections: the one limit does not bear on the other direction.
func TestDirections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := link.New(rate, 0)
		behind, far := pair(t, l)
		start := time.Now()
		go far.Write(make([]byte, 8<<20))
		if _, err := io.ReadFull(behind, make([]byte, 8<<20)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("8 MiB down took %v where only up is limited", took)
		}
		if l.Received() != 8<<20 || l.Sent() != 0 {
			t.Errorf("counted %d down and %d up", l.Received(), l.Sent())
		}
	})
}

func TestNoLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := link.New(0, -1)
		behind, far := pair(t, l)
		start := time.Now()
		want := bytes.Repeat([]byte("spate"), 1<<20)
		go func() {
			behind.Write(want)
			behind.Close()
		}()
		got, err := io.ReadAll(far)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes of %d came: %v", len(got), len(want), err)
		}
		if took := time.Since(start); took != 0 || l.Sent() != int64(len(want)) {
			t.Errorf("it took %v, and %d bytes are counted", took, l.Sent())
		}
	})
}

// TestBytes: what goes through a limited link arrives as it was sent.
func TestBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := link.New(rate, rate)
		a, b := net.Pipe()
		from, to := l.Conn(a), l.Conn(b)
		want := make([]byte, 300_001)
		for i := range want {
			want[i] = byte(i * i >> 7)
		}
		go func() {
			from.Write(nil)
			from.Write(want[:7])
			from.Write(want[7:])
			from.Close()
		}()
		got, err := io.ReadAll(to)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes of %d came: %v", len(got), len(want), err)
		}
		to.Close()
		if l.Sent() != int64(len(want)) || l.Received() != int64(len(want)) {
			t.Errorf("counted %d up and %d down, want %d", l.Sent(), l.Received(), len(want))
		}
	})
}

// TestCloseEndsWaiting: neither a writer nor a reader that waits for the limit outlives its connection.
func TestCloseEndsWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slow = 1 << 10 // 32 s for a chunk
		l := link.New(slow, slow)
		start := time.Now()

		writer, far := pair(t, l)
		go io.Copy(io.Discard, far)
		wrote := make(chan error, 1)
		go func() {
			_, err := writer.Write(make([]byte, 1<<20))
			wrote <- err
		}()
		reader, near := pair(t, l)
		go near.Write(make([]byte, 1<<20))
		read := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, reader)
			read <- err
		}()
		synctest.Wait() // both wait for tokens
		sent := l.Sent()
		writer.Close()
		reader.Close()
		for name, c := range map[string]chan error{"writer": wrote, "reader": read} {
			if err := <-c; !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("the %s ends with %v, want net.ErrClosed", name, err)
			}
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("they waited %v for the limit", took)
		}
		if l.Sent() != sent {
			t.Errorf("%d bytes were sent after the close", l.Sent()-sent)
		}
		if err := writer.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed twice: %v", err)
		}

		// What the writer did not send is nobody's loss.
		next, far2 := pair(t, l)
		go io.Copy(io.Discard, far2)
		if _, err := next.Write(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("the next byte waited %v", took)
		}
	})
}

// TestDeadline: a deadline that passed during the wait fails the write after it.
func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := link.New(1<<10, 0)
		behind, far := pair(t, l)
		go io.Copy(io.Discard, far)
		behind.SetWriteDeadline(time.Now().Add(time.Second))
		if n, err := behind.Write(make([]byte, 1<<20)); !errors.Is(err, os.ErrDeadlineExceeded) || n > slack {
			t.Errorf("wrote %d bytes: %v, want os.ErrDeadlineExceeded", n, err)
		}
	})
}

func TestDialAndListen(t *testing.T) {
	server, client := link.New(0, 0), link.New(100<<20, 100<<20)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	limited := server.Listener(ln)
	done := make(chan error, 1)
	go func() {
		c, err := limited.Accept()
		if err == nil {
			_, err = io.Copy(c, c)
			c.Close()
		}
		done <- err
	}()
	dial := client.Dial((&net.Dialer{}).DialContext)
	c, err := dial(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := bytes.Repeat([]byte("x"), 100_000)
	go c.Write(want)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the echo: %v", err)
	}
	c.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, count := range []int64{server.Sent(), server.Received(), client.Sent(), client.Received()} {
		if count != int64(len(want)) {
			t.Errorf("counted %d bytes, want %d", count, len(want))
		}
	}
	limited.Close()
	if _, err := limited.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after the close: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := dial(gone, "tcp", ln.Addr().String()); !errors.Is(err, context.Canceled) {
		t.Errorf("dial with a context that has ended: %v", err)
	}
}
