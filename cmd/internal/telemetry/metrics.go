// Package telemetry shows what a daemon does to those who watch many of them:
// counters in the Prometheus format (Metrics) and spans over OTLP (Tracer). It
// is the one room that knows either.
package telemetry

import (
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// MetricsPath is where a daemon serves its metrics.
const MetricsPath = "/metrics"

// Metrics are a process's metrics. They are safe for concurrent use. A name
// that is registered twice, or with other labels, is a mistake of the program
// and panics.
type Metrics struct{ registry *prometheus.Registry }

// NewMetrics returns metrics that have the Go runtime's and the process's own already.
func NewMetrics() *Metrics {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return &Metrics{r}
}

// Handler serves the metrics in the formats that Prometheus reads.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry})
}

// A Family is a metric that is read from an S. A name that ends in _total is of a
// counter, which never falls while the process lives; any other is of a gauge.
type Family[S any] struct {
	name, help string
	labels     []string // at most one
	read       func(S) Values
}

// Values are numbers by the value of their label. Which there are must not depend on the S.
type Values map[string]float64

// One returns the family of one number.
func One[S any, N int | int64 | float64](name, help string, read func(S) N) Family[S] {
	return Family[S]{name: name, help: help, read: func(s S) Values { return Values{"": float64(read(s))} }}
}

// By returns the family of numbers that differ in one label.
func By[S any](name, help, label string, read func(S) Values) Family[S] {
	return Family[S]{name: name, help: help, labels: []string{label}, read: read}
}

// Register adds families, which are all read from one S at each scrape.
func Register[S any](m *Metrics, read func() S, families []Family[S]) {
	c := collector[S]{read: read, families: families}
	for _, f := range families {
		c.descs = append(c.descs, prometheus.NewDesc(f.name, f.help, f.labels, nil))
	}
	m.registry.MustRegister(c)
}

type collector[S any] struct {
	read     func() S
	families []Family[S]
	descs    []*prometheus.Desc // of families
}

func (c collector[S]) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		descs <- d
	}
}

func (c collector[S]) Collect(metrics chan<- prometheus.Metric) {
	now := c.read()
	for i, f := range c.families {
		kind := prometheus.GaugeValue
		if strings.HasSuffix(f.name, "_total") {
			kind = prometheus.CounterValue
		}
		for value, n := range f.read(now) {
			metrics <- prometheus.MustNewConstMetric(c.descs[i], kind, n, []string{value}[:len(f.labels)]...)
		}
	}
}

// Histogram adds a histogram with the upper bounds given, rising, and returns
// what counts one value.
func (m *Metrics) Histogram(name, help string, bounds ...float64) func(float64) {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: bounds})
	m.registry.MustRegister(h)
	return h.Observe
}

// Requests adds a counter of requests with the labels route, method and code,
// and returns h counted by it. route names a request's route, one of a few.
func (m *Metrics) Requests(name, help string, route func(*http.Request) string, h http.Handler) http.Handler {
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"route", "method", "code"})
	m.registry.MustRegister(vec)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		of := vec.MustCurryWith(prometheus.Labels{"route": route(r)})
		promhttp.InstrumentHandlerCounter(of, h).ServeHTTP(w, r)
	})
}
