package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spate-project/spate/cache"
	"github.com/spate-project/spate/cache/piece"
)

const (
	testSize   = 6<<20 + 12345
	testPieces = testSize/piece.MinLength + 1
)

func content(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func tree(data []byte) *piece.Tree {
	h := piece.NewHasher(int64(len(data)))
	h.Write(data)
	t, err := h.Sum()
	if err != nil {
		panic(err)
	}
	return t
}

// An origin brings pieces of data when it may.
type origin struct {
	into *cache.Object
	data []byte

	fail  atomic.Pointer[error]
	begun chan int      // when not nil: gets each piece asked for
	goOn  chan struct{} // when not nil: held until it is closed
	ended chan int      // gets each piece whose context ended while it was held
}

func (s *origin) Ahead(d piece.Digest, first, last int) {
	for i := first; i < last; i++ {
		if !s.into.Has(i) {
			_ = s.Fetch(context.Background(), d, i)
		}
	}
}

func (s *origin) Fetch(ctx context.Context, _ piece.Digest, i int) error {
	if s.begun != nil {
		s.begun <- i
	}
	if s.goOn != nil {
		select {
		case <-s.goOn:
		case <-ctx.Done():
			s.ended <- i
			return ctx.Err()
		}
	}
	if err := s.fail.Load(); err != nil {
		return *err
	}
	off, n := s.into.Tree().Object().Span(i)
	v, err := s.into.Tree().Verify(i, s.data[off:off+n])
	if err != nil {
		return err
	}
	return s.into.Put(v)
}

// held makes s wait to be told.
func (s *origin) held() *origin {
	s.begun, s.goOn, s.ended = make(chan int, 1000), make(chan struct{}), make(chan int, 1000)
	return s
}

// open opens s's object in a cache of its own.
func (s *origin) open(tb testing.TB, opts cache.Options) *origin {
	tb.Helper()
	store, err := cache.Open(tb.TempDir(), opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { store.Close() })
	if s.into, err = store.Open(tree(s.data), s); err != nil {
		tb.Fatal(err)
	}
	return s
}

// patient is for caches whose fetches must never end by themselves in a test.
var patient = cache.Options{FetchTimeout: 24 * time.Hour}

type mounted struct {
	*FS
	dir  string
	stop context.CancelFunc
	done chan error
}

// mountAt mounts entries in a new directory, and unmounts them when the test ends, come what may.
func mountAt(tb testing.TB, opts Options, entries ...Entry) *mounted {
	tb.Helper()
	f, err := New(entries, opts)
	if err != nil {
		tb.Fatal(err)
	}
	m := &mounted{FS: f, dir: tb.TempDir(), done: make(chan error, 1)}
	if err := f.Mount(m.dir); err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	go func() { m.done <- f.Run(ctx); close(m.done) }()
	refusePolls(m.dir)
	tb.Cleanup(func() {
		cancel()
		<-m.done
		unix.Unmount(m.dir, unix.MNT_DETACH)
	})
	return m
}

// refusePolls makes the kernel ask, once and for all, whether the files can be
// polled. Go programs poll what they open; for this one, which serves the mount
// that it reads, that would be waiting for itself without giving up the thread.
func refusePolls(dir string) {
	if fd, err := unix.Open(filepath.Join(dir, ".go-fuse-epoll-hack"), unix.O_RDONLY, 0); err == nil { // go-fuse's name
		unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		unix.Close(fd)
	}
}

// unmountIdle unmounts when nobody uses files any more, though the kernel may not have noticed yet.
func (m *mounted) unmountIdle() error {
	err := m.Unmount()
	for errors.Is(err, unix.EBUSY) {
		err = m.Unmount()
	}
	return err
}

func (m *mounted) path(name string) string { return filepath.Join(m.dir, name) }

func TestReadAheadIsRaised(t *testing.T) {
	src := (&origin{data: content(7, testSize)}).open(t, patient)
	m := mountAt(t, Options{ReadAhead: 2 << 20}, Entry{Path: "f", File: src.into})
	st, err := statMount(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", st.Dev_major, st.Dev_minor))
	if err != nil || string(got) != "2048\n" {
		t.Errorf("read_ahead_kb is %q, %v", got, err)
	}
}

// TestServerKilled: readers of a mount whose server died get errors, nothing hangs.
func TestServerKilled(t *testing.T) {
	dir := t.TempDir()
	server, out := startChild(t, "serve", t.TempDir(), dir)
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	if out.Scan(); out.Text() != "mounted" {
		t.Fatal("cannot mount:", out.Text())
	}
	f, err := os.Open(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1000)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, content(1, 1000)) {
		t.Fatal("before the kill:", err)
	}
	server.Process.Kill()
	server.Wait()
	if n, err := f.ReadAt(got, testSize-1000); n != 0 || err == nil {
		t.Errorf("read from a dead server: %d, %v", n, err)
	}
	f.Close() // does not hang
	_, err = checkMountPoint(dir)
	if err == nil || !strings.Contains(err.Error(), "umount") {
		t.Errorf("mounting over a dead mount: %v", err)
	}
}

func TestMountPoint(t *testing.T) {
	src := (&origin{data: content(8, 10)}).open(t, patient)
	entry := Entry{Path: "f", File: src.into}
	m := mountAt(t, Options{}, entry)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		dir  string
		is   error
		says string
	}{
		"missing":   {filepath.Join(t.TempDir(), "none"), unix.ENOENT, "make it first"},
		"a file":    {file, unix.ENOTDIR, file},
		"not empty": {filepath.Dir(file), unix.ENOTEMPTY, "hide file"},
		"in use":    {m.dir, unix.EBUSY, "umount " + m.dir},
	} {
		f, err := New([]Entry{entry}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Mount(test.dir); !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", name, err)
		}
	}

	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	f, err := New([]Entry{entry}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Mount(link); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Run(ctx); err != nil {
		t.Error("Run whose context has ended:", err)
	}
	if isMountPoint(t, f.dir) {
		t.Error("Run left the mount behind")
	}
}

func TestUnmount(t *testing.T) {
	src := (&origin{data: content(8, testSize)}).open(t, patient)
	m := mountAt(t, Options{}, Entry{Path: "f", File: src.into})
	f, err := os.Open(m.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), m.dir) {
		t.Fatalf("unmount while a file is open: %v", err)
	}
	if _, err := f.ReadAt(make([]byte, 10), 0); err != nil {
		t.Fatal("a refused unmount did harm:", err)
	}
	f.Close()
	if err := m.unmountIdle(); err != nil {
		t.Fatal(err)
	}
	if err := <-m.done; err != nil {
		t.Error("Run after Unmount:", err)
	}
	if err := m.Unmount(); err != nil {
		t.Error("a second Unmount:", err)
	}
}

// TestUnmountStalled unmounts while the kernel reads ahead in vain, for a process that has closed the file.
func TestUnmountStalled(t *testing.T) {
	src := (&origin{data: content(9, testSize)}).held().open(t, patient)
	m := mountAt(t, Options{}, Entry{Path: "f", File: src.into})
	_, out := startChild(t, "ahead", m.path("f"))
	<-src.begun
	if out.Scan(); out.Text() != "closed" {
		t.Fatal(out.Text())
	}
	if err := m.unmountIdle(); err != nil {
		t.Fatal(err)
	}
	if err := <-m.done; err != nil {
		t.Error(err)
	}
}

// TestStopWhileReading ends Run under a reader that waits.
func TestStopWhileReading(t *testing.T) {
	src := (&origin{data: content(9, testSize)}).held().open(t, patient)
	m := mountAt(t, Options{}, Entry{Path: "f", File: src.into})
	_, out := startChild(t, "read", m.path("f"))
	<-src.begun
	m.stop()
	if err := <-m.done; err != nil {
		t.Error(err)
	}
	if out.Scan(); !strings.HasPrefix(out.Text(), "error:") {
		t.Errorf("the reader got %q", out.Text())
	}
}
