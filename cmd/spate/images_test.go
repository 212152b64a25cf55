package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"

	"github.com/spate-project/spate/cmd/internal/agent"
	"github.com/spate-project/spate/cmd/internal/lab"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/oci/snapshot/containerdtest"
)

// A site is a registry and the keys of those who use it.
type site struct {
	t        testing.TB
	dir      string
	registry string // HOST:PORT
	server   *exec.Cmd
	keys     lab.Keys
}

// A node is an agent, for a containerd.
type node struct {
	*site
	name   string
	listen string
	agent  *exec.Cmd
}

// newSite starts a registry, which has the given flags too.
func newSite(t testing.TB, nodes []string, flags ...string) *site {
	t.Helper()
	dir, err := os.MkdirTemp("", "spate") // sockets' paths are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		endHolders(t, dir)
		detachBelow(dir)
		os.RemoveAll(dir)
	})
	s := &site{t: t, dir: dir, registry: free(t)}
	if s.keys, err = lab.NewKeys(dir, time.Hour, nodes); err != nil {
		t.Fatal(err)
	}
	s.server = s.start("registry", append([]string{"registry", "--data", filepath.Join(dir, "registry"), "--listen", s.registry}, flags...)...)
	s.answers(s.registry)
	return s
}

// endHolders kills the holders of agents whose data are below dir: they outlive those, as they should.
func endHolders(t testing.TB, dir string) {
	for _, path := range processes("\x00" + holderCommand + "\x00" + dir + "/") {
		pid, err := strconv.Atoi(filepath.Base(path))
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err != nil && err != syscall.ESRCH {
			t.Errorf("end a holder: %v", err)
		}
	}
}

// newNode starts the agent of a node, which has the given flags too.
func (s *site) newNode(name string, flags ...string) *node {
	s.t.Helper()
	n := &node{site: s, name: name, listen: free(s.t)}
	n.startAgent(flags...)
	return n
}

func free(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func (n *node) data() string   { return filepath.Join(n.dir, n.name) }
func (n *node) socket() string { return filepath.Join(n.dir, n.name+".sock") }

// startAgent starts the agent, in place of one that is dead.
func (n *node) startAgent(flags ...string) {
	n.t.Helper()
	n.agent = n.start(n.name, append([]string{"agent", "--data", n.data(), "--listen", n.listen, "--registry", "http://" + n.registry,
		"--key", n.keys.Verify(), "--snapshotter", n.socket()}, flags...)...)
	n.answers(n.listen)
}

// start runs this program until the test ends.
func (s *site) start(name string, args ...string) *exec.Cmd {
	s.t.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("spate", args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if s.t.Failed() {
			b, _ := os.ReadFile(log.Name())
			s.t.Logf("%s:\n%s", name, b[max(0, len(b)-8<<10):])
		}
	})
	return cmd
}

func (s *site) answers(addr string) {
	s.t.Helper()
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return
		}
		if time.Since(start) > time.Minute {
			s.t.Fatal(err)
		}
	}
}

// spate runs a command to its end.
func (s *site) spate(args ...string) (string, error) {
	cmd := exec.Command("spate", args...)
	cmd.Env = append(os.Environ(), "COSIGN_PASSWORD=")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("spate %s: %w: %s", strings.Join(args, " "), err, &stderr)
	}
	return string(out), err
}

func (n *node) status() (s agent.Status) {
	n.t.Helper()
	out, err := n.spate("status", "--data", n.data(), "--output", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

// push pushes an image with busybox in its first layer, and returns its name.
func (s *site) push(name string, layers ...map[string][]byte) string {
	s.t.Helper()
	ref := s.registry + "/" + name + ":v1"
	repo, err := remote.Open(ref, remote.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	put := func(mediaType string, b []byte) ocispec.Descriptor {
		s.t.Helper()
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
		if err := repo.Push(s.t.Context(), d, bytes.NewReader(b)); err != nil {
			s.t.Fatal(err)
		}
		return d
	}
	layers[0]["bin/busybox"] = containerdtest.BusyBox(s.t)
	config := ocispec.Image{
		Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Config:   ocispec.ImageConfig{Entrypoint: []string{"/bin/busybox"}},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, files := range layers {
		var object, blob bytes.Buffer
		z := gzip.NewWriter(&blob)
		w := tar.NewWriter(io.MultiWriter(&object, z))
		for name, b := range files {
			if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(b))}); err != nil {
				s.t.Fatal(err)
			}
			w.Write(b)
		}
		w.Close()
		z.Close()
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(object.Bytes()))
		manifest.Layers = append(manifest.Layers, put(ocispec.MediaTypeImageLayerGzip, blob.Bytes()))
	}
	text, err := json.Marshal(config)
	if err != nil {
		s.t.Fatal(err)
	}
	manifest.Config = put(ocispec.MediaTypeImageConfig, text)
	if text, err = json.Marshal(manifest); err != nil {
		s.t.Fatal(err)
	}
	if err := repo.Tag(s.t.Context(), put(manifest.MediaType, text), "v1"); err != nil {
		s.t.Fatal(err)
	}
	return ref
}

// noise returns bytes that no compression makes fewer.
func noise(size int, seed uint64) []byte {
	b := make([]byte, size)
	var key [32]byte
	key[0] = byte(seed)
	rand.NewChaCha8(key).Read(b)
	return b
}

// reach waits until containerd talks to the agent again: where it was refused it lets some time pass.
func reach(c *containerdtest.Containerd) {
	c.Until("containerd reaches the agent", func() error {
		_, err := c.Try("snapshots", "--snapshotter", containerdtest.Snapshotter, "ls")
		return err
	})
}

// TestImages starts unmodified images lazily on a real containerd, kills the
// agent below a running container, and takes the images away again.
func TestImages(t *testing.T) {
	n := newSite(t, nil, "--limit-up", "10MB").newNode("node")
	weights := noise(24<<20, 1)
	ref := n.push("app",
		map[string][]byte{"etc/greeting": []byte("one\n")},
		map[string][]byte{"etc/greeting": []byte("two\n"), "data/weights": weights})
	if out, err := n.spate("index", ref, "--sign-key", n.keys.Sign()); err != nil {
		t.Fatal(err)
	} else {
		t.Log(out)
	}
	c := containerdtest.Start(t, containerdtest.Modern(t), n.socket())
	c.Pull(ref)
	s := n.status()
	if len(s.Layers) != 2 {
		t.Fatalf("there are layers %+v, want 2", s.Layers)
	}
	for _, l := range s.Layers {
		if l.Path != "lazy-file" {
			t.Errorf("a layer is not lazy: %+v", l)
		}
	}
	program := int64(len(containerdtest.BusyBox(t)))
	c.Until("the image's program comes before it runs", func() error {
		if here := n.status().Artifacts[0].Present; here < program {
			return fmt.Errorf("%d bytes are here", here)
		}
		return nil
	})
	if out := c.Run(ref, "hello", "/bin/busybox", "cat", "/etc/greeting"); out != "two\n" {
		t.Errorf("a container reads %q", out)
	}
	if s = n.status(); s.Artifacts[0].Present > int64(len(weights)/2) {
		t.Errorf("a container that reads nothing much has fetched %d bytes", s.Artifacts[0].Present)
	}

	c.RunDetached(ref, "long", "/bin/busybox", "sleep", "1000")
	want := fmt.Sprintf("%x", sha256.Sum256(weights))
	var reads sync.WaitGroup // 200, each of 120 KiB
	for reader := range 4 {
		reads.Go(func() {
			const script = `for i in $(/bin/busybox seq 0 49); do
				/bin/busybox dd if=/data/weights bs=120k skip=$((i * 7 % 50 * 4 + READER)) count=1 2>/dev/null | /bin/busybox sha256sum || echo failed
			done`
			out := c.Exec("long", "/bin/busybox", "sh", "-c", strings.ReplaceAll(script, "READER", strconv.Itoa(reader)))
			var want strings.Builder
			for i := range 50 {
				off := (i*7%50*4 + reader) * 120 << 10
				fmt.Fprintf(&want, "%x  -\n", sha256.Sum256(weights[off:off+120<<10]))
			}
			if out != want.String() {
				t.Errorf("a container reads %q, want %q", out, want.String())
			}
		})
	}
	time.Sleep(500 * time.Millisecond) // of 2.4 s that all bytes take
	n.agent.Process.Kill()
	n.agent.Wait()
	n.startAgent()
	reads.Wait()
	reach(c)
	if out := c.Exec("long", "/bin/busybox", "sha256sum", "/data/weights"); !strings.HasPrefix(out, want) {
		t.Errorf("after a kill a container reads %q, want %s", out, want)
	}

	c.RemoveContainer("long")
	c.RemoveImage(ref)
	c.Until("the image's mounts are gone", func() error {
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err == nil && strings.Contains(string(mounts), n.data()) {
			err = fmt.Errorf("something is mounted below %s", n.data())
		}
		return err
	})
	if s = n.status(); len(s.Layers) > 0 {
		t.Errorf("the image is removed, and there are layers %+v", s.Layers)
	}
	c.Until("the image's disk is free", func() error {
		for _, kept := range []string{"cache/objects/*/*", "erofs/*"} {
			if paths, err := filepath.Glob(filepath.Join(n.data(), kept)); err != nil || len(paths) > 0 {
				return fmt.Errorf("there are %v, %v", paths, err)
			}
		}
		return nil
	})
}

// TestImagesRestart: what an earlier agent had is there again with the registry
// away, after an orderly end, a kill, and after everything was unmounted as by a reboot.
func TestImagesRestart(t *testing.T) {
	s := newSite(t, nil)
	n := s.newNode("node")
	ref := n.push("app", map[string][]byte{"etc/greeting": []byte("one\n")}, map[string][]byte{"data/weights": noise(4<<20, 1)})
	if _, err := n.spate("index", ref, "--sign-key", n.keys.Sign()); err != nil {
		t.Fatal(err)
	}
	c := containerdtest.Start(t, containerdtest.Modern(t), n.socket())
	c.Pull(ref)
	sum := c.Run(ref, "first", "/bin/busybox", "sha256sum", "/data/weights", "/etc/greeting", "/bin/busybox")
	s.server.Process.Kill()
	s.server.Wait()
	for _, end := range []string{"end", "kill", "reboot"} {
		if end == "end" {
			n.agent.Process.Signal(syscall.SIGTERM)
		} else {
			n.agent.Process.Kill()
		}
		n.agent.Wait()
		if end == "reboot" {
			detachBelow(n.data())
		}
		n.startAgent()
		reach(c)
		if got := c.Run(ref, end, "/bin/busybox", "sha256sum", "/data/weights", "/etc/greeting", "/bin/busybox"); got != sum {
			t.Errorf("after %s a container reads %q, want %q", end, got, sum)
		}
	}
}

// TestImagesRefused: what is not signed is not pulled, what has no index is
// unpacked and says so, and altered bytes are never read.
func TestImagesRefused(t *testing.T) {
	n := newSite(t, nil).newNode("node")
	c := containerdtest.Start(t, containerdtest.Modern(t), n.socket())

	unsigned := n.push("unsigned", map[string][]byte{"etc/greeting": []byte("unsigned\n")})
	if out, err := c.Try("image", "pull", "--plain-http", "--snapshotter", containerdtest.Snapshotter, unsigned); err == nil {
		t.Errorf("an unsigned image was pulled: %s", out)
	} else if !strings.Contains(err.Error(), "signature") {
		t.Errorf("an unsigned image: %v, want what is missing", err)
	}

	signed := n.push("signed", map[string][]byte{"etc/greeting": []byte("signed\n")})
	n.signImage(signed)
	c.Pull(signed)
	if out := c.Run(signed, "signed", "/bin/busybox", "cat", "/etc/greeting"); out != "signed\n" {
		t.Errorf("an image without an index reads %q", out)
	}
	if s := n.status(); len(s.Layers) != 1 || s.Layers[0].Path != "unpacked" || s.Layers[0].Reason != "not-indexed" {
		t.Errorf("layers of an image without an index are %+v", s.Layers)
	}

	// The agent mirrors the one that is signed, and not the other one.
	mirrored := func(ref string) error {
		_, name, _ := strings.Cut(ref, "/")
		repo, err := remote.Open(n.listen+"/"+name, remote.Options{})
		if err != nil {
			return err
		}
		_, err = oras.Copy(t.Context(), repo, "v1", memory.New(), "v1", oras.DefaultCopyOptions)
		return err
	}
	if err := mirrored(signed); err != nil {
		t.Errorf("pull a signed image through the mirror: %v", err)
	}
	if err := mirrored(unsigned); err == nil || !strings.Contains(err.Error(), "signature") {
		t.Errorf("pull an unsigned image through the mirror: %v, want what is missing", err)
	}

	altered := n.push("altered", map[string][]byte{"data/weights": noise(8<<20, 3)})
	if _, err := n.spate("index", altered, "--sign-key", n.keys.Sign()); err != nil {
		t.Fatal(err)
	}
	c.Pull(altered)
	var object string // the largest of what the registry has is the layer, expanded
	var most int64
	filepath.WalkDir(filepath.Join(n.dir, "registry"), func(path string, d os.DirEntry, err error) error {
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() && info.Size() > most {
			object, most = path, info.Size()
		}
		return nil
	})
	f, err := os.OpenFile(object, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("altered"), most/2); err != nil {
		t.Fatal(err)
	}
	out, err := c.Try("run", "--rm", "--snapshotter", containerdtest.Snapshotter, altered, "altered", "/bin/busybox", "sha256sum", "/data/weights")
	if err == nil || !strings.Contains(err.Error(), "Input/output error") {
		t.Errorf("altered bytes were read: %s, %v; want an I/O error", out, err)
	}
}
