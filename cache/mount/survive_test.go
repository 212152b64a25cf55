package mount

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"
)

// TestAgentKilled kills the server under 200 readers, again and again.
func TestAgentKilled(t *testing.T) {
	m := newMachine(t)
	m.mustStart("mounted: get mount from the holder")
	crowd := m.readers()
	for range 5 {
		crowd.more("reads")
		time.Sleep(rand.N(50 * time.Millisecond))
		m.kill()
		time.Sleep(rand.N(50 * time.Millisecond))
		m.mustStart("resumed")
		crowd.more("reads")
		crowd.more("reads")
	}
	crowd.end()
}

// TestAgentLeaves has the server leave the mount, and live on beside its successor.
func TestAgentLeaves(t *testing.T) {
	m := newMachine(t)
	m.mustStart("mounted")
	crowd := m.readers()
	for range 5 {
		crowd.more("reads")
		old, out := m.agent, m.out
		old.Process.Signal(unix.SIGTERM)
		if out.Scan(); out.Text() != "ended" {
			t.Fatal(out.Text())
		}
		m.mustStart("resumed")
		crowd.more("reads")
		crowd.more("reads")
		old.Process.Kill()
		old.Wait()
	}
	crowd.end()
}

// TestHolderKilled kills both who hold the mount.
func TestHolderKilled(t *testing.T) {
	m := newMachine(t)
	m.mustStart("mounted")
	f, err := os.Open(m.path("dir/large"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m.killHolder()
	got := make([]byte, 100)
	if _, err := f.ReadAt(got, 0); err != nil {
		t.Error("with the agent alone:", err)
	}
	m.kill()
	if _, err := f.ReadAt(got, largeSize/2); err == nil {
		t.Error("a mount that nobody holds can be read")
	}
	m.startHolder()
	m.mustStart("mounted: get mount from the holder")
	if _, err := f.ReadAt(got, largeSize/2); err == nil {
		t.Error("a file of the dead mount can be read")
	}
	if _, err := os.Stat(m.path("dir/large")); err != nil {
		t.Error("the new mount:", err)
	}
}

// TestResumedOpens: files that were opened before a kill and those that are
// opened after it read in the same way, or the kernel would refuse.
func TestResumedOpens(t *testing.T) {
	m := newMachine(t)
	whole, turns := content(1, testSize), content(2, testSize)
	m.write("whole", whole)
	m.write("turns", turns)
	m.mustStart("mounted")
	open := func(name string) *os.File {
		t.Helper()
		f, err := os.Open(m.path(name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	all := func(f *os.File, want []byte, when string) {
		t.Helper()
		got := make([]byte, testSize)
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s %s: %v", f.Name(), when, err)
		}
	}
	oldWhole, oldTurns := open("whole"), open("turns")
	m.kill()
	all(oldWhole, whole, "by passthrough without a server")
	m.write("complete", nil)
	m.mustStart("resumed")
	newWhole, newTurns := open("whole"), open("turns")
	all(oldTurns, turns, "opened before")
	all(newTurns, turns, "opened beside it")
	all(newWhole, whole, "opened beside it")
	oldWhole.Close()
	newWhole.Close()
	oldTurns.Close()
	newTurns.Close()
	m.kill() // perhaps before it was told of these
	m.mustStart("resumed")
	newWhole = open("whole")
	m.kill()
	all(newWhole, whole, "by passthrough that the successor has set up")
}

// TestBecomesPassthroughLater: a file whose last lazy open ends under a successor.
func TestBecomesPassthroughLater(t *testing.T) {
	m := newMachine(t)
	turns := content(2, testSize)
	m.write("turns", turns)
	m.mustStart("mounted")
	lazy, err := os.Open(m.path("turns"))
	if err != nil {
		t.Fatal(err)
	}
	m.kill()
	m.write("complete", nil)
	m.mustStart("resumed")
	lazy.Close()
	for { // until the close is told of, the file is opened lazily
		f, err := os.Open(m.path("turns"))
		if err != nil {
			t.Fatal(err)
		}
		passthrough := isPassthrough(t, f)
		f.Close()
		if passthrough {
			break
		}
		time.Sleep(time.Millisecond)
	}
}

// TestErofsSurvives kills the server of what an EROFS mount reads its data from.
func TestErofsSurvives(t *testing.T) {
	m := newMachine(t)
	m.write("erofs", nil)
	tree := t.TempDir()
	files := map[string][]byte{}
	for i := range 24 {
		name := fmt.Sprintf("f%02d", i)
		files[name] = content(byte(i), 1<<19+i)
		if err := os.WriteFile(filepath.Join(tree, name), files[name], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	meta := filepath.Join(t.TempDir(), "meta")
	makeErofs(t, tree, meta, filepath.Join(m.data, "blob"))
	m.mustStart("mounted")
	image := t.TempDir()
	if err := unix.Mount(meta, image, "erofs", unix.MS_RDONLY, "device="+m.path("blob")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.kill()
		m.killHolder()
		unix.Unmount(image, unix.MNT_DETACH)
	})
	var reading sync.WaitGroup
	for name, want := range files {
		reading.Go(func() {
			for range 3 {
				f, err := os.Open(filepath.Join(image, name))
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(f)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes, %v", name, len(got), err)
				}
				unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
				f.Close()
			}
		})
	}
	done := make(chan struct{})
	go func() {
		reading.Wait()
		close(done)
	}()
	for range 5 {
		select {
		case <-done:
			t.Log("all was read early")
		case <-time.After(rand.N(100 * time.Millisecond)):
		}
		m.kill()
		m.mustStart("resumed")
	}
	<-done
}

// isPassthrough reports whether f reads its backing file: then none of its pages are the mount's own.
func isPassthrough(t *testing.T, f *os.File) bool {
	t.Helper()
	if _, err := f.ReadAt(make([]byte, testSize), 0); err != nil {
		t.Fatal(err)
	}
	var r struct{ Off, Len uint64 }
	var stat [5]uint64
	_, _, errno := unix.Syscall6(unix.SYS_CACHESTAT, f.Fd(), uintptr(unsafe.Pointer(&r)), uintptr(unsafe.Pointer(&stat)), 0, 0, 0)
	if errno != 0 {
		t.Fatal("cachestat:", errno)
	}
	return stat[0] == 0
}

func makeErofs(t *testing.T, tree, meta, blob string) {
	t.Helper()
	out, err := os.Create(meta)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	data, err := os.Create(blob)
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	w := erofs.Create(out, erofs.WithDataFile(data))
	if err := errors.Join(w.CopyFrom(os.DirFS(tree)), w.Close()); err != nil {
		t.Fatal(err)
	}
}
