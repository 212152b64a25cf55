package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/indexer"
	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/p2p/link"
	"github.com/spate-project/spate/p2p/tracker"
	"github.com/spate-project/spate/prefetch/orders"
	"github.com/spate-project/spate/prefetch/placement"
)

// A serving is what a daemon says once it answers.
type serving struct {
	Listen string `json:"listen"`
	Data   string `json:"data"`
}

func (a *app) announce(s serving, what string) error {
	return a.out.Result(s, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s listens on %s, data in %s\n", what, s.Listen, s.Data)
		return err
	})
}

// expandedLimit is what --index-limit is by default. The largest images are of some 50 GiB.
const expandedLimit = 64 << 30

// indexFlags say whether and how a registry indexes the images that it has.
type indexFlags struct {
	key   string
	limit ui.Bytes
}

func (i *indexFlags) register(f *pflag.FlagSet) {
	i.limit = expandedLimit
	f.StringVar(&i.key, "index-key", "", "private key `file` to sign the indexes of pushed images with; none are made when empty")
	f.Var(&i.limit, "index-limit", "what the layers of an image may expand to, for it to be indexed; 0 is no limit")
}

// indexer returns nil, which indexes nothing, when there is no key.
func (i *indexFlags) indexer(log *slog.Logger) (*indexer.Indexer, error) {
	if i.key == "" {
		return nil, nil
	}
	signer, err := loadSigner(i.key)
	if err != nil {
		return nil, err
	}
	verifier, err := signer.Verifier(i.key)
	if err != nil {
		return nil, fmt.Errorf("load the signing key %s: %w", i.key, err)
	}
	return indexer.New(indexer.Options{Signer: signer, Verifier: verifier, MaxExpanded: int64(i.limit), Logger: log}), nil
}

func (a *app) registryCommand() *cobra.Command {
	var (
		listen listenFlags
		limits linkFlags
		images indexFlags
		follow upstreamFlags
		gc     gcFlags
		doors  accessFlags
		data   string
	)
	cmd := &cobra.Command{
		Use:   "registry",
		Short: "Serve an OCI 1.1 registry and the mesh's tracker",
		Long: `Serve an OCI 1.1 registry for images, models and what is signed about them,
and the tracker through which agents find each other and share out what they
draw from this registry, so that it sends each byte about once.

Blobs, manifests, unfinished uploads and prefetch orders survive a restart. The
tracker keeps nothing: agents tell it again.

--index-key indexes every image that is here or is pushed, in the background, as
` + "`spate index`" + ` does, and signs the indexes, not the images, with that key; its
password comes from COSIGN_PASSWORD or the terminal. An agent reads such an image
lazily when a --key of it has signed the image, and another is this one's public
half. Models are left alone: ` + "`spate push`" + ` indexes them. What is compressed is
stored a second time, expanded.

--upstream follows another registry: manifests, blobs, signatures and other
referrers that a repository lacks are taken from there once, checked, and kept.
While the upstream fails, what is here is served: a digest always, a tag for
--upstream-stale. What was pushed here comes before what the upstream has. The
logins of docker and podman are used.

Whoever reaches the registry may pull, push and delete, unless --htpasswd names
users: then each of them may, and nobody else. --access says more finely who may do
what in which repositories. Logins are HTTP Basic, as docker login keeps them; both
files are read again when they change. An address that sends ten wrong passwords has
to wait, and --rate-limit lets nobody send more requests. What introduces peers and takes orders,
below /spate/, asks for no login.

What nothing leads to any more is removed every hour, see spate registry gc:
blobs that no manifest has, and what refers to a manifest that is gone. Manifests
that lost their tag are kept, or for as long as --gc-untagged says; tags too,
unless a --retain takes them away.`,
		Example: `  spate registry --data /var/lib/spate-registry
  spate registry --index-key registry.key
  spate registry --upstream hub/=https://registry-1.docker.io
  spate registry --htpasswd users --access access.yaml --audit-log audit.jsonl
  spate registry --gc-untagged 168h --retain 'team/*:pr-* keep=10 age=720h'
  spate registry --listen 0.0.0.0:5000 --tls-cert tls.crt --tls-key tls.key`,
		Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			upstreams, err := follow.upstreams()
			if err != nil {
				return err
			}
			retention, err := gc.retention()
			if err != nil {
				return err
			}
			log := a.logger()
			ln, err := listen.open(log)
			if err != nil {
				return err
			}
			defer ln.Close()
			index, err := images.indexer(log)
			if err != nil {
				return err
			}
			access, err := doors.access(log)
			if err != nil {
				return err
			}
			audit, done, err := auditLog(doors.audit)
			if err != nil {
				return err
			}
			defer done()
			reg, err := registry.Open(data, registry.Options{Logger: log, Pushed: index.Pushed, Access: access, Audit: audit,
				Upstreams: upstreams, UpstreamFresh: follow.fresh, UpstreamStale: follow.stale, Retention: retention, Quota: int64(gc.quota)})
			if err != nil {
				return err
			}
			defer reg.Close()
			l := link.New(int64(limits.up), int64(limits.down))
			mux := http.NewServeMux()
			mux.Handle("/v2/", reg)
			track := tracker.New(tracker.Options{Logger: log})
			mux.Handle(tracker.AnnouncePath, track)
			mux.Handle(tracker.LeasePath, track)
			mux.Handle(tracker.HintPath, track)
			board, err := orders.Open(filepath.Join(data, "orders"), orders.Options{Logger: log})
			if err != nil {
				return err
			}
			desk := board.Handler()
			mux.Handle(orders.OrdersPath, desk)
			mux.Handle(orders.OrdersPath+"/", desk)
			mux.Handle(orders.AgentsPath, desk)
			places := placement.Handler(board, reg.Store())
			mux.Handle(placement.Path, places)
			mux.Handle(placement.FilterPath, places)
			mux.Handle(placement.PrioritizePath, places)
			mux.HandleFunc("POST "+collectPath, serveCollect(reg))
			mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
			mux.HandleFunc("GET /spate/v1/registry", func(w http.ResponseWriter, _ *http.Request) {
				json.NewEncoder(w).Encode(map[string]int64{"sentBytes": l.Sent(), "receivedBytes": l.Received()})
			})
			h := measured(mux, func() registryCounts { return countRegistry(log, reg, index, track, board, l) })
			if err := a.announce(serving{ln.Addr().String(), data}, "registry"); err != nil {
				return err
			}
			g, ctx := errgroup.WithContext(cmd.Context())
			g.Go(func() error { return reg.Run(ctx) })
			g.Go(func() error { return index.Run(ctx, reg.Store()) })
			g.Go(func() error { return board.Run(ctx) })
			g.Go(func() error { return serveUntil(ctx, h, l.Listener(ln)) })
			return g.Wait()
		},
	}
	f := cmd.Flags()
	listen.register(f, "127.0.0.1:5000")
	limits.register(f)
	images.register(f)
	follow.register(f)
	gc.register(f)
	doors.register(f)
	f.StringVar(&data, "data", "/var/lib/spate-registry", "`directory` of the store")
	cmd.AddCommand(a.registryCollectCommand())
	return cmd
}
