package telemetry

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", MetricsPath, nil))
	if w.Code != http.StatusOK {
		t.Fatalf("a scrape is answered %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func expect(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("there is no %q in\n%s", line, text)
		}
	}
}

// TestFamilies: each scrape reads once, and the name says what is a counter.
func TestFamilies(t *testing.T) {
	m, reads := NewMetrics(), 0
	Register(m, func() int { reads++; return 10 * reads }, []Family[int]{
		One("spate_test_things", "Things.", func(n int) int { return n }),
		One("spate_test_seconds_total", "Seconds.", func(n int) float64 { return float64(n) / 4 }),
		By("spate_test_bytes_total", "Bytes.", "way", func(n int) Values { return Values{"in": float64(n), "out": 0} }),
	})
	observe := m.Histogram("spate_test_duration_seconds", "Durations.", .1, 1)
	observe(.5)
	scrape(t, m)
	expect(t, scrape(t, m),
		"# TYPE spate_test_things gauge", "spate_test_things 20",
		"# TYPE spate_test_seconds_total counter", "spate_test_seconds_total 5",
		`spate_test_bytes_total{way="in"} 20`, `spate_test_bytes_total{way="out"} 0`,
		`spate_test_duration_seconds_bucket{le="0.1"} 0`, `spate_test_duration_seconds_bucket{le="1"} 1`,
	)
}

// TestRequests: requests are counted by what became of them, and a handler can
// send files and set deadlines as it could before.
func TestRequests(t *testing.T) {
	m := NewMetrics()
	h := m.Requests("spate_test_requests_total", "Requests.",
		func(r *http.Request) string { return strings.Trim(r.URL.Path, "/") },
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, ok := w.(io.ReaderFrom); !ok {
				t.Error("a file could not be sent by the kernel")
			}
			if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Error(err)
			}
			if r.URL.Path == "/bad" {
				http.Error(w, "no", http.StatusTeapot)
			}
		}))
	srv := httptest.NewServer(h)
	defer srv.Close()
	for _, path := range []string{"/good", "/good", "/bad"} {
		resp, err := http.Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
	expect(t, scrape(t, m),
		`spate_test_requests_total{code="200",method="get",route="good"} 2`,
		`spate_test_requests_total{code="418",method="get",route="bad"} 1`,
	)
}
