package agent

import (
	"testing"
	"time"
)

func TestWatch(t *testing.T) {
	begin := time.Unix(1e9, 0)
	// at returns the status after d, of one file in two halves: from the registry and from peers.
	at := func(d time.Duration, down, served, linkRate int64) Status {
		const size = 1000
		f := ObjectStatus{
			Path: "a", Digest: "sha256:a", Size: size, Pieces: 10, Held: int(down / 100), Present: down,
			Origin: down / 2, FromPeers: down - down/2, Served: served,
		}
		return Status{
			Time: begin.Add(d), Received: 2 * down, Sent: 2 * served, LinkRate: linkRate,
			Artifacts: []ArtifactStatus{{
				Reference: "r", Digest: "sha256:m", Files: []ObjectStatus{f}, Size: size, Present: down,
			}},
		}
	}
	var w Watch
	for _, tt := range []struct {
		name     string
		status   Status
		link     Rates
		file     Rates
		forecast Forecast
		active   bool
	}{
		{"the first", at(0, 0, 0, 0), Rates{}, Rates{}, Forecast{-1, -1}, true},
		{"a second later", at(time.Second, 100, 10, 200), Rates{200, 20}, Rates{100, 10}, Forecast{9, 4.5}, true},
		{"a stop", at(2*time.Second, 100, 10, 200), Rates{100, 10}, Rates{50, 5}, Forecast{18, 4.5}, true},
		{"still, to the end of the window", at(6*time.Second, 100, 10, 200), Rates{}, Rates{}, Forecast{-1, 4.5}, true},
		{"whole", at(10*time.Second, 1000, 10, 200), Rates{225, 0}, Rates{112, 0}, Forecast{0, 0}, true},
		{"at rest", at(16*time.Second, 1000, 10, 200), Rates{}, Rates{}, Forecast{0, 0}, false},
		{"opened anew", at(17*time.Second, 0, 0, 200), Rates{}, Rates{}, Forecast{-1, 5}, true},
	} {
		v := w.Add(tt.status)
		if v.Rates != tt.link {
			t.Errorf("%s: the link's rates are %+v, want %+v", tt.name, v.Rates, tt.link)
		}
		m := v.Watched[0]
		if m.Rates != tt.file || m.Forecast != tt.forecast {
			t.Errorf("%s: the artifact moves at %+v, %+v; want %+v, %+v", tt.name, m.Rates, m.Forecast, tt.file, tt.forecast)
		}
		if (len(m.Active) == 1) != tt.active {
			t.Errorf("%s: active are %+v", tt.name, m.Active)
		}
		if tt.active && (m.Active[0].Rates != tt.file || m.Active[0].Forecast != tt.forecast) {
			t.Errorf("%s: the file moves at %+v", tt.name, m.Active[0])
		}
	}
}
