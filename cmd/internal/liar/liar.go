// Package liar is a mesh node that lies: with a certificate like any other's it
// says that it holds everything, and then sends wrong bytes, nothing, or next to
// nothing. Experiments show with it what a hostile node can do.
package liar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/agent"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/identity"
	"github.com/spate-project/spate/p2p/link"
	"github.com/spate-project/spate/p2p/torrent"
	"github.com/spate-project/spate/p2p/tracker"
	"github.com/spate-project/spate/signing"
)

// A Mode is how a liar lies. It is a pflag.Value.
type Mode string

// The modes.
const (
	Wrong   Mode = "wrong"   // bytes of the right number, and wrong
	Silent  Mode = "silent"  // requests are taken and never answered
	Trickle Mode = "trickle" // wrong bytes, 1 KiB a second on each connection
)

// Set accepts the name of a mode.
func (m *Mode) Set(s string) error {
	switch Mode(s) {
	case Wrong, Silent, Trickle:
		*m = Mode(s)
		return nil
	}
	return fmt.Errorf("%q is none of %q, %q and %q", s, Wrong, Silent, Trickle)
}

// String returns the name of the mode.
func (m *Mode) String() string { return string(*m) }

// Type is what the flag's help calls the value.
func (m *Mode) Type() string { return "mode" }

// Options of a liar; all but Addr are required.
type Options struct {
	Mode      Mode
	Reference string          // whose objects it lies about
	Policy    *signing.Policy // has to admit the reference
	Remote    remote.Options  // how the reference's registry is reached
	Trackers  []string        // base URLs
	Identity  *identity.Identity
	Listener  net.Listener // where peers connect; Run closes it
	Addr      string       // where peers reach it, host:port; the listener's own when empty
	Logger    *slog.Logger

	// Ready is called once a tracker knows the liar, with the address where peers
	// reach it and the number of objects that it lies about.
	Ready func(addr string, objects int)
}

// Run lies until ctx ends, and returns nil then. It fails when the policy does
// not admit the reference, or no engine can be started.
func Run(ctx context.Context, o Options) error {
	admission, _, err := agent.Admit(ctx, o.Policy, o.Remote, o.Reference)
	if err != nil {
		o.Listener.Close()
		return err
	}
	ln := o.Listener
	if o.Mode == Trickle {
		ln = tricklingListener{ln}
	}
	engine, err := torrent.New(torrent.Options{
		Identity: o.Identity, Listener: ln, Addr: o.Addr, Link: link.New(0, 0), Logger: o.Logger,
	})
	if err != nil {
		o.Listener.Close()
		return err
	}
	var joins p2p.Engine = engine
	if o.Mode == Trickle {
		joins = waiting{engine}
	}
	objects := 0
	transport := remote.NewTransport()
	defer transport.CloseIdleConnections()
	mesh := p2p.New(p2p.Options{
		Node: o.Identity.Name(), Engine: joins, Logger: o.Logger,
		Tracker: &announcing{
			Tracker: tracker.NewClient(&http.Client{Transport: transport}, o.Trackers...),
			ready:   sync.OnceFunc(func() { o.Ready(engine.Addr(), objects) }),
		},
	})

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return engine.Run(ctx) })
	g.Go(func() error {
		for _, f := range admission.Files {
			d, err := piece.ParseDigest(f.Descriptor.Digest.String())
			if err != nil {
				return err
			}
			tree, ok := admission.Index.Tree(d)
			if !ok || tree.Object().Size == 0 {
				continue
			}
			h := holding{tree: tree, mode: o.Mode, ended: ctx.Done()}
			if err := mesh.Join(h, p2p.JoinOptions{Origin: none}); err != nil {
				return err
			}
			objects++
		}
		return mesh.Run(ctx)
	})
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// none is the origin of objects that are said to be whole.
var none = p2p.OriginFunc(func(context.Context, int64, int64) (io.ReadCloser, error) {
	return nil, piece.ErrNotHere
})

// An announcing tracker tells when it was first told of the node.
type announcing struct {
	p2p.Tracker
	ready func()
}

func (a *announcing) Announce(ctx context.Context, what tracker.Announce) (tracker.Peers, error) {
	peers, err := a.Tracker.Announce(ctx, what)
	if err == nil {
		a.ready()
	}
	return peers, err
}

// A waiting engine connects to nobody: only whom it accepts is behind its listener.
type waiting struct{ p2p.Engine }

func (w waiting) Join(h p2p.Holding) (p2p.Swarm, error) {
	s, err := w.Engine.Join(h)
	return waitingSwarm{s}, err
}

type waitingSwarm struct{ p2p.Swarm }

func (waitingSwarm) AddPeers([]tracker.Peer) {}
