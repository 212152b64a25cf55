package main

import (
	"cmp"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/agent"
	"github.com/spate-project/spate/oci/snapshot/containerdtest"
	"github.com/spate-project/spate/prefetch"
	"github.com/spate-project/spate/signing"
)

// mountLazy mounts ref on n until the test ends.
func (n *node) mountLazy(ref string) (dir string) {
	n.t.Helper()
	dir, err := os.MkdirTemp(n.dir, "mnt")
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.spate("mount", ref, dir, "--data", n.data(), "--lazy"); err != nil {
		n.t.Fatal(err)
	}
	return dir
}

// readAt reads n bytes at off of a mounted file.
func (n *node) readAt(path string, off, size int64) {
	n.t.Helper()
	f, err := os.Open(path)
	if err != nil {
		n.t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(io.Discard, io.NewSectionReader(f, off, size)); err != nil {
		n.t.Fatal(err)
	}
}

// trace attaches what n read of ref, signed with key.
func (n *node) trace(ref, key string) (tr traced) {
	n.t.Helper()
	out, err := n.spate("trace", ref, "--data", n.data(), "--sign-key", key, "--workload", "test", "--output", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &tr)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return tr
}

// held returns the artifact that n has open.
func (n *node) held() agent.ArtifactStatus {
	n.t.Helper()
	s := n.status()
	if len(s.Artifacts) != 1 {
		n.t.Fatalf("%s has %d artifacts open, want 1", n.name, len(s.Artifacts))
	}
	return s.Artifacts[0]
}

// logged reports how often n's agent has logged a message.
func (n *node) logged(message string) int {
	n.t.Helper()
	log, err := os.ReadFile(filepath.Join(n.dir, n.name+".log"))
	if err != nil {
		n.t.Fatal(err)
	}
	return strings.Count(string(log), message)
}

// TestTrace: what one node read another one fetches without a reader, if a
// trusted key signed the trace, and of a trace only what there is. The trace is
// kept, for when there is no registry.
func TestTrace(t *testing.T) {
	s := newSite(t, []string{"first", "second", "third"})
	ref := s.pushModel("model", 16<<20, "--sign-key", s.keys.Sign())
	first := s.newPeer("first")
	dir := first.mountLazy(ref)
	if out, err := s.spate("trace", ref, "--data", first.data()); err == nil || !strings.Contains(err.Error(), "nothing was read") {
		t.Fatalf("before a read there is a trace: %q, %v", out, err)
	}
	largest := slices.MaxFunc(first.held().Files, func(a, b agent.ObjectStatus) int { return cmp.Compare(a.Size, b.Size) })
	for _, part := range []int64{3, 0, 2} {
		first.readAt(filepath.Join(dir, largest.Path), part*largest.Size/4, 64<<10)
	}

	stranger, _ := newIndexKey(t)
	var all prefetch.Trace
	for _, f := range first.held().Files {
		d, err := piece.ParseDigest(f.Digest)
		if err != nil {
			t.Fatal(err)
		}
		all.Reads = append(all.Reads, prefetch.Range{Object: d, Length: f.Size})
	}
	s.attachTrace(ref, all, stranger)
	second := s.newPeer("second")
	second.mountLazy(ref)
	s.until("a stranger's trace is ignored", func() bool { return second.logged("a trace is ignored") > 0 })
	if n := second.held().Present; n > 0 {
		t.Errorf("nobody read, and a stranger's trace has %d bytes fetched", n)
	}

	made := first.trace(ref, s.keys.Sign())
	if len(made.Reads) < 3 || made.Full {
		t.Errorf("of three reads the trace is %+v", made)
	}
	third := s.newPeer("third", "--log-level", "info")
	third.mountLazy(ref)
	s.until("the third node has what the first one read", func() bool {
		return int64(s.metric(third.listen, "spate_trace_replayed_bytes_total ")) >= made.Reads.Bytes()
	})
	if a, b := third.held().Present, first.held().Present; a < made.Reads.Bytes() || a > b {
		t.Errorf("the third node has %d bytes by a trace of %d, of a node that has %d", a, made.Reads.Bytes(), b)
	}

	third.kill()
	s.server.Process.Kill()
	s.server.Wait()
	third = s.newPeer("third", "--log-level", "info")
	repo, _, _ := strings.Cut(ref, ":v1")
	third.mountLazy(repo + "@" + made.Digest)
	s.until("the trace is replayed again", func() bool { return third.logged("replay a trace") == 2 })
}

// TestTraceOther: a trace survives that the objects of what it is attached to are
// not all those that it names.
func TestTraceOther(t *testing.T) {
	s := newSite(t, []string{"node"})
	ref := s.pushModel("model", 4<<20, "--sign-key", s.keys.Sign())
	t.Setenv("COSIGN_PASSWORD", "")
	n := s.newPeer("node")
	dir := n.mountLazy(ref)
	largest := slices.MaxFunc(n.held().Files, func(a, b agent.ObjectStatus) int { return cmp.Compare(a.Size, b.Size) })
	d, err := piece.ParseDigest(largest.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.spate("umount", dir, "--data", n.data()); err != nil {
		t.Fatal(err)
	}
	s.until("the model is closed", func() bool { return len(n.status().Artifacts) == 0 })
	s.attachTrace(ref, prefetch.Trace{Reads: prefetch.Plan{
		{Object: piece.Digest{1}, Length: 1 << 39}, {Object: d, Offset: 1, Length: 1 << 39},
	}}, s.keys.Sign())
	n.mountLazy(ref)
	s.until("the object is here that is known", func() bool {
		return slices.ContainsFunc(n.held().Files, func(f agent.ObjectStatus) bool { return f.Digest == largest.Digest && f.Present == f.Size })
	})
}

// TestTraceImage: what a container reads of its image is traced, and where
// nobody reads is fetched by that.
func TestTraceImage(t *testing.T) {
	s := newSite(t, []string{"first", "second"})
	ref := s.push("app", map[string][]byte{"etc/greeting": []byte("hello\n"), "data/weights": noise(8<<20, 1)})
	if _, err := s.spate("index", ref, "--sign-key", s.keys.Sign()); err != nil {
		t.Fatal(err)
	}
	first := s.newPeer("first")
	c := containerdtest.Start(t, containerdtest.Modern(t), first.socket())
	c.Pull(ref)
	if out := c.Run(ref, "hello", "/bin/busybox", "cat", "/etc/greeting"); out != "hello\n" {
		t.Fatalf("a container reads %q", out)
	}
	made := first.trace(ref, s.keys.Sign())
	second := s.newPeer("second")
	containerdtest.Start(t, containerdtest.Modern(t), second.socket()).Pull(ref)
	s.until("the second node has what the container read on the first one", func() bool {
		return second.held().Present >= made.Reads.Bytes()
	})
}

// attachTrace attaches a trace, signed with a key.
func (s *site) attachTrace(ref string, trace prefetch.Trace, key string) {
	s.t.Helper()
	signer, err := loadSigner(key)
	if err != nil {
		s.t.Fatal(err)
	}
	repo, desc := s.resolve(ref)
	attached, err := trace.Push(s.t.Context(), repo, desc)
	if err == nil {
		_, err = signing.Sign(s.t.Context(), repo, signer, attached)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}
