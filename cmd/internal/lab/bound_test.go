package lab

import (
	"testing"
	"time"
)

func TestBound(t *testing.T) {
	const gib, link = 1 << 30, 50 << 20
	tests := []struct {
		name             string
		size             int64
		nodes            int
		origin, down, up float64
		mesh, direct     time.Duration
	}{
		{"one node", gib, 1, link, link, link, 20480 * time.Millisecond, 20480 * time.Millisecond},
		{"the demo", gib, 4, link, link, link, 20480 * time.Millisecond, 81920 * time.Millisecond},
		{"13 nodes and the quoted ten minutes", 145410e6, 13, 3.125e9, 3.125e9, 3.125e9, 46531200 * time.Microsecond, 604905600 * time.Microsecond},
		{"slow origin", gib, 4, link / 5, link, link, 102400 * time.Millisecond, 409600 * time.Millisecond},
		{"uploads are the limit", gib, 10, 2 * link, 2 * link, link / 10, 68266666667, 102400 * time.Millisecond},
		{"peers do not upload", gib, 4, link, link, 1e-9, 81920 * time.Millisecond, 81920 * time.Millisecond},
		{"no limits", gib, 4, 0, 0, 0, 0, 0},
		{"only the origin is limited", gib, 4, link, 0, 0, 20480 * time.Millisecond, 81920 * time.Millisecond},
		{"only downloads are limited", gib, 4, 0, link, 0, 20480 * time.Millisecond, 20480 * time.Millisecond},
		{"nothing to move", 0, 4, link, link, link, 0, 0},
	}
	for _, tt := range tests {
		mesh, direct := Bound(tt.size, tt.nodes, tt.origin, tt.down, tt.up)
		if mesh != tt.mesh || direct != tt.direct {
			t.Errorf("%s: mesh %v, direct %v; want %v, %v", tt.name, mesh, direct, tt.mesh, tt.direct)
		}
	}
}
