package agent

import (
	"fmt"
	"testing"

	"github.com/spate-project/spate/prefetch/orders"
)

// TestSeeding: in each zone as many nodes begin as are asked for, those that have
// begun among them, and the others when these hold all of it.
func TestSeeding(t *testing.T) {
	const reference = "registry.example/qwen@sha256:0"
	var places []orders.Place
	for i := range 20 {
		places = append(places, orders.Place{Node: fmt.Sprint(i), Zone: string(rune('a' + i%2)), Total: 100})
	}
	turns := func(places []orders.Place, zone string, seeds int) (names []string) {
		for _, p := range places {
			if p.Zone == zone && seedingOf(places, p.Node, zone, reference, seeds).turn {
				names = append(names, p.Node)
			}
		}
		return names
	}
	first := turns(places, "a", 2)
	if len(first) != 2 || len(turns(places, "b", 3)) != 3 {
		t.Fatalf("of zone a %v begin, of zone b %v", first, turns(places, "b", 3))
	}
	if others := turns(places, "a", 20); len(others) != 10 {
		t.Errorf("where there are fewer nodes than seeds %v begin", others)
	}
	if seedingOf(places, "unknown", "a", reference, 2).turn {
		t.Error("a node begins that the registry does not know yet")
	}

	// Another one had begun before these two came.
	late := 0
	for i, p := range places {
		if p.Zone == "a" && p.Node != first[0] && p.Node != first[1] {
			places[i].Have, late = 50, i
			break
		}
	}
	if now := turns(places, "a", 1); len(now) != 1 || now[0] != places[late].Node {
		t.Errorf("%s had begun, and %v begin", places[late].Node, now)
	}
	if s := seedingOf(places, first[0], "a", reference, 1); s.whole != 0 || s.have != 50 {
		t.Errorf("%+v", s)
	}
	places[late].Have = 100
	if now := turns(places, "a", 1); len(now) != 10 {
		t.Errorf("the seed holds it, and only %v begin", now)
	}
	if now := turns(places, "b", 1); len(now) != 1 {
		t.Errorf("the seed of another zone holds it, and %v begin", now)
	}
}
