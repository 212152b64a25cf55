package storm

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/spate-project/spate/p2p/torrent"
)

// A Result is what an experiment measured. Times are in seconds from the moment
// when the first node was told to begin, unless they say otherwise.
type Result struct {
	Options     Options `json:"options"`
	ModelBytes  int64   `json:"model_bytes"`
	PayloadRate float64 `json:"payload_rate"`   // of the lone download, in bytes of model a second
	Bound       float64 `json:"bound_s"`        // max(M/O, M/d, N*M/(O+N*u)) at that rate: the least last_ready_s with peers
	DirectBound float64 `json:"direct_bound_s"` // max(N*M/O, M/d): without
	Arms        []*Arm  `json:"arms"`
}

// An Arm is all runs of one way to bring the model to the nodes. Its figures
// are the medians of theirs.
type Arm struct {
	Name string `json:"name"`
	Figures
	Nodes []Node   `json:"nodes"` // of the run whose last node came in the middle
	Runs  []Sample `json:"runs"`
}

// A Sample is one run of an arm.
type Sample struct {
	Figures
	OriginKilled float64   `json:"origin_killed_s,omitempty"`
	Origin       Node      `json:"origin"`
	OriginSent   int64     `json:"origin_sent_bytes"` // content of TCP
	Nodes        []Node    `json:"nodes"`
	Reads        []float64 `json:"reads_s,omitempty"` // how long each random read took
}

// Figures sum up a run or an arm.
type Figures struct {
	FirstByte float64 `json:"first_byte_s,omitempty"` // of the node that waited longest for its first file, from its own start
	Prefetch  float64 `json:"prefetch_s,omitempty"`   // until the last node had all; other times begin after it

	// PrefetchVsBound is prefetch_s / bound_s. LoadVsLocal is how long a loader waits
	// for the mount of a model that is here over how long for plain files, both in the
	// page cache: of all nodes' load_s and plain_load_s together. TraceVsCold is how
	// long cold starts with a trace stalled over how long the one without did.
	PrefetchVsBound float64 `json:"prefetch_vs_bound,omitempty"`
	LoadVsLocal     float64 `json:"load_vs_local,omitempty"`
	TraceVsCold     float64 `json:"trace_vs_cold,omitempty"`

	P50        float64 `json:"p50_s"` // half of the nodes were ready
	P95        float64 `json:"p95_s"`
	LastReady  float64 `json:"last_ready_s"`
	Efficiency float64 `json:"efficiency"` // bound_s / (prefetch_s + last_ready_s)

	// OriginCopies is the content of TCP that left the origin's link, per byte
	// of model: HTTP headers, manifests and the tracker's answers count, packet
	// headers do not. Nodes on top of Nodes draw from the origin too.
	OriginCopies float64 `json:"origin_copies"`

	CPUPerGiB      float64 `json:"cpu_s_per_gib"`          // of the nodes' agents or downloads, per GiB that they were to receive
	PeakRSSBytes   int64   `json:"peak_rss_bytes"`         // of the largest of them
	Fairness       float64 `json:"fairness,omitempty"`     // Jain's index of what the nodes sent: 1 when all sent the same
	Duplicates     float64 `json:"duplicates"`             // share of the blocks from peers that were there already
	Overhead       float64 `json:"overhead"`               // content of TCP that nodes received beyond one model each, per byte of it
	WrittenPerByte float64 `json:"bytes_written_per_byte"` // write_bytes of proc_pid_io(5) per byte of model

	ReadP50   float64 `json:"read_p50_s,omitempty"` // of the random reads of 1 MiB
	ReadP99   float64 `json:"read_p99_s,omitempty"`
	ReadRatio float64 `json:"read_p99_ratio,omitempty"` // to 1 MiB at payload_rate

	CPUBusy        float64 `json:"cpu_busy"` // share of all the machine's CPUs
	Valid          bool    `json:"valid"`
	InvalidBecause string  `json:"invalid_because,omitempty"`
}

// A Node is one host's part in a run.
type Node struct {
	Name         string  `json:"name"`
	Ready        float64 `json:"ready_s"`
	FirstByte    float64 `json:"first_byte_s,omitempty"` // from its own start
	Load         float64 `json:"load_s,omitempty"`       // that a loader waited for the mount, alone, from the page cache
	Plain        float64 `json:"plain_load_s,omitempty"` // the same for plain files
	Stall        float64 `json:"stall_s,omitempty"`      // that a cold start waited for bytes
	OriginBytes  int64   `json:"origin_bytes"`           // of pieces, as the agent says
	PeerBytes    int64   `json:"peer_bytes"`
	ServedBytes  int64   `json:"served_bytes"`
	WastedBlocks int64   `json:"wasted_blocks,omitempty"` // from peers, that were there already
	CPUSeconds   float64 `json:"cpu_s"`
	PeakRSSBytes int64   `json:"peak_rss_bytes"`
	WrittenBytes int64   `json:"written_bytes"`

	LinkReceivedBytes int64 `json:"link_rx_bytes"` // with packet headers, as far as the kernel counts them
	LinkSentBytes     int64 `json:"link_tx_bytes"`
	Received          int64 `json:"received_bytes"` // content of TCP
	Kills             int   `json:"kills,omitempty"`

	transfer float64
}

const (
	// busiest is the share of the CPUs from which on the machine, not the links, is measured.
	busiest = 0.80

	// fullest is the share of its link that a lone download must reach. Packet
	// headers take 4.4 % of it; a slower one makes the bound too easy.
	fullest = 0.90

	// tolerance is how far direct downloads may be from what the links allow.
	tolerance = 0.05
)

// setBounds notes what a lone download at rate bytes a second means.
func (r *Result) setBounds(rate float64) {
	r.PayloadRate = rate
	r.Bound, r.DirectBound = r.Options.bounds(r.ModelBytes, rate)
}

// add adds a run to its arm, and returns it with its figures.
func (r *Result) add(name string, run Sample) Sample {
	run.Figures = r.figures(name, run)
	i := slices.IndexFunc(r.Arms, func(a *Arm) bool { return a.Name == name })
	if i < 0 {
		i = len(r.Arms)
		r.Arms = append(r.Arms, &Arm{Name: name})
	}
	r.Arms[i].Runs = append(r.Arms[i].Runs, run)
	return run
}

// figures sums a run up.
func (r *Result) figures(name string, run Sample) Figures {
	f := Figures{Prefetch: run.Prefetch, CPUBusy: run.CPUBusy}
	if armNamed(name).turns {
		f.TraceVsCold = traceVsCold(run.Nodes)
		f.InvalidBecause = r.doubts(name, run, f)
		f.Valid = f.InvalidBecause == ""
		return f
	}
	moved := float64(r.ModelBytes) * float64(len(run.Nodes))
	var ready, sent []float64
	var cpu, written, wasted, useful, received, load, plain float64
	for _, n := range run.Nodes {
		ready = append(ready, n.Ready)
		sent = append(sent, float64(n.ServedBytes))
		cpu += n.CPUSeconds
		written += float64(n.WrittenBytes)
		wasted += float64(n.WastedBlocks)
		useful += float64(n.PeerBytes) / torrent.BlockSize
		received += float64(n.Received)
		f.FirstByte = max(f.FirstByte, n.FirstByte)
		f.PeakRSSBytes = max(f.PeakRSSBytes, n.PeakRSSBytes)
		load, plain = load+n.Load, plain+n.Plain
	}
	f.PrefetchVsBound = f.Prefetch / r.Bound
	if plain > 0 {
		f.LoadVsLocal = load / plain
	}
	f.P50, f.P95, f.LastReady = percentile(ready, 50), percentile(ready, 95), slices.Max(ready)
	f.Efficiency = r.Bound / (f.Prefetch + f.LastReady)
	if name == lone.name { // of one node
		f.Efficiency = float64(r.ModelBytes) / r.PayloadRate / f.LastReady
	}
	f.OriginCopies = float64(run.OriginSent) / float64(r.ModelBytes)
	f.CPUPerGiB = cpu / (moved / (1 << 30))
	f.WrittenPerByte = written / moved
	f.Fairness = jain(sent)
	f.Overhead = received/moved - 1
	if wasted > 0 {
		f.Duplicates = wasted / (wasted + useful)
	}
	if len(run.Reads) > 0 {
		f.ReadP50, f.ReadP99 = percentile(run.Reads, 50), percentile(run.Reads, 99)
		f.ReadRatio = f.ReadP99 / (readSize / r.PayloadRate)
	}
	f.InvalidBecause = r.doubts(name, run, f)
	f.Valid = f.InvalidBecause == ""
	return f
}

// traceVsCold compares the mean stall of all nodes but the first with that of the first.
func traceVsCold(nodes []Node) float64 {
	if len(nodes) < 2 || nodes[0].Stall == 0 {
		return 0
	}
	var stall float64
	for _, n := range nodes[1:] {
		stall += n.Stall
	}
	return stall / float64(len(nodes)-1) / nodes[0].Stall
}

// doubts returns why a run with these figures does not count, "" when it does.
func (r *Result) doubts(name string, run Sample, f Figures) string {
	var because []string
	if f.CPUBusy >= busiest {
		because = append(because, fmt.Sprintf("the CPUs were %.0f %% busy: the machine is measured, not the links", 100*f.CPUBusy))
	}
	if share := r.PayloadRate / float64(min(r.Options.Link, r.Options.OriginLink)); name == lone.name && share < fullest {
		because = append(because, fmt.Sprintf("a lone download reached only %.0f %% of its link: the model is too small, or the machine too slow", 100*share))
	}
	if name == "direct" && math.Abs(f.LastReady/r.DirectBound-1) > tolerance {
		because = append(because, fmt.Sprintf("the last node was ready after %.1f s where the links allow %.1f s: they are not as they should be",
			f.LastReady, r.DirectBound))
	}
	if a := armNamed(name); a.agents && !a.turns {
		kills := 0
		for _, n := range run.Nodes {
			kills += n.Kills
		}
		if kills < r.Options.Churn {
			because = append(because, fmt.Sprintf("only %d of %d nodes were killed: all were ready before", kills, r.Options.Churn))
		}
		if r.Options.KillOriginAt > 0 && run.OriginKilled > f.Prefetch+f.LastReady {
			because = append(because, "the origin was killed only when all nodes were ready")
		}
	}
	return strings.Join(because, "; ")
}

// summarize fills in the arms' figures.
func (r *Result) summarize() {
	for _, a := range r.Arms {
		runs := slices.SortedFunc(slices.Values(a.Runs), func(x, y Sample) int { return cmp.Compare(x.LastReady, y.LastReady) })
		a.Nodes = runs[(len(runs)-1)/2].Nodes
		median := func(of func(f Figures) float64) float64 {
			var values []float64
			for _, run := range a.Runs {
				values = append(values, of(run.Figures))
			}
			return middle(values)
		}
		a.Figures = Figures{
			FirstByte:       median(func(f Figures) float64 { return f.FirstByte }),
			Prefetch:        median(func(f Figures) float64 { return f.Prefetch }),
			PrefetchVsBound: median(func(f Figures) float64 { return f.PrefetchVsBound }),
			LoadVsLocal:     median(func(f Figures) float64 { return f.LoadVsLocal }),
			TraceVsCold:     median(func(f Figures) float64 { return f.TraceVsCold }),
			P50:             median(func(f Figures) float64 { return f.P50 }),
			P95:             median(func(f Figures) float64 { return f.P95 }),
			LastReady:       median(func(f Figures) float64 { return f.LastReady }),
			Efficiency:      median(func(f Figures) float64 { return f.Efficiency }),
			OriginCopies:    median(func(f Figures) float64 { return f.OriginCopies }),
			CPUPerGiB:       median(func(f Figures) float64 { return f.CPUPerGiB }),
			PeakRSSBytes:    int64(median(func(f Figures) float64 { return float64(f.PeakRSSBytes) })),
			Fairness:        median(func(f Figures) float64 { return f.Fairness }),
			Duplicates:      median(func(f Figures) float64 { return f.Duplicates }),
			Overhead:        median(func(f Figures) float64 { return f.Overhead }),
			WrittenPerByte:  median(func(f Figures) float64 { return f.WrittenPerByte }),
			ReadP50:         median(func(f Figures) float64 { return f.ReadP50 }),
			ReadP99:         median(func(f Figures) float64 { return f.ReadP99 }),
			ReadRatio:       median(func(f Figures) float64 { return f.ReadRatio }),
			CPUBusy:         median(func(f Figures) float64 { return f.CPUBusy }),
			Valid:           true,
		}
		for i, run := range a.Runs {
			if !run.Valid {
				a.Valid = false
				a.InvalidBecause = fmt.Sprintf("run %d: %s", i+1, run.InvalidBecause)
				break
			}
		}
	}
}

// percentile returns the value that p percent of the values do not exceed, by
// the nearest rank.
func percentile(values []float64, p float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(int(math.Ceil(p/100*float64(len(sorted)))), 1)-1]
}

// middle returns the median.
func middle(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// jain returns Jain's fairness index, 0 when all values are 0.
func jain(values []float64) float64 {
	var sum, squares float64
	for _, v := range values {
		sum += v
		squares += v * v
	}
	if squares == 0 {
		return 0
	}
	return sum * sum / (float64(len(values)) * squares)
}
