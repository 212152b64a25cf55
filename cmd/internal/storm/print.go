package storm

import (
	"fmt"
	"io"
	"time"

	"github.com/spate-project/spate/cmd/internal/ui"
)

// Valid reports whether every arm is.
func (r *Result) Valid() bool {
	for _, a := range r.Arms {
		if !a.Valid {
			return false
		}
	}
	return true
}

// Print writes the result as tables for people.
func (r *Result) Print(w io.Writer) error {
	fmt.Fprintln(w)
	s := ui.NewTable()
	s.Row("model", ui.Size(r.ModelBytes))
	s.Row("lone download", ui.Speed(int64(r.PayloadRate), time.Second))
	s.Row("bound", fmt.Sprintf("%.1f s  max(M/O, M/d, N*M/(O+N*u)) for %d nodes", r.Bound, r.Options.Nodes))
	s.Row("bound without peers", fmt.Sprintf("%.1f s  max(N*M/O, M/d)", r.DirectBound))
	if err := s.Print(w); err != nil {
		return err
	}
	fmt.Fprintln(w)
	header := []any{"ARM"}
	for _, a := range r.Arms {
		header = append(header, a.Name)
	}
	t := ui.NewTable(header...)
	row := func(name, format string, of func(f Figures) float64) {
		cells := []any{name}
		for _, a := range r.Arms {
			cell := "-"
			if v := of(a.Figures); v != 0 { // else it was not measured
				cell = fmt.Sprintf(format, v)
			}
			cells = append(cells, cell)
		}
		t.Row(cells...)
	}
	row("prefetch", "%.1f s", func(f Figures) float64 { return f.Prefetch })
	row("  in times of bound", "%.2f", func(f Figures) float64 { return f.PrefetchVsBound })
	row("load, of plain files'", "%.2f", func(f Figures) float64 { return f.LoadVsLocal })
	row("stall with a trace, of that without", "%.2f", func(f Figures) float64 { return f.TraceVsCold })
	row("first byte", "%.2f s", func(f Figures) float64 { return f.FirstByte })
	row("half are ready", "%.1f s", func(f Figures) float64 { return f.P50 })
	row("95 % are ready", "%.1f s", func(f Figures) float64 { return f.P95 })
	row("last is ready", "%.1f s", func(f Figures) float64 { return f.LastReady })
	row("efficiency", "%.2f", func(f Figures) float64 { return f.Efficiency })
	row("origin copies", "%.2f", func(f Figures) float64 { return f.OriginCopies })
	row("received twice", "%.2f %%", func(f Figures) float64 { return 100 * f.Duplicates })
	row("received on top", "%.2f %%", func(f Figures) float64 { return 100 * f.Overhead })
	row("fairness of upload", "%.2f", func(f Figures) float64 { return f.Fairness })
	row("random read, p50", "%.3f s", func(f Figures) float64 { return f.ReadP50 })
	row("random read, p99", "%.3f s", func(f Figures) float64 { return f.ReadP99 })
	row("  in times of link", "%.1f", func(f Figures) float64 { return f.ReadRatio })
	row("CPU per GiB", "%.1f s", func(f Figures) float64 { return f.CPUPerGiB })
	row("peak memory", "%.0f MiB", func(f Figures) float64 { return float64(f.PeakRSSBytes) / (1 << 20) })
	row("written per byte", "%.2f", func(f Figures) float64 { return f.WrittenPerByte })
	row("all CPUs busy", "%.0f %%", func(f Figures) float64 { return 100 * f.CPUBusy })
	if err := t.Print(w); err != nil {
		return err
	}
	for _, a := range r.Arms {
		if !a.Valid {
			fmt.Fprintf(w, "\nINVALID %s: %s\n", a.Name, a.InvalidBecause)
		}
	}
	return nil
}
