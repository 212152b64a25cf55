package snapshot

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

var ctx = context.Background()

// prepareLazy has s mount the last of the layers on parent, and returns the snapshot's name.
func prepareLazy(t testing.TB, s snapshots.Snapshotter, parent string, diffIDs ...digest.Digest) string {
	t.Helper()
	labels := layerLabels(diffIDs...)
	key := "extract-" + labels[snapshots.LabelSnapshotRef]
	if _, err := s.Prepare(ctx, key, parent, snapshots.WithLabels(labels)); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("prepare of an indexed layer: %v, want already exists", err)
	}
	return find(t, s, labels[snapshots.LabelSnapshotRef], parent).Name
}

// unpack puts a layer on parent as containerd does, expecting to be told to.
func unpack(t testing.TB, s snapshots.Snapshotter, name, parent string, files map[string]string, labels map[string]string) string {
	t.Helper()
	key := "extract-" + name
	mounts, err := s.Prepare(ctx, key, parent, snapshots.WithLabels(labels))
	if err != nil {
		t.Fatal(err)
	}
	withMount(t, mounts, func(dir string) {
		for file, content := range files {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o644); err != nil {
				t.Error(err)
			}
		}
	})
	if err := s.Commit(ctx, name, key, snapshots.WithLabels(labels)); err != nil {
		t.Fatal(err)
	}
	return name
}

func wantFiles(t testing.TB, mounts []mount.Mount, want map[string]string) {
	t.Helper()
	if got := read(t, mounts); !maps.Equal(got, want) {
		t.Fatalf("files are %v, want %v", got, want)
	}
}

// TestSnapshotterLazyImage starts a container on two lazy layers with an unpacked one between.
func TestSnapshotterLazyImage(t *testing.T) {
	shelf := newShelf(t)
	server := openSnapshotter(t, t.TempDir(), shelf)
	s := overSocket(t, server)

	first, _ := shelf.put(map[string]string{"a": "a of 1", "etc/b": "b of 1"})
	second := digest.FromString("is not indexed")
	third, _ := shelf.put(map[string]string{"etc/b": "b of 3", "c": strings.Repeat("c of 3", 10000)})

	one := prepareLazy(t, s, "", first)
	two := unpack(t, s, "two", one, map[string]string{"a": "a of 2"}, layerLabels(first, second))
	three := prepareLazy(t, s, two, first, second, third)

	view, err := s.View(ctx, "view", one)
	if err != nil {
		t.Fatal(err)
	}
	if view[0].Type != "bind" {
		t.Fatalf("view of one layer is %v, want a bind mount", view)
	}
	wantFiles(t, view, map[string]string{"a": "a of 1", "etc/b": "b of 1"})

	container, err := s.Prepare(ctx, "container", three)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"a": "a of 2", "etc/b": "b of 3", "c": strings.Repeat("c of 3", 10000)}
	wantFiles(t, container, want)
	withMount(t, container, func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, "etc", "new"), []byte("new"), 0o644); err != nil {
			t.Fatal(err)
		}
	})
	again, err := s.Mounts(ctx, "container")
	if err != nil {
		t.Fatal(err)
	}
	want["etc/new"] = "new"
	wantFiles(t, again, want)

	if usage, err := s.Usage(ctx, three); err != nil || usage.Size != 4711 {
		t.Fatalf("usage of a lazy layer is %v, %v, want what it holds", usage, err)
	}
	stats := server.Stats()
	if !maps.Equal(stats.Mounted, map[Path]int64{LazyFile: 2}) || !maps.Equal(stats.Unpacked, map[Reason]int64{ReasonNotIndexed: 1}) {
		t.Fatalf("stats are %+v", stats)
	}
	list, err := server.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []Status{
		{Name: one, Layer: first.String(), Path: LazyFile, Open: true, Held: 4711},
		{Name: two, Layer: second.String(), Path: Unpacked, Reason: ReasonNotIndexed, Open: true},
		{Name: three, Layer: third.String(), Path: LazyFile, Open: true, Held: 4711},
	} {
		i := slices.IndexFunc(list, func(st Status) bool { return st.Name == want.Name })
		if i < 0 {
			t.Fatalf("%s is not listed in %+v", want.Name, list)
		}
		got := list[i]
		if got.Image != image || got.Layer != want.Layer || got.Path != want.Path || got.Reason != want.Reason || !got.Open || want.Held != 0 && got.Held != want.Held {
			t.Errorf("listed is %+v, want %+v", got, want)
		}
	}
	if want := (Request{
		Image: image, Manifest: digest.FromString("manifest"), Layer: first, DiffID: first, ChainID: first,
	}); shelf.asked[0] != want {
		t.Fatalf("asked for %+v, want %+v", shelf.asked[0], want)
	}
}

// TestSnapshotterTwice asks for one layer many times, one after another and at once.
func TestSnapshotterTwice(t *testing.T) {
	shelf := newShelf(t)
	s := openSnapshotter(t, t.TempDir(), shelf)
	remote := overSocket(t, s)
	object, _ := shelf.put(map[string]string{"a": "a"})
	labels := layerLabels(object)

	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := remote.Prepare(ctx, "extract", "", snapshots.WithLabels(labels)); !errdefs.IsAlreadyExists(err) {
				t.Errorf("prepare: %v, want already exists", err)
			}
		})
	}
	wg.Wait()
	name := prepareLazy(t, remote, "", object)
	if n := shelf.open(); n != 1 {
		t.Errorf("%d layers are open, want 1", n)
	}
	if stats := s.Stats(); stats.Mounted[LazyFile] != 1 {
		t.Errorf("stats are %+v, want one mount", stats)
	}
	// Somebody unmounts it: the next one who needs it mounts it again.
	if err := remote.Remove(ctx, "extract"); !errdefs.IsNotFound(err) {
		t.Errorf("the key of a mounted layer: %v, want not found", err)
	}
	list, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := unmount(s.fs(list[0].ID)); err != nil {
		t.Fatal(err)
	}
	mounts, err := remote.View(ctx, "view", name)
	if err != nil {
		t.Fatal(err)
	}
	wantFiles(t, mounts, map[string]string{"a": "a"})
	if n := shelf.open(); n != 1 {
		t.Errorf("%d layers are open after mounting again, want 1", n)
	}
}

// TestSnapshotterTwoParents: one chain on an unpacked layer of one namespace and on a lazy one of another.
func TestSnapshotterTwoParents(t *testing.T) {
	shelf := newShelf(t)
	s := openSnapshotter(t, t.TempDir(), shelf)
	first, _ := shelf.put(map[string]string{"a": "a"})
	second, _ := shelf.put(map[string]string{"b": "b"})

	unpacked := unpack(t, s, "one/7/"+first.String(), "", map[string]string{"a": "a"}, nil)
	lazy := prepareLazy(t, s, "", first)
	for _, parent := range []string{unpacked, lazy} {
		top := prepareLazy(t, s, parent, first, second)
		mounts, err := s.View(ctx, "view on "+parent, top)
		if err != nil {
			t.Fatal(err)
		}
		wantFiles(t, mounts, map[string]string{"a": "a", "b": "b"})
	}
	// An older containerd tells no diffID: then the chain proves a layer, if it is known.
	third, _ := shelf.put(map[string]string{"c": "c"})
	labels := without(layerLabels(first, third), snapshots.LabelSnapshotDiffID)
	if _, err := s.Prepare(ctx, "on lazy", lazy, snapshots.WithLabels(labels)); !errdefs.IsAlreadyExists(err) {
		t.Errorf("prepare on a known chain: %v, want already exists", err)
	}
	if _, err := s.Prepare(ctx, "on unpacked", unpacked, snapshots.WithLabels(labels)); err != nil {
		t.Errorf("prepare on an unknown chain: %v, want to be told to unpack", err)
	}
	if got := s.Stats().Unpacked; !maps.Equal(got, map[Reason]int64{ReasonNoLabels: 1}) {
		t.Errorf("unpacked are %v", got)
	}
}

func TestSnapshotterRemove(t *testing.T) {
	shelf := newShelf(t)
	root := t.TempDir()
	s := openSnapshotter(t, root, shelf)
	remote := overSocket(t, s)
	first, _ := shelf.put(map[string]string{"a": "a"})
	second, _ := shelf.put(map[string]string{"b": "b"})
	one := prepareLazy(t, remote, "", first)
	two := prepareLazy(t, remote, one, first, second)
	mounts, err := remote.Prepare(ctx, "container", two)
	if err != nil {
		t.Fatal(err)
	}
	wantFiles(t, mounts, map[string]string{"a": "a", "b": "b"})

	if err := remote.Remove(ctx, one); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("removal of a layer in use: %v", err)
	}
	list, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// A file that somebody holds open must not keep the layer.
	busy, err := os.Open(filepath.Join(s.fs(list[0].ID), "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for _, name := range []string{"container", two, one} {
		if err := remote.Remove(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	if n := shelf.open(); n != 2 {
		t.Fatalf("%d layers are open before the clean-up, want 2", n)
	}
	if err := remote.(snapshots.Cleaner).Cleanup(ctx); err != nil {
		t.Fatal(err)
	}
	wantClean(t, s, shelf)
	if err := remote.(snapshots.Cleaner).Cleanup(ctx); err != nil {
		t.Fatalf("the second clean-up: %v", err)
	}
}

// wantClean checks that there is nothing of any snapshot.
func wantClean(t testing.TB, s *Snapshotter, shelf *shelf) {
	t.Helper()
	if n := shelf.open(); n != 0 {
		t.Errorf("%d layers are open, want none", n)
	}
	for _, dir := range []string{"snapshots", "removed"} {
		entries, err := os.ReadDir(filepath.Join(s.root, dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		if len(entries) > 0 {
			t.Errorf("there is still %v in %s", entries, dir)
		}
	}
	if data, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(data), s.root) {
		t.Errorf("there are still mounts under %s (%v):\n%s", s.root, err, data)
	}
}

// TestSnapshotterUpdate: whoever sets the labels of a lazy layer does not lose it.
func TestSnapshotterUpdate(t *testing.T) {
	shelf := newShelf(t)
	s := openSnapshotter(t, t.TempDir(), shelf)
	object, _ := shelf.put(map[string]string{"a": "a"})
	name := prepareLazy(t, s, "", object)
	info, err := s.Update(ctx, snapshots.Info{Name: name, Labels: map[string]string{"containerd.io/gc.root": "x"}})
	if err != nil {
		t.Fatal(err)
	}
	want := layerLabels(object)
	want[labelRemote] = info.Labels[labelRemote]
	want["containerd.io/gc.root"] = "x"
	if !maps.Equal(info.Labels, want) || info.Labels[labelRemote] == "" {
		t.Fatalf("labels are %v, want %v", info.Labels, want)
	}
	if info, err = s.Update(ctx, snapshots.Info{Name: name}, "labels."+labelImage); err != nil || info.Labels[labelImage] != image {
		t.Fatalf("labels are %v, %v", info.Labels, err)
	}
}

// TestSnapshotterLoop mounts metadata that lies on an overlay, over which the
// kernel stacks no EROFS without a loop device.
func TestSnapshotterLoop(t *testing.T) {
	shelf := newShelf(t)
	stack := t.TempDir()
	for _, dir := range []string{"upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(stack, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	merged := filepath.Join(stack, "merged")
	options := "lowerdir=" + shelf.dir + ",upperdir=" + filepath.Join(stack, "upper") + ",workdir=" + filepath.Join(stack, "work")
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unmount(merged); err != nil {
			t.Error(err)
		}
	})
	shelf.dir = merged
	object, _ := shelf.put(map[string]string{"a": strings.Repeat("a", 100000), "etc/b": "b"})

	root := t.TempDir()
	s := openSnapshotter(t, root, shelf)
	name := prepareLazy(t, s, "", object)
	mounts, err := s.View(ctx, "view", name)
	if err != nil {
		t.Fatal(err)
	}
	wantFiles(t, mounts, map[string]string{"a": strings.Repeat("a", 100000), "etc/b": "b"})
	if list, err := s.List(ctx); err != nil || list[0].Path != LazyLoop {
		t.Fatalf("listed is %+v, %v, want a loop", list, err)
	}
	if n := loops(t, merged); n != 2 {
		t.Fatalf("%d loop devices, want 2", n)
	}
	s.Close()
	s = openSnapshotter(t, root, shelf)
	if open, all, err := s.Restore(ctx); err != nil || open != 1 || all != 1 {
		t.Fatalf("restored %d of %d, %v", open, all, err)
	}
	if list, err := s.List(ctx); err != nil || list[0].Path != LazyLoop {
		t.Fatalf("listed is %+v, %v, want a loop", list, err)
	}
	for _, name := range []string{"view", name} {
		if err := s.Remove(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Cleanup(ctx); err != nil {
		t.Fatal(err)
	}
	if n := loops(t, merged); n != 0 {
		t.Fatalf("%d loop devices are left", n)
	}
}

// loops counts the loop devices over files in dir.
func loops(t testing.TB, dir string) (n int) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(data), dir) {
			n++
		}
	}
	return n
}
