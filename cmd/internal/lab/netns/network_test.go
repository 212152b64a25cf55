package netns

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newNetwork returns a network that is closed at the end of the test.
func newNetwork(t *testing.T) *Network {
	t.Helper()
	n, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func add(t *testing.T, n *Network, name string, link Link) *Host {
	t.Helper()
	h, err := n.Add(name, link)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// on runs f on a thread that is on the host.
func on(t *testing.T, h *Host, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			defer home.Close()
			err = unix.Setns(int(h.Namespace().Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = f()
		}
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("on %s: %v", h.Name(), err)
	}
}

func TestHostsReachEachOther(t *testing.T) {
	n := newNetwork(t)
	a, b := add(t, n, "a", Link{Up: 100e6, Down: 100e6}), add(t, n, "b", Link{})
	if a.Name() != "a" || a.Addr().String() != "10.83.0.1" || b.Addr().String() != "10.83.0.2" {
		t.Errorf("hosts %s at %v, %s at %v", a.Name(), a.Addr(), b.Name(), b.Addr())
	}
	beforeA, errA := a.Counters()
	beforeB, errB := b.Counters()
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}

	const size = 4 << 20
	var listener net.Listener
	on(t, a, func() (err error) {
		listener, err = net.Listen("tcp", a.Addr().String()+":0")
		return err
	})
	defer listener.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			defer conn.Close()
			_, err = conn.Write(make([]byte, size))
		}
		served <- err
	}()
	on(t, b, func() error {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			return err
		}
		defer conn.Close()
		got, err := io.Copy(io.Discard, conn)
		if err == nil && got != size {
			err = fmt.Errorf("%d bytes came, want %d", got, size)
		}
		return err
	})
	if err := <-served; err != nil {
		t.Fatal(err)
	}

	afterA, errA := a.Counters()
	afterB, errB := b.Counters()
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	sent, received := afterA.Sub(beforeA).Sent(), afterB.Sub(beforeB).Received()
	for what, got := range map[string]int64{"sent by a": sent, "received by b": received} {
		if got < size || got > size+size/100 {
			t.Errorf("content %s: %d bytes, want %d and hardly more", what, got, size)
		}
	}
	if back := afterB.Sub(beforeB).Sent(); back > size/100 {
		t.Errorf("b sent %d bytes of content: it sent nothing but acknowledgements", back)
	}
}

func TestLoopbackIsTheHostsOwn(t *testing.T) {
	n := newNetwork(t)
	a := add(t, n, "a", Link{})
	before, err := a.Counters()
	if err != nil {
		t.Fatal(err)
	}
	on(t, a, func() error {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer listener.Close()
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write(make([]byte, 64<<10))
		return err
	})
	after, err := a.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if n := after.Sub(before).SentBytes; n > 10<<10 {
		t.Errorf("%d bytes left the host over its link", n)
	}
}

func TestLinksAreShaped(t *testing.T) {
	n := newNetwork(t)
	tests := []struct {
		link                Link
		upBurst, upLimit    int64
		downBurst, downWait int64
	}{
		// 5 ms at 12.5 MB/s are 62500 bytes, less than the least burst; 50 ms are 625000.
		{Link{Up: 12.5e6, Down: 12.5e6}, 128 << 10, 625000, 128 << 10, 625000},
		{Link{Up: 31.25e6, Down: 1.25e9}, 156250, 1562500, 256 << 10, 62500000},
		{Link{}, 0, 0, 0, 0},
		{Link{Up: 1.25e6}, 128 << 10, 62500, 0, 0},
	}
	for i, tt := range tests {
		h := add(t, n, fmt.Sprintf("host-%d", i), tt.link)
		checkShape(t, h.space, linkName, tt.link.Up, tt.upBurst, tt.upLimit)
		checkShape(t, n.bridge, fmt.Sprintf("port%d", i+1), tt.link.Down, tt.downBurst, tt.downWait)
	}
}

// checkShape asks the kernel for a link's queue.
func checkShape(t *testing.T, s *space, name string, rate, burst, wait int64) {
	t.Helper()
	link, err := s.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	qdiscs, err := s.QdiscList(link)
	if err != nil {
		t.Fatal(err)
	}
	var tbf *netlink.Tbf
	for _, q := range qdiscs {
		if q, ok := q.(*netlink.Tbf); ok {
			tbf = q
		}
	}
	if rate == 0 {
		if tbf != nil {
			t.Errorf("%s: a limit of %d bytes a second, want none", name, tbf.Rate)
		}
		return
	}
	if tbf == nil {
		t.Errorf("%s: no limit, want %d bytes a second: %v", name, rate, qdiscs)
		return
	}
	got := int64(netlink.Xmitsize(tbf.Rate, tbf.Buffer))
	if int64(tbf.Rate) != rate || got < burst*99/100 || got > burst*101/100 || int64(tbf.Limit) != wait+burst {
		t.Errorf("%s: rate %d, burst %d, limit %d; want %d, %d, %d", name, tbf.Rate, got, tbf.Limit, rate, burst, wait+burst)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	before := namespaces(t)
	n, err := New()
	if err != nil {
		t.Fatal(err)
	}
	add(t, n, "a", Link{Up: 1e6, Down: 1e6})
	add(t, n, "b", Link{})
	if got := len(namespaces(t)); got < len(before)+3 {
		t.Errorf("%d namespaces, want a bridge and two hosts more than %d", got, len(before))
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	for ns := range namespaces(t) {
		if !before[ns] {
			t.Errorf("this process still has %s", ns)
		}
	}
}

// namespaces returns the network namespaces that this process is in or holds.
func namespaces(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for _, pattern := range []string{"/proc/self/task/*/ns/net", "/proc/self/fd/*"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			to, err := os.Readlink(path)
			if ok, _ := filepath.Match("net:*", to); err == nil && ok {
				all[to] = true
			}
		}
	}
	return all
}
