package snapshot

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/spate-project/spate/cache/mount"
)

// A lateFile is an object whose bytes come when the gate opens.
type lateFile struct {
	data []byte
	gate chan struct{}
	read atomic.Int64 // bytes that were asked for
}

func (f *lateFile) Size() int64    { return int64(len(f.data)) }
func (f *lateFile) Complete() bool { return false }
func (f *lateFile) File() *os.File { return nil }

func (f *lateFile) ReadContext(ctx context.Context, p []byte, off int64) (int, error) {
	f.read.Add(int64(len(p)))
	select {
	case <-f.gate:
		return copy(p, f.data[off:]), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// mountFUSE shows file as DIR/object until the test ends or end is called.
func mountFUSE(t *testing.T, dir string, file mount.File) (end func()) {
	t.Helper()
	f, err := mount.New([]mount.Entry{{Path: "object", File: file}}, mount.Options{NoPassthrough: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Mount(dir); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(end)
	return end
}

// TestSnapshotterFUSE: a layer is prepared before any byte of its object is
// here, a reader waits for the bytes, and when the file system that showed the
// object has ended, as in a reboot of everything but the kernel, Restore mounts the layer anew.
func TestSnapshotterFUSE(t *testing.T) {
	shelf := newShelf(t)
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	object, archive := shelf.put(map[string]string{"etc/large": string(content), "small": "s"})
	dir := t.TempDir()
	shelf.layers[object].Device = filepath.Join(dir, "object")

	file := &lateFile{data: archive, gate: make(chan struct{})}
	end := mountFUSE(t, dir, file)
	root := t.TempDir()
	s := openSnapshotter(t, root, shelf)
	name := prepareLazy(t, s, "", object)
	mounts, err := s.Prepare(ctx, "container", name)
	if err != nil {
		t.Fatal(err)
	}
	if n := file.read.Load(); n != 0 {
		t.Errorf("%d bytes of the object were read before anybody asked, want none", n)
	}
	if st := s.Stats(); st.Mounted[LazyFile] != 1 {
		t.Errorf("stats are %+v", st)
	}
	withMount(t, mounts, func(dir string) {
		cmd := exec.Command("cat", filepath.Join(dir, "etc/large"))
		var out bytes.Buffer
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool { return file.read.Load() > 0 })
		close(file.gate)
		if err := cmd.Wait(); err != nil || !bytes.Equal(out.Bytes(), content) {
			t.Errorf("read %d bytes, %v, want the %d of the file", out.Len(), err, len(content))
		}
	})

	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	end()
	second := &lateFile{data: archive, gate: make(chan struct{})}
	close(second.gate)
	mountFUSE(t, dir, second)
	s = openSnapshotter(t, root, shelf)
	if open, all, err := s.Restore(ctx); err != nil || open != 1 || all != 1 {
		t.Fatalf("restored %d of %d, %v", open, all, err)
	}
	mounts, err = s.Mounts(ctx, "container")
	if err != nil {
		t.Fatal(err)
	}
	withMount(t, mounts, func(dir string) {
		out, err := exec.Command("sha256sum", filepath.Join(dir, "etc/large")).Output()
		if err != nil || !bytes.HasPrefix(out, []byte(digest.FromBytes(content).Encoded())) {
			t.Errorf("sha256sum: %s, %v", out, err)
		}
	})
	if second.read.Load() == 0 {
		t.Error("nothing was read from the new file system")
	}
}
