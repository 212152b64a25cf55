package torrent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/identity"
	"github.com/spate-project/spate/p2p/link"
	"github.com/spate-project/spate/p2p/p2ptest"
	"github.com/spate-project/spate/p2p/torrent"
	"github.com/spate-project/spate/p2p/tracker"
)

func TestMain(m *testing.M) {
	if role, dir, ok := strings.Cut(os.Getenv(transferRole), " "); ok {
		if err := transferRoles[role](dir); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", role, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// A world is a mesh of real engines on loopback, with one tracker and one origin.
type world struct {
	t        testing.TB
	ca       *identity.CA
	tracker  atomic.Pointer[tracker.Server]
	origin   atomic.Int64  // bytes read from the origin
	maxConns int           // of the nodes that are started next; 0 leaves it to the engine
	tick     time.Duration // how often nodes that start from now on look at their peers; the usual when 0
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, ca: newCA(t)}
	w.restartTracker(tracker.Options{})
	return w
}

// restartTracker puts an empty tracker in the place of the one that was there.
func (w *world) restartTracker(opts tracker.Options) {
	opts.Logger = quiet()
	w.tracker.Store(tracker.New(opts))
}

// Announce and Lease make a world the tracker of its nodes.
func (w *world) Announce(_ context.Context, a tracker.Announce) (tracker.Peers, error) {
	return w.tracker.Load().Announce(a)
}

func (w *world) Lease(_ context.Context, r tracker.LeaseRequest) (tracker.Lease, error) {
	return w.tracker.Load().Lease(r)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newCA(t testing.TB) *identity.CA {
	t.Helper()
	ca, err := identity.NewCA("test mesh", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func newIdentity(t testing.TB, ca *identity.CA, name string, life time.Duration) *identity.Identity {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := ca.Issue(dir, name, life); err != nil {
		t.Fatal(err)
	}
	id, err := identity.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// A node is a mesh node that runs until the test ends or stop is called.
type node struct {
	*p2p.Mesh
	t      testing.TB
	engine *torrent.Engine
	link   *link.Link
	log    *logs
	stop   func()
}

// node starts a node with a certificate of the mesh's CA and a link of rate bytes a second.
func (w *world) node(name string, rate int64) *node {
	w.t.Helper()
	return w.nodeAs(newIdentity(w.t, w.ca, name, time.Hour), rate, p2p.Options{})
}

func (w *world) nodeAs(id *identity.Identity, rate int64, opts p2p.Options) *node {
	w.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	n := &node{t: w.t, link: link.New(rate, rate), log: newLogs(w.t)}
	opts.Logger = slog.New(slog.NewTextHandler(n.log, nil)).With("node", id.Name())
	n.engine, err = torrent.New(torrent.Options{Identity: id, Listener: ln, Link: n.link, Logger: opts.Logger, MaxConns: w.maxConns})
	if err != nil {
		w.t.Fatal(err)
	}
	if w.tick > 0 {
		n.engine.Hasten(w.tick)
	}
	opts.Node, opts.Engine, opts.Tracker = id.Name(), n.engine, w
	n.Mesh = p2p.New(opts)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{n.Mesh.Run, n.engine.Run} {
		running.Go(func() {
			if err := run(ctx); !errors.Is(err, context.Canceled) {
				w.t.Errorf("%s: Run returned %v, want context.Canceled", id.Name(), err)
			}
		})
	}
	n.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	w.t.Cleanup(n.stop)
	return n
}

// join brings h into the node's mesh.
func (n *node) join(h p2p.Holding, o p2p.Origin, fill bool) {
	n.t.Helper()
	if err := n.Join(h, p2p.JoinOptions{Origin: o, Fill: fill}); err != nil {
		n.t.Fatal(err)
	}
}

// patience is how long what must happen may take, on however slow a machine.
const patience = time.Minute

// soon returns a context for what must happen.
func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// filled fails the test unless every holding becomes whole, with the bytes of data.
func filled(t testing.TB, data []byte, hs ...*p2ptest.Holding) {
	t.Helper()
	ctx := soon(t)
	for i, h := range hs {
		if err := h.WaitAll(ctx); err != nil {
			t.Fatalf("holding %d has %d of %d pieces: %v", i, h.Count(), h.Tree().Object().Pieces(), err)
		}
		if !bytes.Equal(h.Bytes(), data) {
			t.Errorf("holding %d is whole, but with other bytes", i)
		}
	}
}

// eventually fails the test unless cond becomes true.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ctx := soon(t)
	for !cond() {
		select {
		case <-ctx.Done():
			t.Fatalf("it never happens: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// from is an origin that holds data and counts what it sends.
func (w *world) from(data []byte) p2p.Origin {
	return p2p.OriginFunc(func(_ context.Context, off, n int64) (io.ReadCloser, error) {
		w.origin.Add(n)
		return io.NopCloser(bytes.NewReader(data[off : off+n])), nil
	})
}

// noOrigin is an origin that cannot be reached.
var noOrigin = p2p.OriginFunc(func(context.Context, int64, int64) (io.ReadCloser, error) {
	return nil, errors.New("no route to the registry")
})

// partly returns a holding of the pieces of data for which has is true.
func partly(t testing.TB, data []byte, has func(i int) bool) *p2ptest.Holding {
	t.Helper()
	tree := p2ptest.Tree(data)
	h := p2ptest.NewHolding(tree)
	for i := range tree.Object().Pieces() {
		if !has(i) {
			continue
		}
		off, n := tree.Object().Span(i)
		v, err := tree.Verify(i, data[off:off+n])
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Put(v); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func digestOf(h p2p.Holding) piece.Digest { return h.Tree().Object().Digest }

// serve serves data by HTTP behind a link of rate.
func (w *world) serve(data []byte, rate int64) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		http.ServeContent(rw, r, "", time.Time{}, bytes.NewReader(data))
	})}
	served := make(chan struct{})
	go func() {
		defer close(served)
		srv.Serve(link.New(rate, rate).Listener(ln))
	}()
	w.t.Cleanup(func() {
		srv.Close()
		<-served
	})
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
		req.Header.Set("Range", rangeOf(off, n))
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		w.origin.Add(n)
		return resp.Body, nil
	})
}

// logs passes lines on to a test's output and lets the test wait for one.
type logs struct {
	out io.Writer

	mu      sync.Mutex
	text    strings.Builder
	changed chan struct{}
}

func newLogs(t testing.TB) *logs { return &logs{out: t.Output(), changed: make(chan struct{})} }

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	close(l.changed)
	l.changed = make(chan struct{})
	return l.out.Write(p)
}

// wait fails the test unless a line with all of words is written, or was.
func (l *logs) wait(t testing.TB, words ...string) {
	t.Helper()
	ctx := soon(t)
	for {
		l.mu.Lock()
		text, changed := l.text.String(), l.changed
		l.mu.Unlock()
	lines:
		for line := range strings.Lines(text) {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue lines
				}
			}
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("it is never logged: %q", words)
		case <-changed:
		}
	}
}

// nobodyBanned fails where a node, of those named node-0, node-1 and so on, has banned another.
func nobodyBanned(t *testing.T, nodes []*node) {
	t.Helper()
	for _, n := range nodes {
		for k := range nodes {
			if n.engine.Refuses(fmt.Sprintf("node-%d", k)) {
				t.Errorf("node-%d is banned, who is honest", k)
			}
		}
	}
}
