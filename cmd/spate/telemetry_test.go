package main

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/p2p/link"
	"github.com/spate-project/spate/p2p/tracker"
	"github.com/spate-project/spate/prefetch/orders"
)

// TestRegistryMetrics scrapes a registry that has one blob and one node.
func TestRegistryMetrics(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	reg, err := registry.Open(t.TempDir(), registry.Options{Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	board, err := orders.Open(t.TempDir(), orders.Options{Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := board.Place(t.Context(), orders.Request{References: []string{"127.0.0.1:5000/a@" + digest.FromString("a").String()}, Ready: 2}); err != nil {
		t.Fatal(err)
	}
	track, l, mux := tracker.New(tracker.Options{Logger: log}), link.New(0, 0), http.NewServeMux()
	mux.Handle("/v2/", reg)
	mux.Handle(tracker.AnnouncePath, track)
	srv := httptest.NewUnstartedServer(measured(mux, func() registryCounts { return countRegistry(log, reg, nil, track, board, l) }))
	srv.Listener = l.Listener(srv.Listener.(*net.TCPListener))
	srv.Start()
	defer srv.Close()
	do := func(method, path, body string, want int) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != want {
			t.Fatalf("%s %s: %s, %v: %s", method, path, resp.Status, err, b)
		}
		return string(b)
	}
	blob := strings.Repeat("blob", 1000)
	d := digest.FromString(blob).String()
	do("POST", "/v2/a/blobs/uploads/?digest="+d, blob, http.StatusCreated)
	if got := do("GET", "/v2/a/blobs/"+d, "", http.StatusOK); got != blob {
		t.Errorf("counted, a blob has %d bytes", len(got))
	}
	do("GET", "/v2/a/blobs/"+digest.FromString("none").String(), "", http.StatusNotFound)
	do("POST", tracker.AnnouncePath, `{"node":"a","swarms":[{"swarm":"`+strings.Repeat("00", 32)+`","pieces":9}]}`, http.StatusOK)

	text := do("GET", "/metrics", "", http.StatusOK)
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	for _, want := range []string{
		`spate_registry_requests_total{code="201",method="post",route="uploads"} 1`,
		`spate_registry_requests_total{code="200",method="get",route="blobs"} 1`,
		`spate_registry_requests_total{code="404",method="get",route="blobs"} 1`,
		`spate_registry_requests_total{code="200",method="post",route="announce"} 1`,
		`spate_registry_blobs 1`,
		`spate_registry_blob_bytes 4000`,
		`spate_registry_index_images_total{result="indexed"} 0`,
		`spate_registry_index_pending 0`,
		`spate_tracker_nodes 1`,
		`spate_tracker_swarms 1`,
		`spate_tracker_open_pieces 9`,
		`spate_tracker_leased_pieces 0`,
		`spate_prefetch_orders{state="active"} 1`,
		`spate_prefetch_orders{state="done"} 0`,
		`spate_prefetch_nodes{state="ready"} 0`,
		`spate_prefetch_connected_nodes 0`,
		`spate_prefetch_bytes{of="all"} 0`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("there is no %s in\n%s", want, text)
		}
	}
	if l.Sent() < int64(len(blob)) || !strings.Contains(text, `spate_link_bytes_total{direction="sent"} `) {
		t.Errorf("%d bytes were sent, in\n%s", l.Sent(), text)
	}
}

func TestRouteOf(t *testing.T) {
	for path, want := range map[string]string{
		"/v2/":                           "v2",
		"/v2/a/b/blobs/sha256:00":        "blobs",
		"/v2/a/blobs/uploads/":           "uploads",
		"/v2/a/blobs/uploads/7":          "uploads",
		"/v2/blobs/manifests/v1":         "manifests",
		"/v2/a/tags/list":                "tags",
		"/v2/a/referrers/sha256:00":      "referrers",
		"/v2/a/whatever/b":               "v2",
		"/spate/v1/announce":             "announce",
		"/spate/v1/lease":                "lease",
		"/spate/v1/agents":               "agents",
		"/spate/v1/orders/0123":          "orders",
		"/metrics":                       "other",
		"/healthz":                       "other",
		"/":                              "other",
		"/a/b/c/blobs/what-a-client-may": "other",
	} {
		if got := routeOf(httptest.NewRequest("GET", path, nil)); got != want {
			t.Errorf("%s is of route %q, want %q", path, got, want)
		}
	}
}
