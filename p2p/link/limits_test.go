package link_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spate-project/spate/p2p/link"
)

// inEach runs test for both directions, in a bubble: send starts to move n
// bytes through a new connection of the link, and returns how long that takes.
func inEach(t *testing.T, test func(t *testing.T, set func(l *link.Link, limit int64), send func(l *link.Link, n int) <-chan time.Duration)) {
	for _, down := range []bool{false, true} {
		t.Run(map[bool]string{false: "up", true: "down"}[down], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				set := func(l *link.Link, limit int64) {
					if down {
						l.SetLimits(0, limit)
					} else {
						l.SetLimits(limit, 0)
					}
				}
				send := func(l *link.Link, n int) <-chan time.Duration {
					from, to := pair(t, l)
					if down {
						from, to = to, from
					}
					start, took := time.Now(), make(chan time.Duration, 1)
					go from.Write(make([]byte, n))
					go func() {
						if _, err := io.ReadFull(to, make([]byte, n)); err != nil {
							t.Error(err)
						}
						took <- time.Since(start)
					}()
					return took
				}
				test(t, set, send)
			})
		})
	}
}

// about fails the test unless took is how long n bytes take at the rate, within the link's slack.
func about(t *testing.T, what string, took time.Duration, n, rate int) {
	t.Helper()
	at := func(n int) time.Duration { return time.Duration(float64(n) / float64(rate) * float64(time.Second)) }
	if took < at(n-slack) || took > at(n+slack) {
		t.Errorf("%s took %v, want %v within %v", what, took, at(n), at(slack))
	}
}

// TestRaise: who waits for a limit waits no longer than the next one asks.
func TestRaise(t *testing.T) {
	inEach(t, func(t *testing.T, set func(*link.Link, int64), send func(*link.Link, int) <-chan time.Duration) {
		const n = 8 << 20
		l := link.New(1<<10, 1<<10) // more than two hours
		a, b := send(l, n), send(l, n)
		synctest.Wait()
		set(l, rate)
		about(t, "a raised limit: two connections", max(<-a, <-b), 2*n, rate)

		set(l, 1<<10)
		c := send(l, n)
		synctest.Wait()
		set(l, 0)
		if took := <-c; took != 0 {
			t.Errorf("without the limit it still took %v", took)
		}
	})
}

// TestLower: a limit bears on connections that had none, or another one.
func TestLower(t *testing.T) {
	inEach(t, func(t *testing.T, set func(*link.Link, int64), send func(*link.Link, int) <-chan time.Duration) {
		const n = 8 << 20
		l := link.New(0, 0)
		from, to := pair(t, l)
		for _, c := range []net.Conn{from, to} { // both have read and written before the limit
			go c.Write([]byte("before"))
		}
		for _, c := range []net.Conn{from, to} {
			io.ReadFull(c, make([]byte, 6))
		}
		set(l, rate)
		start := time.Now()
		var both sync.WaitGroup
		both.Go(func() { from.Write(make([]byte, n)) })
		both.Go(func() { io.ReadFull(to, make([]byte, n)) })
		both.Go(func() { to.Write(make([]byte, n)) })
		both.Go(func() { io.ReadFull(from, make([]byte, n)) })
		both.Wait()
		about(t, "an open connection", time.Since(start), n, rate)

		set(l, 4*rate)
		c := send(l, n)
		time.Sleep(time.Second) // 4 MiB
		set(l, rate/2)
		about(t, "the slower half", <-c-time.Second, n/2, rate/2)
	})
}

// TestReadUnderWay: a read that began without a limit, and brings more than one portion, pays for all of it.
func TestReadUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 1 << 20
		l := link.New(0, 0)
		behind, far := pair(t, l)
		start, took := time.Now(), make(chan time.Duration)
		go func() {
			io.ReadFull(behind, make([]byte, n))
			took <- time.Since(start)
		}()
		synctest.Wait()
		l.SetLimits(0, rate)
		go far.Write(make([]byte, n))
		about(t, "it", <-took, n, rate)
	})
}

// TestOftenChanged: changes add no bursts.
func TestOftenChanged(t *testing.T) {
	inEach(t, func(t *testing.T, set func(*link.Link, int64), send func(*link.Link, int) <-chan time.Duration) {
		const n = 4 << 20
		l := link.New(0, 0)
		set(l, rate)
		done := send(l, n)
		for i := range 40 {
			time.Sleep(100 * time.Millisecond)
			set(l, rate+int64(i%2))
		}
		if took, least := <-done, (n-slack)*time.Second/rate; took < least {
			t.Errorf("it took %v, want %v at least", took, least)
		}
	})
}

// TestWithin: a part's own limit holds, and the whole's.
func TestWithin(t *testing.T) {
	inEach(t, func(t *testing.T, set func(*link.Link, int64), send func(*link.Link, int) <-chan time.Duration) {
		const n = 4 << 20
		whole := link.New(0, 0)
		part := whole.Within(0, 0)
		set(part, rate)
		a, b := send(part, n), send(whole, n)
		if took := <-b; took != 0 {
			t.Errorf("what passes beside the limited part took %v", took)
		}
		about(t, "the part", <-a, n, rate)

		set(part, 0)
		set(whole, rate)
		a, b = send(part, n), send(whole, n)
		about(t, "the part and what is beside it", max(<-a, <-b), 2*n, rate)

		set(part, rate/4)
		a, b = send(part, n/4), send(whole, n*3/4)
		about(t, "the part under both limits", <-a, n/4, rate/4)
		about(t, "what is beside it", <-b, n, rate)

		set(whole, 1<<10)
		a = send(part, n)
		synctest.Wait() // it waits for the whole, or will
		set(whole, 0)
		about(t, "the part, with the whole set free", <-a, n, rate/4)

		synctest.Wait() // for writers to have counted what was read
		counted := func(l *link.Link) int64 { return l.Sent() + l.Received() }
		if got, want := counted(part), int64(2*n+n/4+n); got != want {
			t.Errorf("the part counts %d bytes, want %d", got, want)
		}
		if got, want := counted(whole), int64(4*n+n+n); got != want {
			t.Errorf("the whole counts %d bytes, want %d", got, want)
		}
	})
}

func TestLimits(t *testing.T) {
	l := link.New(5, -1)
	if up, down := l.Limits(); up != 5 || down != 0 {
		t.Errorf("limits %d and %d, want 5 and 0", up, down)
	}
	l.SetLimits(0, 7)
	if up, down := l.Limits(); up != 0 || down != 7 {
		t.Errorf("limits %d and %d, want 0 and 7", up, down)
	}
}

// TestFile: a file arrives as it is, by the kernel's hand and by ours, whatever the limits do meanwhile.
func TestFile(t *testing.T) {
	want := make([]byte, 13<<20+5)
	for i := range want {
		want[i] = byte(i * i >> 9)
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	const fast = 1 << 30
	for _, test := range []struct {
		name  string
		limit int64 // of the part, at first
		later int64 // after the first bytes
		part  int64 // of the file; 0 is all
	}{
		{"unlimited", 0, 0, 0},
		{"limited", fast, fast, 0},
		{"set free", fast, 0, 0},
		{"limited on the way", 0, fast, 0},
		{"a part of it", 0, 0, 4 << 20},
		{"a part of it, limited", fast, fast, 9<<20 + 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			whole := link.New(0, 0)
			l := whole.Within(test.limit, 0)
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { ln.Close() })
			size := int64(len(want))
			if test.part > 0 {
				size = test.part
			}
			sent := make(chan error, 1)
			go func() {
				c, err := l.Listener(ln).Accept()
				if err != nil {
					sent <- err
					return
				}
				defer c.Close()
				f, err := os.Open(path)
				if err != nil {
					sent <- err
					return
				}
				defer f.Close()
				if test.part > 0 {
					_, err = io.CopyN(c, f, test.part)
				} else {
					_, err = io.Copy(c, f)
				}
				sent <- err
			}()
			c, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			got := make([]byte, size)
			if _, err := io.ReadFull(c, got[:1<<20]); err != nil {
				t.Fatal(err)
			}
			l.SetLimits(test.later, 0)
			if _, err := io.ReadFull(c, got[1<<20:]); err != nil {
				t.Fatal(err)
			}
			if n, _ := c.Read(make([]byte, 1)); n != 0 {
				t.Error("more came than was sent")
			}
			if err := <-sent; err != nil || !bytes.Equal(got, want[:size]) {
				t.Errorf("it arrived with other bytes, or not whole: %v", err)
			}
			if l.Sent() != size || whole.Sent() != size {
				t.Errorf("counted %d and %d bytes, want %d", l.Sent(), whole.Sent(), size)
			}
		})
	}
}
