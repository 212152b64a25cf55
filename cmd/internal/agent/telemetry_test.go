package agent

import (
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/spate-project/spate/cmd/internal/lab"
	"github.com/spate-project/spate/cmd/internal/telemetry"
	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/p2p/link"
)

// A watched is a running agent without a mesh, and a signed model that it may fetch.
type watched struct {
	*Agent
	ref  string
	size int64  // of the model's files
	url  string // of the status
	end  func() // returns when Run has
}

func watchAgent(t *testing.T, tracer *telemetry.Tracer) *watched {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	if err := lab.Synthesize(t.Context(), source, 2<<20, lab.ModelOptions{Shards: 2}); err != nil {
		t.Fatal(err)
	}
	reg, err := registry.Open(filepath.Join(dir, "registry"), registry.Options{Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reg.Close() })
	srv := httptest.NewServer(reg)
	t.Cleanup(srv.Close)
	w := &watched{ref: strings.TrimPrefix(srv.URL, "http://") + "/m:v1"}
	for _, b := range files(t, source) {
		w.size += int64(len(b))
	}
	policy := push(t, source, w.ref)
	var addr string
	w.Agent, addr, w.end = running(t, Options{
		Data: filepath.Join(dir, "node"), Policy: policy, Link: link.New(0, 0), Tracer: tracer,
	})
	w.url = "http://" + addr
	w.get(t, healthPath) // it runs
	return w
}

func (w *watched) get(t *testing.T, path string) string {
	t.Helper()
	resp, err := http.Get(w.url + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v: %s", path, resp.Status, err, b)
	}
	return string(b)
}

// scrape returns the metrics of one scrape, by name.
func (w *watched) scrape(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	text := w.get(t, telemetry.MetricsPath)
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	m, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestMetrics scrapes a real agent before, and after it has fetched a model and let it go.
func TestMetrics(t *testing.T) {
	w := watchAgent(t, nil)
	before := w.scrape(t)
	art, err := w.open(t.Context(), w.ref, need{})
	if err != nil {
		t.Fatal(err)
	}
	pieces := 0
	for _, f := range art.files {
		if err := f.object.Ensure(t.Context(), 0, f.object.Size()); err != nil {
			t.Fatal(err)
		}
		pieces += f.object.Tree().Object().Pieces()
	}
	after := w.scrape(t)
	// Where draws overlap a piece is drawn twice.
	for _, tt := range []struct {
		name, label, value string
		least              float64
	}{
		{"spate_received_bytes_total", "source", "origin", float64(w.size)},
		{"spate_pieces_verified_total", "source", "origin", float64(pieces)},
		{"spate_leases_ended_total", "outcome", "drawn", float64(pieces)},
		{"spate_link_bytes_total", "direction", "received", float64(w.size)},
	} {
		got, was := sample(t, after, tt.name, tt.label, tt.value), sample(t, before, tt.name, tt.label, tt.value)
		if got < tt.least || got > 2*tt.least || was > tt.least/10 {
			t.Errorf("%s{%s=%q} rose from %v to %v, want %v", tt.name, tt.label, tt.value, was, got, tt.least)
		}
	}
	for _, tt := range []struct {
		name, label, value string
		want               float64
	}{
		{"spate_received_bytes_total", "source", "peer", 0},
		{"spate_pieces_rejected_total", "source", "origin", 0},
		{"spate_cache_bytes", "", "", float64(w.size)},
		{"spate_cache_objects", "", "", float64(len(art.files))},
		{"spate_mesh_objects", "", "", float64(len(art.files))},
		{"spate_artifacts", "", "", 1},
		{"spate_mounts", "", "", 0},
		{"spate_limit_bytes_per_second", "limit", "prefetch", 0},
		{"spate_reads_waiting", "", "", 0},
	} {
		if got := sample(t, after, tt.name, tt.label, tt.value); got != tt.want {
			t.Errorf("%s{%s=%q} is %v, want %v", tt.name, tt.label, tt.value, got, tt.want)
		}
		if got := sample(t, before, tt.name, tt.label, tt.value); got != 0 {
			t.Errorf("%s{%s=%q} was %v before anything was fetched", tt.name, tt.label, tt.value, got)
		}
	}
	sample(t, after, "spate_leased_pieces", "", "") // of now: some are perhaps about to be given back
	h := after["spate_read_stall_duration_seconds"].GetMetric()[0].GetHistogram()
	if got, sum := h.GetSampleCount(), sample(t, after, "spate_read_stall_seconds_total", "", ""); got == 0 || sum <= 0 || h.GetSampleSum() <= 0 {
		t.Errorf("%d reads waited, %v s by the counter and %v s by the histogram", got, sum, h.GetSampleSum())
	}
}

// sample returns one number of a scrape.
func sample(t *testing.T, scraped map[string]*dto.MetricFamily, name, label, value string) float64 {
	t.Helper()
	for _, m := range scraped[name].GetMetric() {
		if label == "" || m.GetLabel()[0].GetName() == label && m.GetLabel()[0].GetValue() == value {
			if c := m.GetCounter(); c != nil {
				return c.GetValue()
			}
			return m.GetGauge().GetValue()
		}
	}
	t.Errorf("there is no %s{%s=%q}", name, label, value)
	return 0
}

// TestTrace: a collector gets the spans of a read, each within its cause.
func TestTrace(t *testing.T) {
	var mu sync.Mutex
	spans := map[string]*tracepb.Span{} // by id
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var req collector.ExportTraceServiceRequest
		b, err := io.ReadAll(r.Body)
		if err == nil {
			err = proto.Unmarshal(b, &req)
		}
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, rs := range req.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				for _, s := range ss.Spans {
					spans[string(s.SpanId)] = s
				}
			}
		}
	}))
	defer srv.Close()
	tracer, err := telemetry.NewTracer(srv.URL, "spate-agent", "", quiet())
	if err != nil {
		t.Fatal(err)
	}
	w := watchAgent(t, tracer)
	for on := false; !on; runtime.Gosched() {
		ctx, ended := tracer.Start(t.Context(), "probe")
		ended(nil)
		on = ctx != t.Context()
	}
	art, err := w.open(t.Context(), w.ref, need{})
	if err != nil {
		t.Fatal(err)
	}
	object := art.files[0].object
	if err := object.Ensure(t.Context(), 0, 1); err != nil {
		t.Fatal(err)
	}
	if err := w.Pull(t.Context(), PullRequest{Reference: w.ref + "-missing", Dir: t.TempDir()}, nil); err == nil {
		t.Fatal("what is not there was pulled")
	}
	w.end() // sends what is left

	mu.Lock()
	defer mu.Unlock()
	one := func(name string, has func(*tracepb.Span) bool) *tracepb.Span {
		for _, s := range spans {
			if s.Name == name && has(s) {
				return s
			}
		}
		t.Fatalf("there is no such span %q among %v", name, spans)
		return nil
	}
	// path returns the names of s and of what it is within.
	path := func(s *tracepb.Span) string {
		names := s.Name
		for s = spans[string(s.ParentSpanId)]; s != nil; s = spans[string(s.ParentSpanId)] {
			names += " < " + s.Name
		}
		return names
	}
	d, n := object.Tree().Object().Digest.String(), object.Size()
	fetch := one("fetch", func(s *tracepb.Span) bool { return attribute(s, "spate.object") == d })
	if got := attribute(fetch, "spate.source") + " " + attribute(fetch, "spate.piece"); got != "origin 0" || path(fetch) != "fetch < read" {
		t.Errorf("a fetch of %s: %s, %v", got, path(fetch), fetch)
	}
	draw := one("draw", func(s *tracepb.Span) bool { return attribute(s, "spate.object") == d })
	if path(draw) != "draw < fetch < read" || attribute(draw, "spate.bytes") == "0" {
		t.Errorf("a draw of an object of %d bytes: %s, %v", n, path(draw), draw)
	}
	lease := one("lease", func(s *tracepb.Span) bool { return s.ParentSpanId != nil && attribute(s, "spate.object") == d })
	if path(lease) != "lease < fetch < read" {
		t.Errorf("a lease: %s, %v", path(lease), lease)
	}
	one("admit", func(s *tracepb.Span) bool { return attribute(s, "spate.reference") == w.ref })
	failed := one("admit", func(s *tracepb.Span) bool { return attribute(s, "spate.reference") != w.ref })
	if path(failed) != "admit < pull" || failed.GetStatus().GetCode() != tracepb.Status_STATUS_CODE_ERROR {
		t.Errorf("an admission that failed: %s, %v", path(failed), failed)
	}
}

// attribute returns a span's attribute as text, empty where it has none.
func attribute(s *tracepb.Span, key string) string {
	for _, kv := range s.GetAttributes() {
		if kv.GetKey() == key {
			if text := kv.GetValue().GetStringValue(); text != "" {
				return text
			}
			return strconv.FormatInt(kv.GetValue().GetIntValue(), 10)
		}
	}
	return ""
}
