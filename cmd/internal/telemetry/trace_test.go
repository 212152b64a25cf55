package telemetry

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNewTracer(t *testing.T) {
	for endpoint, want := range map[string]string{
		"http://c:4318":           "http://c:4318/v1/traces",
		"https://c:4318/":         "https://c:4318/v1/traces",
		"http://c/own/path":       "http://c/own/path",
		"c:4318":                  "",
		"grpc://c:4317":           "",
		"http://":                 "",
		"http://u:p%40ss@c:4318":  "",
		"http://u:s3cret@c:%zz/":  "",
		"http://\x00c.s3cret:431": "",
	} {
		tracer, err := NewTracer(endpoint, "spate-test", "", slog.New(slog.DiscardHandler))
		switch {
		case (err == nil) != (want != ""):
			t.Errorf("%q: %v", endpoint, err)
		case err != nil && (strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "p%40ss")):
			t.Errorf("%q: the error tells: %v", endpoint, err)
		case err == nil && tracer.endpoint != want:
			t.Errorf("%q: spans go to %s, want %s", endpoint, tracer.endpoint, want)
		}
	}
}

// TestTracerOff: without a tracer, and before and after Run, a span is nothing.
func TestTracerOff(t *testing.T) {
	idle, err := NewTracer("http://127.0.0.1:1", "spate-test", "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, tracer := range []*Tracer{nil, idle} {
		ctx, ended := tracer.Start(t.Context(), "span")
		if ctx != t.Context() {
			t.Error("the context is another one")
		}
		ended(errors.New("whatever"))
	}
}

// TestCollectorFails: a collector that takes nothing is logged, to the tracer's log alone.
func TestCollectorFails(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no", http.StatusBadRequest)
	}))
	defer srv.Close()
	var b lockedBuffer
	tracer, err := NewTracer(srv.URL, "spate-test", "node", slog.New(slog.NewTextHandler(&b, nil)))
	if err != nil {
		t.Fatal(err)
	}
	end, err := tracer.begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, ended := tracer.Start(t.Context(), "span", slog.Int("n", 1))
	ended(nil)
	end(t.Context())
	if got := b.String(); !strings.Contains(got, srv.URL) || !strings.Contains(got, "400") {
		t.Errorf("the log is %q", got)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
