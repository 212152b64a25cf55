package storm

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spate-project/spate/p2p/torrent"
)

// options returns valid options.
func options(change func(o *Options)) Options {
	o := Options{Nodes: 4, Size: 100e6, Link: 12.5e6, OriginLink: 12.5e6, Arms: []string{"mesh"}, Runs: 1}
	change(&o)
	return o
}

func TestCheck(t *testing.T) {
	tests := []struct {
		name   string
		change func(o *Options)
		want   string // in the error; none when empty
	}{
		{"plain", func(o *Options) {}, ""},
		{"everything", func(o *Options) {
			o.Arms, o.Stagger, o.Churn, o.KillOriginAt, o.SlowNodes, o.Liars, o.Readers = ArmNames(), time.Second, 4, 1.05, 3, 2, 1
		}, ""},
		{"no nodes", func(o *Options) { o.Nodes = 0 }, "0 nodes"},
		{"too many", func(o *Options) { o.Nodes, o.Liars = MaxNodes, 1 }, "at most 128"},
		{"negative liars", func(o *Options) { o.Liars = -1 }, "cannot be negative"},
		{"no limit", func(o *Options) { o.Link = 0 }, "no bound"},
		{"all slow", func(o *Options) { o.SlowNodes = 4 }, "one must have the whole link"},
		{"more killed than there are", func(o *Options) { o.Churn = 5 }, "5 nodes of 4"},
		{"negative stagger", func(o *Options) { o.Stagger = -1 }, "stagger"},
		{"negative copies", func(o *Options) { o.KillOriginAt = -1 }, "killed after -1 copies"},
		{"no runs", func(o *Options) { o.Runs = 0 }, "0 runs"},
		{"no arms", func(o *Options) { o.Arms = nil }, "no arm"},
		{"unknown arm", func(o *Options) { o.Arms = []string{"torrent"} }, `no arm "torrent"`},
	}
	for _, tt := range tests {
		err := options(tt.change).Check()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestBounds(t *testing.T) {
	const size = 100e6 // a lone download takes 10 s at 10e6 a second, 80 % of the link
	tests := []struct {
		name         string
		change       func(o *Options)
		rate         float64
		mesh, direct float64
	}{
		{"equal links", func(o *Options) {}, 10e6, 10, 40},
		{"twice the origin", func(o *Options) { o.OriginLink *= 2 }, 10e6, 10, 20},
		{"half the origin", func(o *Options) { o.OriginLink /= 2 }, 5e6, 20, 80},
		{"one node", func(o *Options) { o.Nodes = 1 }, 10e6, 10, 10},
		{"two slow nodes", func(o *Options) { o.SlowNodes = 2 }, 10e6, 50, 50},
		{"slow nodes count with what they send", func(o *Options) { o.Nodes, o.SlowNodes, o.OriginLink = 10, 9, 1.25e6 }, 1e6, 100, 1000},
		{"a little stagger", func(o *Options) { o.Stagger = time.Second }, 10e6, 13, 40},
		{"much stagger", func(o *Options) { o.Stagger = 20 * time.Second }, 10e6, 70, 70},
	}
	for _, tt := range tests {
		mesh, direct := options(tt.change).bounds(size, tt.rate)
		if math.Abs(mesh-tt.mesh) > 1e-6 || math.Abs(direct-tt.direct) > 1e-6 {
			t.Errorf("%s: %v s, %v s without peers; want %v, %v", tt.name, mesh, direct, tt.mesh, tt.direct)
		}
	}
}

// sample returns a run whose nodes were ready at these times, sent as much as
// each other, and did nothing of note.
func sample(ready ...float64) Sample {
	s := Sample{OriginSent: 101e6}
	s.CPUBusy = 0.5
	for _, r := range ready {
		s.Nodes = append(s.Nodes, Node{Ready: r, ServedBytes: 75e6, CPUSeconds: 1, PeakRSSBytes: 50 << 20, WrittenBytes: 200e6})
	}
	return s
}

// result returns one of four nodes, with a bound of 10 s, 40 without peers.
func result(change func(o *Options)) *Result {
	r := &Result{Options: options(change), ModelBytes: 100e6}
	r.setBounds(10e6)
	return r
}

func TestFigures(t *testing.T) {
	r := result(func(*Options) {})
	s := sample(11, 12.5, 11, 10.5)
	s.Nodes[1].ServedBytes = 0
	s.Nodes[2].FirstByte = 0.25
	for i := range s.Nodes {
		s.Nodes[i].PeerBytes, s.Nodes[i].Received = 99*torrent.BlockSize, 102e6
	}
	s.Nodes[0].WastedBlocks = 4
	s.Prefetch = 0
	for i := range 100 {
		s.Reads = append(s.Reads, float64(100-i)*0.01)
	}
	f := r.figures("mesh", s)
	for _, tt := range []struct {
		name      string
		got, want float64
	}{
		{"p50", f.P50, 11}, {"p95", f.P95, 12.5}, {"last", f.LastReady, 12.5}, {"efficiency", f.Efficiency, 0.8},
		{"copies", f.OriginCopies, 1.01}, {"cpu", f.CPUPerGiB, 4 / (400e6 / (1 << 30))}, {"memory", float64(f.PeakRSSBytes), 50 << 20},
		{"fairness", f.Fairness, 0.75}, {"written", f.WrittenPerByte, 2},
		{"duplicates", f.Duplicates, 0.01}, {"overhead", f.Overhead, 0.02}, {"first byte", f.FirstByte, 0.25},
		{"read p50", f.ReadP50, 0.5}, {"read p99", f.ReadP99, 0.99}, {"read ratio", f.ReadRatio, 0.99 * 10e6 / (1 << 20)},
	} {
		if math.Abs(tt.got-tt.want) > 1e-9*math.Max(tt.want, 1) {
			t.Errorf("%s: %v, want %v", tt.name, tt.got, tt.want)
		}
	}
	if !f.Valid {
		t.Errorf("invalid: %s", f.InvalidBecause)
	}
	s.Prefetch = 7.5
	s.Nodes[0].Load, s.Nodes[1].Load, s.Nodes[0].Plain, s.Nodes[1].Plain = 1.5, 3, 1, 2
	if f := r.figures("prefetched", s); f.Efficiency != 0.5 || f.PrefetchVsBound != 0.75 || f.LoadVsLocal != 1.5 {
		t.Errorf("after a prefetch: efficiency %v, want that of both together, 0.5; %v of the bound, want 0.75; %v of plain files, want 1.5",
			f.Efficiency, f.PrefetchVsBound, f.LoadVsLocal)
	}
	if f := r.figures("lone", sample(10.5)); math.Abs(f.Efficiency-10/10.5) > 1e-9 {
		t.Errorf("efficiency of a lone node: %v", f.Efficiency)
	}
}

func TestValidity(t *testing.T) {
	tests := []struct {
		name   string
		arm    string
		change func(o *Options, s *Sample)
		want   string // in the reason; valid when empty
	}{
		{"mesh", "mesh", func(*Options, *Sample) {}, ""},
		{"busy", "mesh", func(_ *Options, s *Sample) { s.CPUBusy = 0.8 }, "80 % busy"},
		{"lone", "lone", func(o *Options, _ *Sample) { o.Link = 11e6 }, ""},
		{"lone, slow", "lone", func(*Options, *Sample) {}, "only 80 % of its link"},
		{"direct", "direct", func(_ *Options, s *Sample) { s.Nodes[0].Ready = 41.9 }, ""},
		{"direct too slow", "direct", func(_ *Options, s *Sample) { s.Nodes[0].Ready = 42.1 }, "links allow 40.0 s"},
		{"direct too fast", "direct", func(_ *Options, s *Sample) { s.Nodes[0].Ready = 37.9 }, "links allow 40.0 s"},
		{"killed", "mesh", func(o *Options, s *Sample) { o.Churn, s.Nodes[2].Kills = 1, 1 }, ""},
		{"not killed", "mesh", func(o *Options, s *Sample) { o.Churn, s.Nodes[2].Kills = 2, 1 }, "only 1 of 2"},
		{"no agents to kill", "direct", func(o *Options, s *Sample) { o.Churn, s.Nodes[0].Ready = 2, 40 }, ""},
		{"origin killed", "mesh", func(o *Options, s *Sample) { o.KillOriginAt, s.OriginKilled = 1, 9 }, ""},
		{"origin killed late", "mesh", func(o *Options, s *Sample) { o.KillOriginAt, s.OriginKilled = 2, 11.1 }, "only when all nodes were ready"},
	}
	for _, tt := range tests {
		r, s := result(func(*Options) {}), sample(11, 11, 11, 11)
		tt.change(&r.Options, &s)
		f := r.figures(tt.arm, s)
		if f.Valid != (tt.want == "") || !strings.Contains(f.InvalidBecause, tt.want) {
			t.Errorf("%s: valid %v: %s; want %q", tt.name, f.Valid, f.InvalidBecause, tt.want)
		}
	}
}

func TestArmsAreMedians(t *testing.T) {
	r := result(func(*Options) {})
	for i, last := range []float64{14, 11, 12} {
		s := sample(10, 10, 10, last)
		s.Nodes[0].Name = []string{"first run", "second run", "third run"}[i]
		r.add("mesh", s)
	}
	busy := sample(10)
	busy.CPUBusy = 0.9
	r.add("mesh-lazy", sample(10))
	r.add("mesh-lazy", busy)
	r.summarize()
	mesh, lazy := r.Arms[0], r.Arms[1]
	if mesh.LastReady != 12 || mesh.Nodes[0].Name != "third run" || len(mesh.Runs) != 3 || !mesh.Valid {
		t.Errorf("last %v in the %s of %d, valid %v; want the third of 3, 12, true", mesh.LastReady, mesh.Nodes[0].Name, len(mesh.Runs), mesh.Valid)
	}
	if lazy.CPUBusy != 0.7 || lazy.Valid || !strings.HasPrefix(lazy.InvalidBecause, "run 2: the CPUs") || r.Valid() {
		t.Errorf("busy %v, valid %v because %q", lazy.CPUBusy, lazy.Valid, lazy.InvalidBecause)
	}
}

// TestJSON holds the names that others read.
func TestJSON(t *testing.T) {
	r := result(func(*Options) {})
	r.add("mesh", sample(10, 11))
	r.summarize()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Bound float64          `json:"bound_s"`
		Rate  float64          `json:"payload_rate"`
		Arms  []map[string]any `json:"arms"`
	}
	if err := json.Unmarshal(text, &v); err != nil || v.Bound != 10 || v.Rate != 10e6 || len(v.Arms) != 1 {
		t.Fatalf("%v: %s", err, text)
	}
	has := func(what string, m map[string]any, keys ...string) {
		t.Helper()
		for _, key := range keys {
			if _, ok := m[key]; !ok {
				t.Errorf("%s has no %s", what, key)
			}
		}
	}
	has("an arm", v.Arms[0], "name", "last_ready_s", "p50_s", "p95_s", "efficiency", "origin_copies", "cpu_s_per_gib",
		"peak_rss_bytes", "fairness", "duplicates", "overhead", "bytes_written_per_byte", "cpu_busy", "valid", "nodes", "runs")
	has("a node", v.Arms[0]["nodes"].([]any)[0].(map[string]any), "name", "ready_s", "origin_bytes", "peer_bytes",
		"served_bytes", "cpu_s", "peak_rss_bytes", "link_rx_bytes", "link_tx_bytes")
	has("a run", v.Arms[0]["runs"].([]any)[0].(map[string]any), "last_ready_s", "valid", "nodes", "origin")
}

func TestStatistics(t *testing.T) {
	values := []float64{5, 1, 4, 2, 3}
	for p, want := range map[float64]float64{1: 1, 20: 1, 21: 2, 50: 3, 95: 5, 100: 5} {
		if got := percentile(values, p); got != want {
			t.Errorf("percentile %v: %v, want %v", p, got, want)
		}
	}
	if got := middle(values); got != 3 {
		t.Errorf("median %v, want 3", got)
	}
	if got := middle(values[:4]); got != 3 { // of 1, 2, 4, 5
		t.Errorf("median %v, want 3", got)
	}
	if !slices.Equal(values, []float64{5, 1, 4, 2, 3}) {
		t.Error("the values were sorted in place")
	}
	for _, tt := range []struct {
		values []float64
		want   float64
	}{{[]float64{3, 3, 3}, 1}, {[]float64{0, 0, 6}, 1.0 / 3}, {[]float64{0, 0}, 0}} {
		if got := jain(tt.values); math.Abs(got-tt.want) > 1e-9 {
			t.Errorf("Jain's index of %v: %v, want %v", tt.values, got, tt.want)
		}
	}
	before := ticks{idle: 100, all: 200}
	if got := (ticks{idle: 125, all: 300}).busySince(before); got != 0.75 {
		t.Errorf("busy %v, want 0.75", got)
	}
	if got := before.busySince(before); got != 0 {
		t.Errorf("busy %v in no time", got)
	}
	if now, err := readTicks(); err != nil || now.all < now.idle || now.idle == 0 {
		t.Errorf("%+v, %v", now, err)
	}
}
