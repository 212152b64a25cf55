package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// twoLayers opens a snapshotter with two lazy layers and a container on them, and closes it.
func twoLayers(t testing.TB, root string, shelf *shelf) (first, second digest.Digest) {
	t.Helper()
	s := openSnapshotter(t, root, shelf)
	first, _ = shelf.put(map[string]string{"a": "a"})
	second, _ = shelf.put(map[string]string{"b": "b"})
	top := prepareLazy(t, s, prepareLazy(t, s, "", first), first, second)
	if _, err := s.Prepare(ctx, "container", top); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := shelf.open(); n != 2 {
		t.Fatalf("%d layers are open after Close, want 2", n)
	}
	return first, second
}

// device tells one mount of a layer from the next.
func device(t testing.TB, s *Snapshotter, id string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(s.fs(id), &st); err != nil {
		t.Fatal(err)
	}
	return st.Dev
}

var both = map[string]string{"a": "a", "b": "b"}

// TestSnapshotterRestore: a new process takes up what the last one had mounted, and mounts what is not.
func TestSnapshotterRestore(t *testing.T) {
	for _, test := range []struct {
		name   string
		before func(t *testing.T, s *Snapshotter, shelf *shelf, first digest.Digest)
		same   bool // the mount of the first layer is the old one
	}{
		{"mounted", func(*testing.T, *Snapshotter, *shelf, digest.Digest) {}, true},
		{"not mounted", func(t *testing.T, s *Snapshotter, shelf *shelf, first digest.Digest) {
			unmountAll(t, s.root)
		}, false},
		{"another file", func(t *testing.T, s *Snapshotter, shelf *shelf, first digest.Digest) {
			// As when the file system that held the file was mounted anew.
			name := shelf.layers[first].Device
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name+".new", data, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(name+".new", name); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"damaged record", func(t *testing.T, s *Snapshotter, shelf *shelf, first digest.Digest) {
			if err := os.WriteFile(filepath.Join(s.dir("1"), "mount"), []byte("lazy"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			root, shelf := t.TempDir(), newShelf(t)
			first, _ := twoLayers(t, root, shelf)
			s := openSnapshotter(t, root, shelf)
			old := device(t, s, "1")
			// The old mount stays in use, so that its device number is not given again.
			busy, err := os.Open(filepath.Join(s.fs("1"), "a"))
			if err != nil {
				t.Fatal(err)
			}
			defer busy.Close()
			test.before(t, s, shelf, first)
			asked := len(shelf.asked)
			if open, all, err := s.Restore(ctx); err != nil || open != 2 || all != 2 {
				t.Fatalf("restored %d of %d, %v", open, all, err)
			}
			mounts, err := overSocket(t, s).Mounts(ctx, "container")
			if err != nil {
				t.Fatal(err)
			}
			wantFiles(t, mounts, both)
			if same := device(t, s, "1") == old; same != test.same {
				t.Errorf("the mount is the old one: %v, want %v", same, test.same)
			}
			if len(shelf.asked) != asked || len(shelf.restore) != 2 {
				t.Errorf("opened %v, restored %v: want only the latter", shelf.asked[asked:], shelf.restore)
			}
			if open, all, err := s.Restore(ctx); err != nil || open != 2 || all != 2 || len(shelf.restore) != 2 {
				t.Errorf("restored again: %d of %d, %v", open, all, err)
			}
		})
	}
}

// TestSnapshotterNotRestored: a layer that is not to be had stops neither the start nor the others.
func TestSnapshotterNotRestored(t *testing.T) {
	root, shelf := t.TempDir(), newShelf(t)
	first, _ := twoLayers(t, root, shelf)
	unmountAll(t, root)
	lost := shelf.layers[first]
	delete(shelf.layers, first)

	s := openSnapshotter(t, root, shelf)
	var log bytes.Buffer
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	remote := overSocket(t, s)
	if open, all, err := s.Restore(ctx); err != nil || open != 1 || all != 2 {
		t.Fatalf("restored %d of %d, %v, want 1 of 2", open, all, err)
	}
	if s.Stats().NotRestored != 1 || !strings.Contains(log.String(), "layer is not restored") {
		t.Errorf("stats are %+v, the log %s", s.Stats(), &log)
	}
	list, err := s.List(ctx)
	if err != nil || len(list) != 2 {
		t.Fatalf("listed is %+v, %v", list, err)
	}
	for _, st := range list {
		if open := st.Layer != first.String(); st.Open != open {
			t.Errorf("listed is %+v, want open: %v", st, open)
		}
	}
	top := list[0].Name
	if st := list[1]; st.Layer != first.String() {
		top = st.Name
	}
	for what, try := range map[string]func() error{
		"mounts":  func() error { _, err := remote.Mounts(ctx, "container"); return err },
		"prepare": func() error { _, err := remote.Prepare(ctx, "next", top); return err },
		"view":    func() error { _, err := remote.View(ctx, "next", top); return err },
	} {
		if err := try(); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), first.String()) || !strings.Contains(err.Error(), image) {
			t.Errorf("%s on a dead layer: %v, want unavailable", what, err)
		}
	}
	// It comes back: what needs it opens it.
	shelf.layers[first] = lost
	mounts, err := remote.Mounts(ctx, "container")
	if err != nil {
		t.Fatal(err)
	}
	wantFiles(t, mounts, both)
}

// TestSnapshotterBeforeRestore: a container that starts early waits for nothing but its own layers.
func TestSnapshotterBeforeRestore(t *testing.T) {
	root, shelf := t.TempDir(), newShelf(t)
	twoLayers(t, root, shelf)
	s := openSnapshotter(t, root, shelf)
	shelf.setRefuse(errors.New("not yet"))
	if _, err := s.Mounts(ctx, "container"); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "not yet") {
		t.Fatalf("mounts: %v, want unavailable", err)
	}
	shelf.setRefuse(nil)
	mounts, err := s.Mounts(ctx, "container")
	if err != nil {
		t.Fatal(err)
	}
	wantFiles(t, mounts, both)
}

// TestSnapshotterLeftovers: what a crash left of a snapshot that never was is in nobody's way.
func TestSnapshotterLeftovers(t *testing.T) {
	shelf := newShelf(t)
	object, _ := shelf.put(map[string]string{"a": "a"})
	leave := func(s *Snapshotter) {
		dir := s.dir("1")
		if err := os.MkdirAll(filepath.Join(dir, "fs"), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := mountLayer(shelf.layers[object], dir); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("clean-up", func(t *testing.T) {
		s := openSnapshotter(t, t.TempDir(), shelf)
		leave(s)
		if err := s.Cleanup(ctx); err != nil {
			t.Fatal(err)
		}
		wantClean(t, s, shelf)
	})
	t.Run("lazy", func(t *testing.T) {
		s := openSnapshotter(t, t.TempDir(), shelf)
		leave(s)
		mounts, err := s.View(ctx, "view", prepareLazy(t, s, "", object))
		if err != nil {
			t.Fatal(err)
		}
		wantFiles(t, mounts, map[string]string{"a": "a"})
	})
	t.Run("ordinary", func(t *testing.T) {
		s := openSnapshotter(t, t.TempDir(), shelf)
		leave(s)
		mounts, err := s.Prepare(ctx, "key", "")
		if err != nil {
			t.Fatal(err)
		}
		wantFiles(t, mounts, map[string]string{})
	})
}

const (
	childEnv    = "SNAPSHOT_TEST_CHILD" // the child's root
	childLayers = 40
)

// manyLayers puts the layers that the child works with on a shelf.
func manyLayers(t testing.TB) (*shelf, []digest.Digest) {
	shelf := newShelf(t)
	objects := make([]digest.Digest, childLayers)
	for i := range objects {
		objects[i], _ = shelf.put(map[string]string{fmt.Sprintf("f%d", i): "content"})
	}
	return shelf, objects
}

// crashingChild prepares and removes layers until it is killed.
func crashingChild(t *testing.T, root string) {
	shelf, objects := manyLayers(t)
	s, err := New(root, shelf, Options{})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("started")
	for {
		parent := ""
		names := make([]string, childLayers)
		for i := range objects {
			parent = prepareLazy(t, s, parent, objects[:i+1]...)
			names[i] = parent
		}
		for i := range names {
			if err := s.Remove(ctx, names[childLayers-1-i]); err != nil {
				t.Fatal(err)
			}
			if i%8 == 0 {
				if err := s.Cleanup(ctx); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// TestSnapshotterCrash kills a process that prepares and removes layers, again
// and again, and checks that the next one finds all that was committed, and can go on.
func TestSnapshotterCrash(t *testing.T) {
	if root := os.Getenv(childEnv); root != "" {
		crashingChild(t, root)
	}
	rounds := 12
	if testing.Short() {
		rounds = 2
	}
	root := t.TempDir()
	shelf, objects := manyLayers(t)
	t.Cleanup(func() { unmountAll(t, root) })
	for range rounds {
		crash(t, root)
		s, err := New(root, shelf, Options{})
		if err != nil {
			t.Fatal(err)
		}
		open, all, err := s.Restore(ctx)
		if err != nil || open != all {
			t.Fatalf("restored %d of %d, %v", open, all, err)
		}
		parent := ""
		for i := range objects {
			parent = prepareLazy(t, s, parent, objects[:i+1]...)
		}
		mounts, err := s.View(ctx, "view", parent)
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, mounts); len(got) != childLayers {
			t.Fatalf("%d files, want %d", len(got), childLayers)
		}
		if err := s.Cleanup(ctx); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(filepath.Join(root, "snapshots"))
		if err != nil || len(entries) != childLayers+1 { // and the view
			t.Fatalf("%d directories, %v, want %d", len(entries), err, childLayers+1)
		}
		// The next child starts with some of them.
		if err := s.Remove(ctx, "view"); err != nil {
			t.Fatal(err)
		}
		for range rand.IntN(childLayers) {
			info, err := s.Stat(ctx, parent)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Remove(ctx, parent); err != nil {
				t.Fatal(err)
			}
			parent = info.Parent
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := openSnapshotter(t, root, shelf)
	if err := removeAll(s); err != nil {
		t.Fatal(err)
	}
	if err := s.Cleanup(ctx); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(filepath.Join(root, "snapshots")); err != nil || len(entries) != 0 {
		t.Fatalf("there is still %v, %v", entries, err)
	}
}

// crash runs the child on root and kills it at a random moment.
func crash(t testing.TB, root string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestSnapshotterCrash$")
	cmd.Env = append(os.Environ(), childEnv+"="+root, "TMPDIR="+t.TempDir()) // it is killed before it can tidy up
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	started := make([]byte, len("started"))
	if _, err := out.Read(started); err != nil || string(started) != "started" {
		t.Errorf("the child said %q, %v, %s", started, err, &stderr)
	}
	time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
	if err := cmd.Process.Kill(); err != nil {
		t.Errorf("the child was gone: %v, %s", err, &stderr)
	}
	cmd.Wait()
}

// removeAll removes every snapshot, those on top first.
func removeAll(s snapshots.Snapshotter) error {
	for {
		var names []string
		err := s.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			names = append(names, info.Name)
			return nil
		})
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		if len(names) == 0 {
			return nil
		}
		for _, name := range names {
			if err := s.Remove(ctx, name); err != nil && !errdefs.IsFailedPrecondition(err) {
				return err
			}
		}
	}
}
