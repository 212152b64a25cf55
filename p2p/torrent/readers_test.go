package torrent_test

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/spate-project/spate/cache"
	"github.com/spate-project/spate/p2p/p2ptest"
)

// BenchmarkReaders has eight nodes read an object in order through their
// caches, from within half a second on and nothing of it fetched but for the
// readers, each over a link of its own of 5 MB/s, as the origin's is. ratio is the last
// one's time by that of one who reads alone, copies what left the origin by the
// object's size.
func BenchmarkReaders(b *testing.B) {
	const count, size, rate, stagger, request = 8, 15 << 20, 5e6, 50 * time.Millisecond, 128 << 10
	data := p2ptest.Bytes(size, 1)
	tree := p2ptest.Tree(data)
	read := func(names ...string) (last time.Duration, copies float64) {
		w := newWorld(b)
		url := w.serve(data, rate)
		var readers sync.WaitGroup
		var mu sync.Mutex
		for k, name := range names {
			n := w.node(name, rate)
			defer n.stop()
			store, err := cache.Open(filepath.Join(b.TempDir(), "cache"), cache.Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer store.Close()
			o, err := store.Open(tree, n.Mesh)
			if err != nil {
				b.Fatal(err)
			}
			defer o.Close()
			readers.Go(func() {
				time.Sleep(time.Duration(k) * stagger)
				begin := time.Now()
				n.join(o, w.http(url, n.link), false)
				o.ReadAhead(8 << 20)
				var kernel errgroup.Group // reads ahead
				kernel.SetLimit(32)
				for off := int64(0); off < size; off += request {
					kernel.Go(func() error { return o.Ensure(b.Context(), off, request) })
				}
				if err := kernel.Wait(); err != nil {
					b.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				last = max(last, time.Since(begin))
			})
		}
		readers.Wait()
		return last, float64(w.origin.Load()) / size
	}
	var names []string
	for k := range count {
		names = append(names, fmt.Sprintf("node-%d", k))
	}
	for b.Loop() {
		lone, _ := read("lone")
		last, copies := read(names...)
		b.ReportMetric(lone.Seconds(), "lone-s")
		b.ReportMetric(last.Seconds(), "last-s")
		b.ReportMetric(last.Seconds()/lone.Seconds(), "ratio")
		b.ReportMetric(copies, "copies")
	}
}
