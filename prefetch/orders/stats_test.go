package orders

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestStats counts orders by their state, and the parts of nodes in active ones.
func TestStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBoard(t, t.TempDir())
		time.Sleep(settling)
		v := place(t, b, request(2, 0))
		report(t, b, "a")
		report(t, b, "a", at(v, Ready))
		report(t, b, "b", at(v, Fetching))
		got := b.Stats()
		if got.Nodes != 2 || got.Orders[Active] != 1 || got.Orders[Done] != 0 || len(got.Orders) != 5 ||
			got.Parts[Ready] != 1 || got.Parts[Fetching] != 1 || len(got.Parts) != 5 || got.Have != 140 || got.Total != 200 {
			t.Errorf("%+v", got)
		}
		report(t, b, "b", at(v, Ready))
		got = b.Stats()
		if got.Orders[Active] != 0 || got.Orders[Done] != 1 || got.Parts[Ready] != 0 || got.Have != 0 || got.Total != 0 {
			t.Errorf("%+v once it is done", got)
		}
		time.Sleep(2 * grace)
		if got = b.Stats(); got.Nodes != 0 {
			t.Errorf("%d nodes are connected that are silent", got.Nodes)
		}
	})
}
