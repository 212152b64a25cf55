package snapshot

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/oci/snapshot/containerdtest"
)

// A pushed is an image in a registry of the test's own, which notes what is fetched from it.
type pushed struct {
	ref    string
	layers []digest.Digest // blobs
	files  []map[string]string

	mu      sync.Mutex
	fetched map[digest.Digest]int
}

func (p *pushed) blobsFetched() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, layer := range p.layers {
		n += p.fetched[layer]
	}
	return n
}

// push puts an image with busybox, one layer for each of files, into a new
// registry, and those layers that lazy names on the shelf.
func push(t *testing.T, shelf *shelf, lazy func(i int) bool, files ...map[string]string) *pushed {
	t.Helper()
	reg, err := registry.Open(t.TempDir(), registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- reg.Run(ctx) }()
	p := &pushed{fetched: map[digest.Digest]int{}, files: files}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, blob, ok := strings.Cut(r.URL.Path, "/blobs/"); ok && r.Method == http.MethodGet {
			p.mu.Lock()
			p.fetched[digest.Digest(blob)]++
			p.mu.Unlock()
		}
		reg.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		server.Close()
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		reg.Close()
	})
	files[0]["bin/busybox"] = string(containerdtest.BusyBox(t))

	put := func(path, mediaType string, data []byte) {
		t.Helper()
		method := http.MethodPut
		if strings.Contains(path, "/blobs/") {
			method = http.MethodPost
		}
		req, err := http.NewRequest(method, server.URL+"/v2/app"+path, bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", mediaType)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusCreated {
			t.Fatalf("%s %s: %s", method, path, resp.Status)
		}
	}
	blob := func(mediaType string, data []byte) ocispec.Descriptor {
		t.Helper()
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		put("/blobs/uploads/?digest="+d.Digest.String(), "application/octet-stream", data)
		return d
	}
	config := ocispec.Image{
		Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for i, files := range files {
		archive := tarOf(t, files)
		object := digest.FromBytes(archive)
		layer := blob(ocispec.MediaTypeImageLayerGzip, gzipped(t, archive))
		if lazy(i) {
			shelf.set(layer.Digest, object, files)
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, object)
		manifest.Layers = append(manifest.Layers, layer)
		p.layers = append(p.layers, layer.Digest)
	}
	manifest.Config = blob(ocispec.MediaTypeImageConfig, marshal(t, config))
	put("/manifests/v1", manifest.MediaType, marshal(t, manifest))
	p.ref = strings.TrimPrefix(server.URL, "http://") + "/app:v1"
	return p
}

func gzipped(t *testing.T, data []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func marshal(t *testing.T, v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// threeLayers returns the files of an image. Two with different names have only the lowest layer in common.
func threeLayers(name string) []map[string]string {
	return []map[string]string{
		{"etc/greeting": "one\n"},
		{"etc/greeting": "two\n", "data/name": name},
		{"data/large": strings.Repeat("0123456789abcde\n", 1<<16)},
	}
}

// TestSnapshotterContainerd pulls images into real containerds, runs containers on them and removes them.
func TestSnapshotterContainerd(t *testing.T) {
	modern, distribution := containerdtest.Modern(t), containerdtest.Distribution(t)
	byCtr := func(c *containerdtest.Containerd, image string) { c.Pull(image) }
	byCRI := func(c *containerdtest.Containerd, image string) { c.PullCRI(image) }
	for _, test := range []struct {
		name string
		bin  containerdtest.Binaries
		pull func(c *containerdtest.Containerd, image string)
	}{
		{"2.4 transfer", modern, byCtr},
		{"2.4 CRI", modern, byCRI},
		{"1.6 CRI", distribution, byCRI},
	} {
		t.Run(test.name, func(t *testing.T) {
			shelf := newShelf(t)
			s := openSnapshotter(t, t.TempDir(), shelf)
			c := containerdtest.Start(t, test.bin, serveSocket(t, s))

			all := push(t, shelf, func(int) bool { return true }, threeLayers("all")...)
			test.pull(c, all.ref)
			if n := all.blobsFetched(); n != 0 {
				t.Errorf("%d layers of an indexed image were fetched, want none", n)
			}
			runs(t, c, all, "all")

			mixed := push(t, shelf, func(i int) bool { return i != 1 }, threeLayers("mixed")...)
			test.pull(c, mixed.ref)
			runs(t, c, mixed, "mixed")
			// The lowest layer is the first image's, the third stands on an unpacked one.
			if got := s.Stats(); got.Mounted[LazyFile] != 4 || got.Unpacked[ReasonNotIndexed] != 1 {
				t.Errorf("stats are %+v", got)
			}
			if n := mixed.blobsFetched(); n == 0 {
				t.Error("no layer of the other image was fetched")
			}

			c.RemoveImage(mixed.ref)
			c.RemoveImage(all.ref)
			c.Until("all layers are closed and unmounted", func() error {
				list, err := s.List(t.Context())
				if n := shelf.open(); err != nil || n != 0 || len(list) != 0 {
					return fmt.Errorf("%d layers are open, %d snapshots are there: %v", n, len(list), err)
				}
				return nil
			})
			wantClean(t, s, shelf)
		})
	}
}

// runs checks what a container on image sees.
func runs(t *testing.T, c *containerdtest.Containerd, image *pushed, id string) {
	t.Helper()
	if got := c.Run(image.ref, id, "/bin/busybox", "cat", "/etc/greeting"); got != "two\n" {
		t.Errorf("a container reads %q", got)
	}
	want := digest.FromString(image.files[2]["data/large"]).Encoded()
	if got := c.Run(image.ref, id, "/bin/busybox", "sha256sum", "/data/large"); !strings.HasPrefix(got, want) {
		t.Errorf("a container reads a file of SHA-256 %s, want %s", got, want)
	}
}

// TestSnapshotterContainerdRestart restarts the snapshotter and containerd under a running container.
func TestSnapshotterContainerdRestart(t *testing.T) {
	shelf := newShelf(t)
	root := t.TempDir()
	first := openSnapshotter(t, root, shelf)
	// Served by hand: it is to end before the test does.
	address := socketPath(t)
	stop := serveAt(t, address, first)
	c := containerdtest.Start(t, containerdtest.Modern(t), address)
	image := push(t, shelf, func(int) bool { return true }, threeLayers("all")...)
	c.Pull(image.ref)
	c.RunDetached(image.ref, "running", "/bin/busybox", "sleep", "1000000")

	c.Kill()
	stop()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := openSnapshotter(t, root, shelf)
	if open, all, err := second.Restore(t.Context()); err != nil || open != 3 || all != 3 {
		t.Fatalf("restored %d of %d, %v", open, all, err)
	}
	serveAt(t, address, second)
	c.Start()

	if got := c.Exec("running", "/bin/busybox", "cat", "/etc/greeting"); got != "two\n" {
		t.Errorf("the running container reads %q", got)
	}
	runs(t, c, image, "new")
	c.RemoveContainer("running")
	c.RemoveImage(image.ref)
	c.Until("all is unmounted", func() error {
		if data, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(data), root) {
			return fmt.Errorf("there are still mounts under %s: %v", root, err)
		}
		return nil
	})
}

// TestSnapshotterContainerdRefused: the pull of an image that the policy does not admit fails, and says why.
func TestSnapshotterContainerdRefused(t *testing.T) {
	shelf := newShelf(t)
	s := openSnapshotter(t, t.TempDir(), shelf)
	c := containerdtest.Start(t, containerdtest.Modern(t), serveSocket(t, s))
	image := push(t, shelf, func(int) bool { return true }, threeLayers("all")...)
	shelf.setRefuse(fmt.Errorf("no signature by release@example: %w", ErrRefused))
	for what, err := range map[string]error{
		"ctr": second(c.Try("image", "pull", "--plain-http", "--snapshotter", containerdtest.Snapshotter, image.ref)),
		"CRI": c.TryPullCRI(image.ref, nil),
	} {
		if err == nil || !strings.Contains(err.Error(), "no signature by release@example") {
			t.Errorf("pull by %s: %v, want refused", what, err)
		}
	}
	if n := image.blobsFetched(); n != 0 {
		t.Errorf("%d layers of a refused image were fetched", n)
	}
}

func second(_ string, err error) error { return err }
