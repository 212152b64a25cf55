package mount

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spate-project/spate/cache"
	"github.com/spate-project/spate/cache/piece"
)

func TestContent(t *testing.T) {
	for _, size := range []int{0, 1, 4095, 4097, piece.MinLength, testSize} {
		for _, how := range []string{"read", "mmap"} {
			if size == 0 && how == "mmap" {
				continue
			}
			src := (&origin{data: content(2, size)}).open(t, patient)
			m := mountAt(t, Options{}, Entry{Path: "f", File: src.into})
			for _, round := range []string{"cold", "warm"} {
				if got := runChild(t, how, m.path("f")); got != sum(src.data) {
					t.Errorf("%d bytes by %s, %s: %s", size, how, round, got)
				}
			}
			if !src.into.Complete() {
				t.Error("all was read and yet is not here")
			}
		}
	}
}

func TestManyReaders(t *testing.T) {
	src := (&origin{data: content(2, testSize)}).open(t, patient)
	m := mountAt(t, Options{}, Entry{Path: "f", File: src.into})
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			f, err := os.Open(m.path("f"))
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			for range 30 {
				off := rand.Int64N(testSize)
				buf := make([]byte, 1+rand.IntN(300_000))
				n, err := f.ReadAt(buf, off)
				if want := src.data[off:min(off+int64(len(buf)), testSize)]; !bytes.Equal(buf[:n], want) || (err != nil && err != io.EOF) {
					t.Errorf("%d bytes at %d: %d, %v", len(buf), off, n, err)
				}
			}
		})
	}
	wg.Wait()
}

// TestLazy reads one byte and finds little more than its piece fetched.
func TestLazy(t *testing.T) {
	src := (&origin{data: content(3, testSize)}).open(t, patient)
	m := mountAt(t, Options{ReadAhead: 128 << 10}, Entry{Path: "f", File: src.into})
	if got := runChild(t, "touch", m.path("f"), "3000000"); got != fmt.Sprint(src.data[3000000]) {
		t.Error("byte 3000000 is", got)
	}
	if p := src.into.Progress(); p.Present == 0 || p.Present > 2 {
		t.Errorf("%d of %d pieces were fetched for one byte", p.Present, testPieces)
	}
}

func TestFailingSource(t *testing.T) {
	var log bytes.Buffer
	boom := errors.New("boom")
	src := &origin{data: content(4, testSize)}
	src.fail.Store(&boom)
	src.open(t, cache.Options{FetchTimeout: time.Millisecond})
	m := mountAt(t, Options{Logger: slog.New(slog.NewTextHandler(&log, nil)), ReadAhead: 128 << 10}, Entry{Path: "dir/f", File: src.into})

	f, err := os.Open(m.path("dir/f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 5 {
		buf := make([]byte, 10)
		if n, err := f.ReadAt(buf, 100); n != 0 || !errors.Is(err, unix.EIO) {
			t.Errorf("read %d, %v", n, err)
		}
	}
	src.fail.Store(nil)
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, src.data) {
		t.Errorf("after the source came back: %d bytes, %v", len(got), err)
	}
	m.stop()
	<-m.done
	for _, want := range []string{"boom", "piece 0 of object " + src.into.Tree().Object().Digest.String(), "file=dir/f"} {
		if n := strings.Count(log.String(), want); n != 1 {
			t.Errorf("the log has %q %d times:\n%s", want, n, &log)
		}
	}
}

// TestSignals: a reader that waits can be killed, and is not disturbed by less.
func TestSignals(t *testing.T) {
	t.Run("killed in a page fault", func(t *testing.T) {
		src := (&origin{data: content(5, testSize)}).held().open(t, patient)
		m := mountAt(t, Options{}, Entry{Path: "f", File: src.into})
		cmd, _ := startChild(t, "touch", m.path("f"), "3000000")
		<-src.begun
		cmd.Process.Kill()
		cmd.Wait() // hangs for as long as the read is not given up
		if i := <-src.ended; i != 3000000/piece.MinLength {
			t.Errorf("the flight of piece %d was cancelled", i)
		}
	})
	t.Run("interrupted in a read", func(t *testing.T) {
		src := (&origin{data: content(5, testSize)}).held().open(t, patient)
		m := mountAt(t, Options{}, Entry{Path: "f", File: src.into})
		cmd := exec.Command("cat", m.path("f")) // which leaves SIGINT alone, other than a Go program
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-src.begun
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	})
	t.Run("caught in a page fault", func(t *testing.T) {
		src := (&origin{data: content(5, testSize)}).held().open(t, patient)
		m := mountAt(t, Options{}, Entry{Path: "f", File: src.into})
		cmd, out := startChild(t, "touch", m.path("f"), "3000000")
		<-src.begun
		for range 20 {
			if err := unix.Tgkill(cmd.Process.Pid, cmd.Process.Pid, unix.SIGUSR1); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond) // one signal at a time is pending
		}
		close(src.goOn)
		out.Scan()
		if got := out.Text(); got != fmt.Sprint(src.data[3000000]) {
			t.Errorf("the byte after the signals: %q", got)
		}
	})
}

func TestDying(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if dying(uint32(unix.Gettid())) {
		t.Error("this thread is dying")
	}
	if !dying(0) || !dying(1<<22+1) {
		t.Error("a thread that is not there lives")
	}
}

// TestPassthrough stops the server: what the kernel was handed can still be read.
func TestPassthrough(t *testing.T) {
	for _, test := range []struct {
		name     string
		opts     Options
		complete bool // before the open
		survives bool
	}{
		{"complete", Options{}, true, true},
		{"not complete", Options{}, false, false},
		{"switched off", Options{NoPassthrough: true}, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			src := (&origin{data: content(6, testSize)}).open(t, patient)
			m := mountAt(t, test.opts, Entry{Path: "f", File: src.into})
			if test.complete {
				if err := src.into.Ensure(t.Context(), 0, testSize); err != nil {
					t.Fatal(err)
				}
			}
			f, err := os.Open(m.path("f"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			m.stop()
			if err := <-m.done; err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(f)
			if survived := err == nil && bytes.Equal(got, src.data); survived != test.survives {
				t.Errorf("read without a server: %d bytes, %v", len(got), err)
			}
			if !test.survives && len(got) != 0 {
				t.Errorf("read %d bytes that nobody sent", len(got))
			}
		})
	}
}

// TestBecomesPassthrough: while a file that was opened lazily is open, later
// opens read as it does; once all have closed it, the kernel reads by itself.
func TestBecomesPassthrough(t *testing.T) {
	src := (&origin{data: content(6, testSize)}).open(t, patient)
	m := mountAt(t, Options{}, Entry{Path: "f", File: src.into})
	lazy, err := os.Open(m.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := runChild(t, "read", m.path("f")); got != sum(src.data) {
			t.Fatal("a second open beside the lazy one:", got)
		}
	}
	o := m.rec.opens(m.nodes[1])
	if o.cached.Load() == 0 || o.passthrough.Load() != 0 {
		t.Fatalf("opens %+v", o)
	}
	lazy.Close()
	for o.cached.Load() > 0 { // the kernel tells of a close afterwards
		runtime.Gosched()
	}
	var files []*os.File
	for range 3 {
		f, err := os.Open(m.path("f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	if o.cached.Load() != 0 || o.passthrough.Load() != 3 || o.backing.Load() == 0 {
		t.Fatalf("opens %+v", o)
	}
	if got := runChild(t, "mmap", m.path("f")); got != sum(src.data) {
		t.Error("mmap of a passthrough file:", got)
	}
	for _, f := range files {
		f.Close()
	}
	for o.passthrough.Load() > 0 {
		runtime.Gosched()
	}
	if err := m.Unmount(); err != nil {
		t.Error(err)
	}
}

func TestComplaints(t *testing.T) {
	var c complaints
	if !c.isNew("a") || c.isNew("a") || !c.isNew("b") {
		t.Error("each is told once")
	}
	told := 0
	for i := range 100 {
		if c.isNew(strconv.Itoa(i)) {
			told++
		}
	}
	if told != sayMost-2 {
		t.Errorf("%d were told", told)
	}
	c.told["a"] = time.Now().Add(-sayAgain)
	if !c.isNew("a") || c.isNew("a") {
		t.Error("after a while it is told again, once")
	}
}
