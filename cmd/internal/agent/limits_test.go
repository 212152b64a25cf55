package agent

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spate-project/spate/p2p/link"
	"github.com/spate-project/spate/signing"
)

// TestLimits: over the control socket limits change one by one; over TCP they are only read.
func TestLimits(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	l := link.New(1, 2)
	a, _, _ := running(t, Options{
		Data: data, Policy: &signing.Policy{}, Link: l, Seeding: 3, Prefetch: 4, Demand: 5,
	})
	c := NewClient(data)
	t.Cleanup(c.Close)

	n := func(n int64) *int64 { return &n }
	for _, test := range []struct {
		change LimitChange
		want   Limits
	}{
		{LimitChange{}, Limits{1, 2, 3, 4, 5}},
		{LimitChange{Up: n(10)}, Limits{10, 2, 3, 4, 5}},
		{LimitChange{Down: n(0), Seeding: n(30)}, Limits{10, 0, 30, 4, 5}},
		{LimitChange{Prefetch: n(-1), Demand: n(50)}, Limits{10, 0, 30, 0, 50}},
		{LimitChange{}, Limits{10, 0, 30, 0, 50}},
	} {
		got, err := c.SetLimits(t.Context(), test.change)
		if err != nil || got != test.want || a.Limits() != test.want {
			t.Errorf("%+v, %v, want %+v", got, err, test.want)
		}
	}
	if up, down := l.Limits(); up != 10 || down != 0 {
		t.Errorf("the link's limits are %d and %d, want 10 and 0", up, down)
	}

	public := func(method string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		a.public().ServeHTTP(w, httptest.NewRequest(method, limitsPath, strings.NewReader(`{"up":1}`)))
		return w
	}
	if w := public(http.MethodPost); w.Code != http.StatusMethodNotAllowed || a.Limits().Up != 10 {
		t.Errorf("anybody may change limits: %d", w.Code)
	}
	var got Limits
	if err := json.Unmarshal(public(http.MethodGet).Body.Bytes(), &got); err != nil || got != a.Limits() {
		t.Errorf("%+v, %v", got, err)
	}
}
