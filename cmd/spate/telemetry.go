package main

import (
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	"github.com/spf13/pflag"

	"github.com/spate-project/spate/cmd/internal/agent"
	"github.com/spate-project/spate/cmd/internal/telemetry"
	"github.com/spate-project/spate/oci/indexer"
	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/p2p/link"
	"github.com/spate-project/spate/p2p/tracker"
	"github.com/spate-project/spate/prefetch/orders"
)

// traceFlags say where traces go.
type traceFlags struct{ endpoint string }

func (t *traceFlags) register(f *pflag.FlagSet) {
	f.StringVar(&t.endpoint, "trace-endpoint", "",
		"`URL` of an OpenTelemetry collector (OTLP over HTTP) that is sent a span for each mount, pull, read that waits, fetch, lease and draw")
}

// tracer returns the tracer of the agent of opts, nil when there is to be none.
func (t *traceFlags) tracer(opts agent.Options) (*telemetry.Tracer, error) {
	if t.endpoint == "" {
		return nil, nil
	}
	node := ""
	if opts.Identity != nil {
		node = opts.Identity.Name()
	}
	tracer, err := telemetry.NewTracer(t.endpoint, "spate-agent", node, opts.Logger)
	if err != nil {
		return nil, usage(fmt.Errorf("--trace-endpoint: %w", err))
	}
	return tracer, nil
}

// registryCounts are what a registry's metrics are read from.
type registryCounts struct {
	sent, received int64
	usage          registry.Usage
	index          indexer.Stats
	tracker        tracker.Stats
	orders         orders.Stats
}

func countRegistry(log *slog.Logger, reg *registry.Registry, index *indexer.Indexer, track *tracker.Server, board *orders.Board, l *link.Link) registryCounts {
	usage, err := reg.Store().Usage()
	if err != nil {
		log.Warn("the registry's metrics lack its blobs", "err", err)
	}
	return registryCounts{
		sent: l.Sent(), received: l.Received(), usage: usage,
		index: index.Stats(), tracker: track.Stats(), orders: board.Stats(),
	}
}

// measured returns mux with a registry's metrics, and counts the requests to it.
func measured(mux *http.ServeMux, counts func() registryCounts) http.Handler {
	m := telemetry.NewMetrics()
	telemetry.Register(m, counts, registryFamilies())
	mux.Handle("GET "+telemetry.MetricsPath, m.Handler())
	return m.Requests("spate_registry_requests_total", "Requests that were answered.", routeOf, mux)
}

// registryFamilies are a registry's metrics, beside the requests.
func registryFamilies() []telemetry.Family[registryCounts] {
	type values = telemetry.Values
	return []telemetry.Family[registryCounts]{
		telemetry.By("spate_link_bytes_total", "Bytes over the registry's link, all traffic.", "direction",
			func(c registryCounts) values {
				return values{"sent": float64(c.sent), "received": float64(c.received)}
			}),
		telemetry.One("spate_registry_blobs", "Blobs in the store, each once.",
			func(c registryCounts) int { return c.usage.Blobs }),
		telemetry.One("spate_registry_blob_bytes", "Bytes of the blobs in the store.",
			func(c registryCounts) int64 { return c.usage.Bytes }),
		telemetry.By("spate_registry_index_images_total", "Images whose turn to be indexed came, by what came of it.", "result",
			func(c registryCounts) values {
				return values{"indexed": float64(c.index.Indexed), "failed": float64(c.index.Failed), "skipped": float64(c.index.Skipped)}
			}),
		telemetry.One("spate_registry_index_seconds_total", "Time spent on indexing images.",
			func(c registryCounts) float64 { return c.index.Took.Seconds() }),
		telemetry.One("spate_registry_index_pending", "Images that wait for their index, or get it now.",
			func(c registryCounts) int { return c.index.Pending }),
		telemetry.One("spate_tracker_nodes", "Nodes that announce themselves.",
			func(c registryCounts) int { return c.tracker.Nodes }),
		telemetry.One("spate_tracker_swarms", "Swarms that nodes are in.",
			func(c registryCounts) int { return c.tracker.Swarms }),
		telemetry.One("spate_tracker_leased_pieces", "Pieces that one node may draw and nobody else.",
			func(c registryCounts) int { return c.tracker.Leases }),
		telemetry.One("spate_tracker_open_pieces", "Pieces of all swarms that no node holds.",
			func(c registryCounts) int { return c.tracker.Open }),
		telemetry.One("spate_tracker_hints", "Blobs without an index that nodes may pass on or draw.",
			func(c registryCounts) int { return c.tracker.Hints }),
		telemetry.One("spate_tracker_memory_bytes", "What the tracker's state takes, about.",
			func(c registryCounts) int64 { return c.tracker.Memory }),
		telemetry.By("spate_prefetch_orders", "Prefetch orders that are kept, by their state.", "state",
			func(c registryCounts) values { return floats(c.orders.Orders) }),
		telemetry.By("spate_prefetch_nodes", "Nodes' parts in active prefetch orders, by how far they are.", "state",
			func(c registryCounts) values { return floats(c.orders.Parts) }),
		telemetry.One("spate_prefetch_connected_nodes", "Nodes that take prefetch orders.",
			func(c registryCounts) int { return c.orders.Nodes }),
		telemetry.By("spate_prefetch_bytes", "Bytes of active prefetch orders, of all nodes: verified ones here, and those that are to be.", "of",
			func(c registryCounts) values {
				return values{"here": float64(c.orders.Have), "all": float64(c.orders.Total)}
			}),
	}
}

func floats[K ~string](counts map[K]int) telemetry.Values {
	v := telemetry.Values{}
	for k, n := range counts {
		v[string(k)] = float64(n)
	}
	return v
}

// routeOf names what a request to a registry is about, in one of a few words.
func routeOf(r *http.Request) string {
	path := r.URL.Path
	switch path {
	case tracker.AnnouncePath:
		return "announce"
	case tracker.LeasePath:
		return "lease"
	case tracker.HintPath:
		return "hint"
	case orders.AgentsPath:
		return "agents"
	}
	if strings.HasPrefix(path, orders.OrdersPath) {
		return "orders"
	}
	elements := strings.Split(path, "/")
	if len(elements) < 3 || elements[1] != "v2" {
		return "other"
	}
	switch kind := elements[len(elements)-2]; kind {
	case "blobs", "uploads", "manifests", "tags", "referrers":
		return kind
	}
	return "v2"
}
