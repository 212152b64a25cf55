package orders

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spate-project/spate/cache/piece"
)

func TestPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBoard(t, t.TempDir())
		x, y, other := piece.Digest{1}, piece.Digest{2}, piece.Digest{3}
		tell := func(node, pool, zone string, s *Stock) {
			t.Helper()
			if _, err := b.Report(t.Context(), Report{Node: node, Labels: map[string]string{PoolLabel: pool}, Zone: zone, Stock: s}); err != nil {
				t.Fatal(err)
			}
		}
		tell("all", "gpu", "z1", &Stock{Objects: []Held{{x, 100, 100}, {y, 300, 300}, {other, 9, 9}}})
		tell("half", "gpu", "z1", &Stock{Quota: 1000, Used: 400, Objects: []Held{{x, 100, 100}, {y, 100, 300}}})
		tell("far", "gpu", "z2", &Stock{Quota: 1000, Used: 100, Objects: []Held{{y, 200, 300}}})
		tell("none", "gpu", "z2", &Stock{Quota: 1000, Used: 2000})
		tell("roomy", "gpu", "z2", &Stock{})
		tell("untold", "gpu", "z2", nil)
		tell("other", "cpu", "z1", &Stock{Objects: []Held{{x, 100, 100}, {y, 300, 300}}})
		objects := []Object{{x, 100}, {y, 50}, {y, 50}} // y is compressed in its manifest, and listed twice
		names := func(pool, zone string) (list []string) {
			for _, p := range b.Places(objects, pool, zone) {
				if p.Total != 400 {
					t.Errorf("%s needs %d bytes, want 400", p.Node, p.Total)
				}
				list = append(list, p.Node)
			}
			return list
		}
		if got := names("gpu", ""); !slices.Equal(got, []string{"all", "far", "half", "roomy", "untold", "none"}) {
			t.Errorf("without a zone: %v", got)
		}
		if got := names("gpu", "z1"); !slices.Equal(got, []string{"all", "half", "far", "roomy", "untold", "none"}) {
			t.Errorf("with a zone: %v", got)
		}
		if got := names("", "z1"); len(got) != 7 || got[0] != "all" || got[1] != "other" {
			t.Errorf("without a pool: %v", got)
		}
		p := b.Places(objects, "gpu", "")[1]
		if p != (Place{Node: "far", Zone: "z2", Have: 200, Total: 400, Share: 0.5, Free: 900}) {
			t.Errorf("%+v", p)
		}

		// What it told last holds until it tells anew.
		tell("far", "gpu", "z2", nil)
		if got := names("gpu", ""); got[1] != "far" {
			t.Errorf("after a report without news: %v", got)
		}
		tell("far", "gpu", "z2", &Stock{})
		if got := names("gpu", ""); got[1] != "half" {
			t.Errorf("after it lost all: %v", got)
		}
		time.Sleep(2 * grace)
		if got := names("gpu", ""); len(got) != 0 {
			t.Errorf("nodes that are gone: %v", got)
		}
		time.Sleep(memory)
		b.sweep()
		if b.stocked != 0 {
			t.Errorf("%d objects of forgotten nodes are kept", b.stocked)
		}
	})
}

func TestStockBounds(t *testing.T) {
	b := openBoard(t, t.TempDir())
	for name, s := range map[string]*Stock{
		"too many":  {Objects: make([]Held, MaxHeld+1)},
		"more":      {Objects: []Held{{Bytes: 2, Size: 1}}},
		"less":      {Objects: []Held{{Bytes: -1, Size: 1}}},
		"no quota":  {Quota: -1},
		"used less": {Used: -1},
	} {
		if _, err := b.Report(t.Context(), Report{Node: "a", Stock: s}); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	b.stocked = maxStock - 1
	if _, err := b.Report(t.Context(), Report{Node: "a", Stock: &Stock{Objects: []Held{{Digest: piece.Digest{1}}, {Digest: piece.Digest{2}}}}}); err != nil || b.stocked != maxStock {
		t.Errorf("beyond the bound: %d objects, %v", b.stocked, err)
	}
}
