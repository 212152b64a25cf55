package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/p2p/link"
	"github.com/spate-project/spate/p2p/tracker"
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

func (a *app) registryCommand() *cobra.Command {
	var (
		listen listenFlags
		limits linkFlags
		data   string
	)
	cmd := &cobra.Command{
		Use:   "registry",
		Short: "Serve an OCI 1.1 registry and the mesh's tracker",
		Long: `Serve an OCI 1.1 registry for images, models and what is signed about them,
and the tracker through which agents find each other and share out what they
draw from this registry, so that it sends each byte about once.

Blobs, manifests and unfinished uploads survive a restart. The tracker keeps
nothing: agents tell it again.`,
		Example: `  spate registry --data /var/lib/spate-registry
  spate registry --listen 0.0.0.0:5000 --tls-cert tls.crt --tls-key tls.key`,
		Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ln, err := listen.open()
			if err != nil {
				return err
			}
			defer ln.Close()
			log := a.logger()
			reg, err := registry.Open(data, registry.Options{Logger: log})
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
			mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
			mux.HandleFunc("GET /spate/v1/registry", func(w http.ResponseWriter, _ *http.Request) {
				json.NewEncoder(w).Encode(map[string]int64{"sentBytes": l.Sent(), "receivedBytes": l.Received()})
			})
			h := measured(mux, func() registryCounts { return countRegistry(log, reg, track, l) })
			if err := a.announce(serving{ln.Addr().String(), data}, "registry"); err != nil {
				return err
			}
			g, ctx := errgroup.WithContext(cmd.Context())
			g.Go(func() error { return reg.Run(ctx) })
			g.Go(func() error { return serveUntil(ctx, h, l.Listener(ln)) })
			return g.Wait()
		},
	}
	f := cmd.Flags()
	listen.register(f, "127.0.0.1:5000")
	limits.register(f)
	f.StringVar(&data, "data", "/var/lib/spate-registry", "`directory` of the store")
	return cmd
}
