package demo

import (
	"fmt"
	"io"

	"github.com/spate-project/spate/cmd/internal/ui"
)

// A Result is what a demo measured. Times are in seconds from the moment when
// all nodes were told to load.
type Result struct {
	Nodes        []NodeResult `json:"nodes"`
	ModelBytes   int64        `json:"model_bytes"`
	Link         int64        `json:"link_bytes_per_s"` // 0: no limit
	Bound        float64      `json:"bound_s"`          // the least time that physics allows; 0 without a limit
	LastReady    float64      `json:"last_ready_s"`
	Efficiency   float64      `json:"efficiency"`    // bound_s / last_ready_s
	OriginCopies float64      `json:"origin_copies"` // bytes that left the registry, of any kind, per byte of model
	Direct       float64      `json:"direct_s"`      // the same load without a mesh; 0 when not run
	Speedup      float64      `json:"speedup"`       // direct_s / last_ready_s
	PushSeconds  float64      `json:"push_s"`

	Verified        bool  `json:"verified"`       // every node compared every tensor with the source
	RefusedPieces   int64 `json:"refused_pieces"` // from the node whose bytes were changed
	UnsignedRefused bool  `json:"unsigned_refused"`
}

// A NodeResult is one node's part.
type NodeResult struct {
	Name         string  `json:"name"`
	FirstByte    float64 `json:"first_byte_s"`
	LastTensor   float64 `json:"last_tensor_s"`
	OriginBytes  int64   `json:"origin_bytes"`
	PeerBytes    int64   `json:"peer_bytes"`
	ServedBytes  int64   `json:"served_bytes"`
	CPUSeconds   float64 `json:"cpu_s"`
	PeakRSSBytes int64   `json:"peak_rss_bytes"`
}

// Print writes the result as tables for people.
func (r *Result) Print(w io.Writer) error {
	fmt.Fprintln(w)
	t := ui.NewTable("NODE", "FIRST BYTE", "LAST TENSOR", "FROM REGISTRY", "FROM PEERS", "TO PEERS", "CPU", "PEAK MEMORY")
	for _, n := range r.Nodes {
		t.Row(n.Name, fmt.Sprintf("%.2f s", n.FirstByte), fmt.Sprintf("%.1f s", n.LastTensor),
			ui.Size(n.OriginBytes), ui.Size(n.PeerBytes), ui.Size(n.ServedBytes),
			fmt.Sprintf("%.1f s", n.CPUSeconds), ui.Size(n.PeakRSSBytes))
	}
	if err := t.Print(w); err != nil {
		return err
	}
	fmt.Fprintln(w)
	s := ui.NewTable()
	s.Row("model", ui.Size(r.ModelBytes))
	if r.Bound > 0 {
		s.Row("physical bound", fmt.Sprintf("%.1f s  max(M/O, M/d, N*M/(O+N*u))", r.Bound))
	}
	s.Row("last node ready", fmt.Sprintf("%.1f s", r.LastReady))
	if r.Bound > 0 {
		s.Row("efficiency", fmt.Sprintf("%.2f", r.Efficiency))
	}
	s.Row("copies sent by the registry", fmt.Sprintf("%.2f", r.OriginCopies))
	if r.Direct > 0 {
		s.Row("direct downloads", fmt.Sprintf("%.1f s, %.1f times as long", r.Direct, r.Speedup))
	}
	s.Row("every tensor verified", yes(r.Verified))
	s.Row("altered piece refused", yes(r.RefusedPieces > 0))
	s.Row("unsigned model refused", yes(r.UnsignedRefused))
	return s.Print(w)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "NO"
}
