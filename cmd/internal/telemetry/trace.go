package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

const (
	// defaultTracePath is OTLP's, below a base endpoint.
	defaultTracePath = "/v1/traces"

	// flushTime is how long the last spans may take to be sent.
	flushTime = 2 * time.Second
)

// A Tracer sends spans to a collector over OTLP/HTTP. The nil Tracer is one
// that is off. It is safe for concurrent use.
type Tracer struct {
	endpoint string
	service  string
	node     string
	log      *slog.Logger
	running  atomic.Pointer[trace.Tracer] // nil before Run
}

// NewTracer returns the tracer of service on node (which may be empty). endpoint
// is the collector's URL, http or https; one without a path gets OTLP's,
// /v1/traces. Credentials do not belong into it: they come, as everything else
// about the exporter, from OpenTelemetry's own environment variables, such as
// OTEL_EXPORTER_OTLP_HEADERS. Nothing is sent before Run.
func NewTracer(endpoint, service, node string, log *slog.Logger) (*Tracer, error) {
	u, err := url.Parse(endpoint)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("the trace endpoint is not a URL: write it as http://HOST:PORT or https://HOST:PORT")
	case u.User != nil:
		return nil, errors.New("the trace endpoint holds a credential: put it into OTEL_EXPORTER_OTLP_HEADERS instead")
	}
	if strings.Trim(u.Path, "/") == "" {
		u.Path = defaultTracePath
	}
	return &Tracer{endpoint: u.String(), service: service, node: node, log: log}, nil
}

// Run sends spans until ctx ends, then what is left, for two seconds at most,
// and returns nil. A collector that is away costs spans, which is logged, and nothing else.
func (t *Tracer) Run(ctx context.Context) error {
	end, err := t.begin(ctx)
	if err != nil {
		return fmt.Errorf("send traces to %s: %w", t.endpoint, err)
	}
	<-ctx.Done()
	end(context.WithoutCancel(ctx))
	return nil
}

// begin makes spans count until end is called, which sends what is left.
func (t *Tracer) begin(ctx context.Context) (end func(context.Context), err error) {
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(t.endpoint))
	if err != nil {
		return nil, err
	}
	attrs := []attribute.KeyValue{attribute.String("service.name", t.service)}
	if t.node != "" {
		attrs = append(attrs, attribute.String("service.instance.id", t.node))
	}
	res, err := resource.New(ctx, resource.WithAttributes(attrs...), resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return nil, err
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(&logged{exporter, t}), sdktrace.WithResource(res))
	tracer := provider.Tracer("github.com/spate-project/spate")
	t.running.Store(&tracer)
	return func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, flushTime)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			t.log.Warn("the last traces were not sent", "endpoint", t.endpoint, "err", err)
		}
	}, nil
}

// Start begins a span, within the one that ctx has. The caller calls what it
// returns once, at the span's end, with what is known only then. Both do
// nothing while the tracer does not run.
func (t *Tracer) Start(ctx context.Context, name string, attrs ...slog.Attr) (context.Context, func(error, ...slog.Attr)) {
	if t == nil {
		return ctx, func(error, ...slog.Attr) {}
	}
	tracer := t.running.Load()
	if tracer == nil {
		return ctx, func(error, ...slog.Attr) {}
	}
	ctx, span := (*tracer).Start(ctx, name, trace.WithAttributes(attributes(attrs)...))
	return ctx, func(err error, attrs ...slog.Attr) {
		span.SetAttributes(attributes(attrs)...)
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}
}

// attributes puts the project's name before each key, as OpenTelemetry asks for.
func attributes(attrs []slog.Attr) []attribute.KeyValue {
	kvs := make([]attribute.KeyValue, 0, len(attrs))
	for _, a := range attrs {
		key := attribute.Key("spate." + a.Key)
		if a.Value.Kind() == slog.KindInt64 {
			kvs = append(kvs, key.Int64(a.Value.Int64()))
		} else {
			kvs = append(kvs, key.String(a.Value.String()))
		}
	}
	return kvs
}

// logged is an exporter whose failures go to the tracer's log, and not to the
// process's standard error.
type logged struct {
	sdktrace.SpanExporter
	tracer *Tracer
}

func (l *logged) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if err := l.SpanExporter.ExportSpans(ctx, spans); err != nil {
		l.tracer.log.Warn("traces were not sent", "endpoint", l.tracer.endpoint, "spans", len(spans), "err", err)
	}
	return nil
}
