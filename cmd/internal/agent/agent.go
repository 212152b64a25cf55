// Package agent joins the rooms into the node daemon: it admits references,
// opens their objects in the cache, brings them into the mesh, and shows them
// as mounts or as files.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/spate-project/spate/cache"
	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/telemetry"
	"github.com/spate-project/spate/oci/mirror"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/oci/snapshot"
	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/identity"
	"github.com/spate-project/spate/p2p/link"
	"github.com/spate-project/spate/p2p/torrent"
	"github.com/spate-project/spate/p2p/tracker"
	"github.com/spate-project/spate/signing"
)

// Options of an Agent.
type Options struct {
	Data   string            // where the cache and the control socket are; required
	Policy *signing.Policy   // whom to trust; required, though an empty one admits nothing
	Remote remote.Options    // how registries are reached; its Transport is replaced by one behind Link
	Link   *link.Link        // the node's bandwidth limits, which SetLimits changes; required
	Logger *slog.Logger      // required
	Tracer *telemetry.Tracer // nil: no traces; Run runs it

	// Limits of classes of traffic, as SetLimits has them, in bytes a second; 0 is none.
	Seeding, Prefetch, Demand int64

	// ReadTimeout is how long a read waits for a piece, all tries together, before it fails; 2 minutes when 0.
	ReadTimeout time.Duration

	// CacheQuota is how many bytes the cache may have, 0 for no limit; SetQuota changes it.
	CacheQuota int64

	// Images. Without a Snapshotter containerd cannot use the agent as one.
	Snapshotter string   // path of the unix socket where containerd finds it
	Holder      []string // command of the process that keeps mounts for the next agent; without one images end with the agent

	Labels map[string]string // what the node is, for prefetch orders: orders.PoolLabel names its pool

	// Features is a file of node-feature-discovery's local source, which labels the
	// node with what it holds; empty for none.
	Features string

	// Mirrored registries, HOST[:PORT]; see mirror.Options, of which Registries[0] is the Default.
	Registries []string

	// The mesh. Without an Identity the agent has no peers and reads everything from the registry.
	Trackers     []string           // base URLs, where prefetch orders come from too
	Identity     *identity.Identity // nil: no mesh
	MeshListener net.Listener       // required with an Identity
	MeshAddr     string             // where peers reach it, host:port; its own address when empty
	MeshConns    int                // connections with peers at most; the engine's default when 0
	Zone         string             // where this node is; traffic within a zone is preferred
}

// SocketName is the control socket's name within the data directory.
const SocketName = "agent.sock"

// An Agent is the node daemon. Its methods are for one process: other ones
// reach it over the control socket, by a Client. It is safe for concurrent use.
type Agent struct {
	opts  Options
	log   *slog.Logger
	store *cache.Store
	mesh  *p2p.Mesh
	peers *torrent.Engine // nil without an identity

	received speedometer  // of the node's link
	replayed atomic.Int64 // bytes that traces had fetched
	metrics  *telemetry.Metrics

	seeding  *link.Link // the part of the node's link that peers are reached through
	limiting sync.Mutex // held while limits change

	transport *http.Transport
	socket    net.Listener // where control is served

	mu      sync.Mutex
	running context.Context // Run's; nil before it
	ending  bool            // no new task begins
	tasks   sync.WaitGroup  // what runs beside Run's own: requests, mounts, fills

	shelf       *shelf
	mirror      *mirror.Mirror
	hints       *hints
	images      *images // nil without a snapshotter, and so are the next two
	snapshotter *snapshot.Snapshotter
	containerd  net.Listener // where the snapshotter is served

	artifacts map[string]*artifact // by manifest digest
	objects   map[piece.Digest]int // how many files of artifacts, and hinted blobs, are each object
	mounts    map[string]*mounted  // by directory

	warmth *warmth

	evicted chan struct{} // holds a token when the cache has evicted something
	memory  *memory       // for prefetch orders
}

// New opens the cache and the control socket and returns an Agent, for Run to
// run and to end. Requests wait until then.
func New(opts Options) (_ *Agent, err error) {
	if err := os.MkdirAll(opts.Data, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	metrics := telemetry.NewMetrics()
	stalled := metrics.Histogram("spate_read_stall_duration_seconds", "How long each read waited that had to.", stallBounds()...)
	evicted := make(chan struct{}, 1)
	var a *Agent
	store, err := cache.Open(filepath.Join(opts.Data, "cache"), cache.Options{
		Logger: opts.Logger, FetchTimeout: opts.ReadTimeout, OnStall: onStall(opts.Tracer, stalled), Quota: opts.CacheQuota,
		Keep: func(d piece.Digest) bool { return a != nil && a.mesh != nil && a.mesh.Keeps(d) },
		OnEvict: func() {
			select {
			case evicted <- struct{}{}:
			default:
			}
		},
	})
	if err != nil {
		return nil, err
	}
	a = &Agent{
		opts: opts, log: opts.Logger, store: store, metrics: metrics,
		seeding:   opts.Link.Within(opts.Seeding, 0),
		transport: remote.NewTransport(),
		artifacts: make(map[string]*artifact),
		objects:   make(map[piece.Digest]int),
		mounts:    make(map[string]*mounted),
		evicted:   evicted,
		memory:    newMemory(os.DirFS("/")),
	}
	a.hints = newHints(a)
	a.warmth = newWarmth(a)
	a.transport.DialContext = opts.Link.Dial((&net.Dialer{}).DialContext)
	a.opts.Remote.Transport = a.transport

	defer func() {
		if err != nil {
			store.Close()
		}
	}()
	if a.socket, err = listen(filepath.Join(opts.Data, SocketName)); err != nil {
		return nil, err
	}
	mesh := p2p.Options{Node: "alone", Zone: opts.Zone, Logger: opts.Logger, Observer: observer(opts.Tracer)}
	if opts.Identity != nil {
		a.peers, err = torrent.New(torrent.Options{
			Identity: opts.Identity, Listener: opts.MeshListener, Addr: opts.MeshAddr, MaxConns: opts.MeshConns,
			Link: a.seeding, Logger: opts.Logger,
		})
		if err != nil {
			a.socket.Close()
			return nil, err
		}
		mesh.Node, mesh.Engine = opts.Identity.Name(), a.peers
		if len(opts.Trackers) > 0 {
			client := tracker.NewClient(&http.Client{Transport: a.transport}, opts.Trackers...)
			mesh.Tracker, a.hints.tracker = client, client
		}
	}
	a.mesh = p2p.New(mesh)
	if err := a.openImages(); err != nil {
		a.socket.Close()
		return nil, err
	}
	telemetry.Register(metrics, a.counts, families())
	a.mesh.SetLimits(opts.Prefetch, opts.Demand)
	return a, nil
}

// Run serves the control socket and, on ln, the read-only status, until ctx
// ends; then every mount is taken away by force and the cache closed.
// It returns nil after an orderly end.
func (a *Agent) Run(ctx context.Context, ln net.Listener) error {
	// Containers are left to the next agent before what brings their bytes ends.
	until, all := ctx, context.WithoutCancel(ctx)
	all, end := context.WithCancel(all)
	defer end()
	g, ctx := errgroup.WithContext(all)
	a.mu.Lock()
	a.running = ctx
	a.mu.Unlock()
	g.Go(func() error {
		defer end()
		until, cancel := context.WithCancel(until)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		return a.serveImages(until)
	})

	if a.opts.Tracer != nil {
		g.Go(func() error { return a.opts.Tracer.Run(ctx) })
	}
	g.Go(func() error { return a.received.run(ctx, a.opts.Link.Received) })
	g.Go(func() error { return a.store.Run(ctx) })
	g.Go(func() error { return a.sweep(ctx) })
	g.Go(func() error { return a.mesh.Run(ctx) })
	g.Go(func() error { return a.work(ctx) })
	g.Go(func() error { return a.warmth.run(ctx) })
	if a.opts.Features != "" {
		g.Go(func() error { return a.label(ctx) })
	}
	if a.peers != nil {
		g.Go(func() error { return a.peers.Run(ctx) })
	}
	g.Go(func() error { return serve(ctx, a.socket, a.counted(a.control())) })
	g.Go(func() error { return serve(ctx, ln, a.counted(a.public())) })
	err := g.Wait()
	a.mu.Lock()
	a.ending = true
	a.mu.Unlock()
	a.tasks.Wait()
	a.mirror.Close()
	a.transport.CloseIdleConnections()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, a.closeImages(), a.store.Close())
}

// errEnding refuses what comes too late.
var errEnding = errors.New("the agent is ending")

// context returns Run's.
func (a *Agent) context() context.Context {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.running
}

// spawn runs f until it returns, with Run's context; Run waits for it. It
// reports false, and f does not run, when the agent is not running. The caller holds a.mu.
func (a *Agent) spawn(f func(context.Context)) bool {
	if a.running == nil || a.ending {
		return false
	}
	ctx := a.running
	a.tasks.Go(func() { f(ctx) })
	return true
}

// counted lets Run wait for requests under way: what they begin must be ended too.
func (a *Agent) counted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		late := a.ending
		if !late {
			a.tasks.Add(1)
		}
		a.mu.Unlock()
		if late {
			reply(w, nil, errEnding)
			return
		}
		defer a.tasks.Done()
		h.ServeHTTP(w, r)
	})
}

// listen opens the control socket. The cache's lock says that no other agent
// uses the directory, so a socket that is there already is a dead one's.
func listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open the control socket: %w", err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open the control socket: %w", err)
	}
	// The directory is its owner's alone; the socket says it again.
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, fmt.Errorf("open the control socket: %w", err)
	}
	return ln, nil
}

// serve serves h on ln until ctx ends; what is under way is cut off then.
func serve(ctx context.Context, ln net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
