package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/spate-project/spate/oci/layer"
)

func TestMain(m *testing.M) {
	// containerd's suite skips itself without it.
	if err := flag.Set("test.root", "true"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// A shelf is Layers over layers that were put on it.
type shelf struct {
	t   testing.TB
	dir string

	mu      sync.Mutex
	layers  map[digest.Digest]*Layer // by digest of the blob
	refuse  error                    // what Open and Restore answer
	opens   int                      // opened, also by Restore
	closes  int
	asked   []Request // of Open
	restore []Request // of Restore
}

func newShelf(t testing.TB) *shelf {
	return &shelf{t: t, dir: t.TempDir(), layers: map[digest.Digest]*Layer{}}
}

// put makes a layer of files, whose blob has the digest of its tar.
func (s *shelf) put(files map[string]string) (object digest.Digest, archive []byte) {
	s.t.Helper()
	archive = tarOf(s.t, files)
	object = digest.FromBytes(archive)
	s.set(object, object, files)
	return object, archive
}

// set puts a layer whose blob is not its tar.
func (s *shelf) set(blob, object digest.Digest, files map[string]string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.layers[blob] != nil { // it may be mounted
		return
	}
	base := filepath.Join(s.dir, blob.Encoded())
	archive := tarOf(s.t, files)
	if err := os.WriteFile(base+".tar", archive, 0o600); err != nil {
		s.t.Fatal(err)
	}
	metadata, err := os.Create(base + ".erofs")
	if err != nil {
		s.t.Fatal(err)
	}
	defer metadata.Close()
	if err := layer.Metadata(metadata, bytes.NewReader(archive)); err != nil {
		s.t.Fatal(err)
	}
	s.layers[blob] = &Layer{
		Object:   object,
		Metadata: metadata.Name(),
		Device:   base + ".tar",
		Held:     func() int64 { return 4711 },
		Close: func() error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.closes++
			return nil
		},
	}
}

func tarOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if dir := path.Dir(name); dir != "." {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(files[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[name])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func (s *shelf) Open(ctx context.Context, r Request) (*Layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, r)
	return s.take(r)
}

func (s *shelf) Restore(ctx context.Context, r Request) (*Layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restore = append(s.restore, r)
	return s.take(r)
}

func (s *shelf) take(r Request) (*Layer, error) {
	if s.refuse != nil {
		return nil, s.refuse
	}
	layer, ok := s.layers[r.Layer]
	if !ok {
		return nil, fmt.Errorf("%s: %w", r.Image, ErrNotIndexed)
	}
	s.opens++
	opened := *layer
	return &opened, nil
}

// setRefuse makes all that follows fail with err.
func (s *shelf) setRefuse(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = err
}

// open returns how many layers are open.
func (s *shelf) open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opens - s.closes
}

// openSnapshotter opens the snapshotter at root. It is closed when the test ends, after
// which nothing of it is mounted.
func openSnapshotter(t testing.TB, root string, layers Layers) *Snapshotter {
	t.Helper()
	s, err := New(root, layers, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		unmountAll(t, root)
	})
	return s
}

func unmountAll(t testing.TB, root string) {
	dirs, err := filepath.Glob(filepath.Join(root, "snapshots", "*", "fs"))
	if err != nil {
		t.Error(err)
	}
	for _, dir := range dirs {
		if err := unmount(dir); err != nil {
			t.Error(err)
		}
	}
}

// overSocket serves s on a unix socket until the test ends and returns a client of it.
func overSocket(t testing.TB, s snapshots.Snapshotter) snapshots.Snapshotter {
	t.Helper()
	address := serveSocket(t, s)
	conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "spate")
}

// serveSocket serves s on a unix socket until the test ends.
func serveSocket(t testing.TB, s snapshots.Snapshotter) (address string) {
	t.Helper()
	address = socketPath(t)
	serveAt(t, address, s)
	return address
}

// socketPath returns a path that is short enough for a socket.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "spate")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s.sock")
}

// serveAt serves s on the unix socket at address until the test ends, or stop is called.
func serveAt(t testing.TB, address string, s snapshots.Snapshotter) (stop func()) {
	t.Helper()
	l, err := Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, s) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

const image = "registry.example/app:v1"

// layerLabels are what containerd 2.4 tells of the last of the layers with the given diffIDs.
func layerLabels(diffIDs ...digest.Digest) map[string]string {
	last := diffIDs[len(diffIDs)-1]
	return map[string]string{
		snapshots.LabelSnapshotRef:    identity.ChainID(slices.Clone(diffIDs)).String(),
		snapshots.LabelSnapshotDiffID: last.String(),
		labelImage:                    image,
		labelManifest:                 digest.FromString("manifest").String(),
		labelLayer:                    last.String(),
	}
}

// find returns the committed snapshot of a chain on parent as containerd looks for it.
func find(t testing.TB, s snapshots.Snapshotter, ref, parent string) (info snapshots.Info) {
	t.Helper()
	filter := fmt.Sprintf(`labels.%q==%s,parent==%q`, snapshots.LabelSnapshotRef, ref, parent)
	n := 0
	err := s.Walk(context.Background(), func(ctx context.Context, i snapshots.Info) error {
		if i.Kind == snapshots.KindCommitted && i.Labels[snapshots.LabelSnapshotRef] == ref && i.Parent == parent {
			info = i
			n++
		}
		return nil
	}, filter)
	if err != nil || n != 1 {
		t.Fatalf("%d snapshots of chain %s on %q, err %v; want 1", n, ref, parent, err)
	}
	return info
}

// read mounts and returns the files in it, by name.
func read(t testing.TB, mounts []mount.Mount) map[string]string {
	t.Helper()
	files := map[string]string{}
	withMount(t, mounts, func(dir string) {
		err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(name)
			rel, _ := filepath.Rel(dir, name)
			files[rel] = string(data)
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	return files
}

func withMount(t testing.TB, mounts []mount.Mount, use func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	if err := mount.All(mounts, dir); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unmount(dir); err != nil {
			t.Error(err)
		}
	}()
	use(dir)
}

// waitFor waits until ok returns true. The test fails if it never does.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for start := time.Now(); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatal("waited in vain")
		}
	}
}
