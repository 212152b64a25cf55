package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spate-project/spate/oci/snapshot/containerdtest"
)

// BenchmarkImages starts an image of 300 MiB, of which the program reads 5 %,
// from a registry that sends 20 MB/s: lazily, and pulled and unpacked as
// containerd does. Then the program reads all of it. The ratios are of the
// times of pull and run, lazy to ordinary, and moved is what left the registry
// for the start as a part of the image.
func BenchmarkImages(b *testing.B) {
	const size, touched = 300 << 20, 15 << 20
	n := newSite(b, nil, "--limit-up", "20MB").newNode("node")
	ref := n.push("app", map[string][]byte{"data/touched": noise(touched, 1)}, map[string][]byte{"data/rest": noise(size-touched, 2)})
	if _, err := n.spate("index", ref, "--sign-key", n.keys.Sign()); err != nil {
		b.Fatal(err)
	}
	some := []string{"/bin/busybox", "sha256sum", "/data/touched"}
	all := []string{"/bin/busybox", "sha256sum", "/data/touched", "/data/rest"}
	c := containerdtest.Start(b, containerdtest.Modern(b), n.socket())
	timed := func(snapshotter, id string, program []string) (took time.Duration) {
		begin := time.Now()
		if snapshotter == containerdtest.Snapshotter {
			c.Pull(ref)
		} else {
			c.Ctr("image", "pull", "--local", "--plain-http", "--snapshotter", snapshotter, ref)
		}
		c.Ctr(append([]string{"run", "--rm", "--snapshotter", snapshotter, ref, id}, program...)...)
		took = time.Since(begin)
		c.RemoveImage(ref)
		return took
	}
	for b.Loop() {
		before := n.sent()
		lazy := timed(containerdtest.Snapshotter, "some", some)
		moved := n.sent() - before
		n.restart()
		reach(c)
		lazyAll := timed(containerdtest.Snapshotter, "all", all)
		n.restart()
		ordinary := timed("overlayfs", "ordinary", some)
		ordinaryAll := timed("overlayfs", "ordinary-all", all)
		b.ReportMetric(lazy.Seconds(), "start-s")
		b.ReportMetric(ordinary.Seconds(), "ordinary-s")
		b.ReportMetric(lazy.Seconds()/ordinary.Seconds(), "start-ratio")
		b.ReportMetric(float64(moved)/size, "moved")
		b.ReportMetric(lazyAll.Seconds(), "all-s")
		b.ReportMetric(lazyAll.Seconds()/ordinaryAll.Seconds(), "all-ratio")
	}
}

// sent returns how many bytes have left the registry.
func (s *site) sent() (bytes int64) {
	s.t.Helper()
	resp, err := http.Get("http://" + s.registry + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), `spate_link_bytes_total{direction="sent"} `)
	var sent float64
	if _, err := fmt.Sscan(rest, &sent); err != nil {
		s.t.Fatal(err)
	}
	return int64(sent)
}

// restart starts an agent that has nothing.
func (n *node) restart() {
	n.t.Helper()
	n.agent.Process.Signal(syscall.SIGTERM)
	n.agent.Wait()
	if err := os.RemoveAll(filepath.Join(n.data(), "cache")); err != nil {
		n.t.Fatal(err)
	}
	n.startAgent()
}

// BenchmarkImageStorm starts an image of 300 MiB, of which the program reads 5 %,
// on eight nodes in the same second, behind links of 20 MB/s, after one has
// started it alone. ratio is the last node's start by the lone one's, copies what
// left the registry meanwhile by the bytes that the program reads.
func BenchmarkImageStorm(b *testing.B) {
	const size, touched, nodes = 300 << 20, 15 << 20, 8
	names := []string{"lone"}
	for i := range nodes {
		names = append(names, fmt.Sprintf("node-%d", i))
	}
	s := newSite(b, names, "--limit-up", "20MB")
	ref := s.push("app", map[string][]byte{"data/touched": noise(touched, 1)}, map[string][]byte{"data/rest": noise(size-touched, 2)})
	if _, err := s.spate("index", ref, "--sign-key", s.keys.Sign()); err != nil {
		b.Fatal(err)
	}
	bin := containerdtest.Modern(b)
	ready := func(name string) (*node, *containerdtest.Containerd) {
		n := s.newNode(name, "--limit-up", "20MB", "--limit-down", "20MB", "--mesh", s.keys.Mesh(name), "--mesh-listen", free(b))
		return n, containerdtest.Start(b, bin, n.socket())
	}
	start := func(name string, c *containerdtest.Containerd) time.Duration {
		begin := time.Now()
		c.Pull(ref)
		c.Run(ref, name, "/bin/busybox", "sha256sum", "/data/touched")
		return time.Since(begin)
	}
	for b.Loop() {
		first, c := ready(names[0])
		lone := start(names[0], c)
		c.RemoveImage(ref)
		first.agent.Process.Signal(syscall.SIGTERM) // the others must not have it from there
		first.agent.Wait()
		var herd []*containerdtest.Containerd
		for _, name := range names[1:] {
			_, c := ready(name)
			herd = append(herd, c)
		}
		before := s.sent()
		var last atomic.Int64
		var all sync.WaitGroup
		for i, c := range herd {
			all.Go(func() {
				for took := int64(start(names[1+i], c)); ; {
					if was := last.Load(); was >= took || last.CompareAndSwap(was, took) {
						return
					}
				}
			})
		}
		all.Wait()
		b.ReportMetric(lone.Seconds(), "lone-s")
		b.ReportMetric(time.Duration(last.Load()).Seconds(), "last-s")
		b.ReportMetric(float64(last.Load())/float64(lone), "ratio")
		b.ReportMetric(float64(s.sent()-before)/touched, "copies")
	}
}
