package torrent_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/identity"
	"github.com/spate-project/spate/p2p/link"
	"github.com/spate-project/spate/p2p/p2ptest"
	"github.com/spate-project/spate/p2p/torrent"
	"github.com/spate-project/spate/p2p/tracker"
)

// A world is a mesh of real engines on loopback, with one tracker and one origin.
type world struct {
	t       testing.TB
	ca      *identity.CA
	tracker *tracker.Server
	origin  atomic.Int64 // bytes read from the origin
	links   []*link.Link // of the nodes, in order
}

func newWorld(t testing.TB) *world {
	ca, err := identity.NewCA("test mesh", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return &world{t: t, ca: ca, tracker: tracker.New(tracker.Options{Logger: logger(t)})}
}

func logger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// node starts a mesh node that ends with the test.
func (w *world) node(name string, rate int64) *p2p.Mesh {
	w.t.Helper()
	dir := filepath.Join(w.t.TempDir(), name)
	if err := w.ca.Issue(dir, name, time.Hour); err != nil {
		w.t.Fatal(err)
	}
	id, err := identity.Load(dir)
	if err != nil {
		w.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	log := logger(w.t).With("node", name)
	l := link.New(rate, rate)
	w.links = append(w.links, l)
	e, err := torrent.New(torrent.Options{Identity: id, Listener: ln, Link: l, Logger: log})
	if err != nil {
		w.t.Fatal(err)
	}
	m := p2p.New(p2p.Options{Node: name, Engine: e, Tracker: tracker.Local{Server: w.tracker}, Logger: log})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { m.Run(ctx) })
	wg.Go(func() { e.Run(ctx) })
	w.t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return m
}

// from is an origin that holds data and counts what it sends.
func (w *world) from(data []byte) p2p.Origin {
	return p2p.OriginFunc(func(_ context.Context, off, n int64) (io.ReadCloser, error) {
		w.origin.Add(n)
		return io.NopCloser(bytes.NewReader(data[off : off+n])), nil
	})
}

func TestSwarm(t *testing.T) {
	w := newWorld(t)
	sizes := []int64{1, 100 << 10, 256 << 10, 256<<10 + 1, 9<<20 + 12345}
	const nodes = 4
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	var total int64
	var all []*p2ptest.Holding
	meshes := make([]*p2p.Mesh, nodes)
	for k := range meshes {
		meshes[k] = w.node(fmt.Sprintf("node-%d", k), 0)
	}
	for s, size := range sizes {
		data := p2ptest.Bytes(size, uint64(s))
		total += size
		for _, m := range meshes {
			h := p2ptest.NewHolding(p2ptest.Tree(data))
			if err := m.Join(h, p2p.JoinOptions{Origin: w.from(data), Fill: true}); err != nil {
				t.Fatal(err)
			}
			all = append(all, h)
		}
	}
	for i, h := range all {
		if err := h.WaitAll(ctx); err != nil {
			t.Fatalf("holding %d: %v with %d pieces", i, err, h.Count())
		}
	}
	copies := float64(w.origin.Load()) / float64(total)
	t.Logf("origin copies: %.3f", copies)
	if copies > 1.3 {
		t.Errorf("the origin sent %.2f copies to %d nodes", copies, nodes)
	}
}

// BenchmarkStorm starts four empty nodes at once behind links of 25 MiB/s, the
// origin's too. The bound is one copy at that rate.
func BenchmarkStorm(b *testing.B) {
	const nodes, size, rate = 4, 128 << 20, 25 << 20
	data := p2ptest.Bytes(size, 1)
	tree := p2ptest.Tree(data)
	for b.Loop() {
		w := newWorld(b)
		url := w.serve(data, rate)
		var meshes []*p2p.Mesh
		for k := range nodes {
			meshes = append(meshes, w.node(fmt.Sprintf("node-%d", k), rate))
		}
		start := time.Now()
		var wg sync.WaitGroup
		for k, m := range meshes {
			h := p2ptest.NewHolding(tree)
			if err := m.Join(h, p2p.JoinOptions{Origin: w.http(url, w.links[k]), Fill: true}); err != nil {
				b.Fatal(err)
			}
			wg.Go(func() { h.WaitAll(b.Context()) })
		}
		wg.Wait()
		b.ReportMetric(float64(size)/rate/time.Since(start).Seconds(), "efficiency")
		b.ReportMetric(float64(w.origin.Load())/size, "copies")
		var wasted int64
		for _, m := range meshes {
			s, _ := m.Stats(tree.Object().Digest)
			wasted += s.Wasted
		}
		b.ReportMetric(float64(wasted), "wasted-blocks")
	}
}

// serve serves data by HTTP behind a link of rate.
func (w *world) serve(data []byte, rate int64) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		http.ServeContent(rw, r, "", time.Time{}, bytes.NewReader(data))
	})}
	go srv.Serve(link.New(rate, rate).Listener(ln))
	w.t.Cleanup(func() { srv.Close() })
	return "http://" + ln.Addr().String()
}

// http is an origin behind a node's link.
func (w *world) http(url string, l *link.Link) p2p.Origin {
	client := &http.Client{Transport: &http.Transport{DialContext: l.Dial((&net.Dialer{}).DialContext)}}
	w.t.Cleanup(client.CloseIdleConnections)
	return p2p.OriginFunc(func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		w.origin.Add(n)
		return resp.Body, nil
	})
}
