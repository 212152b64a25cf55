package torrent

import (
	"testing"

	anacrolix "github.com/anacrolix/torrent"
)

// TestBudget: swarms that come late get their share, the bound always holds,
// and connections are not taken to and fro.
func TestBudget(t *testing.T) {
	const most = 6 * few
	b := newBudget(most)
	open := make(map[*anacrolix.PeerConn]*anacrolix.Torrent)
	connect := func(s *anacrolix.Torrent, incoming bool) (stayed bool) {
		c := new(anacrolix.PeerConn)
		open[c] = s
		room := b.room(s) > 0
		closed := b.add(s, c, incoming)
		if closed != nil {
			b.remove(open[closed], closed) // as the engine tells of it later
			delete(open, closed)
		}
		if stayed = closed != c; stayed != (room || incoming) {
			t.Errorf("there was room: %v; the connection stayed: %v", room, stayed)
		}
		if most := max(most, few*len(b.swarms)); len(open) > most || len(open) != b.total {
			t.Fatalf("%d connections are open, %d counted, of at most %d", len(open), b.total, most)
		}
		return stayed
	}
	count := func(s *anacrolix.Torrent) (n int) {
		for _, of := range open {
			if of == s {
				n++
			}
		}
		return n
	}
	var swarms []*anacrolix.Torrent
	for k := range 15 {
		s := new(anacrolix.Torrent)
		swarms = append(swarms, s)
		for range most + 3 {
			connect(s, false)
		}
		share := max(few, most/len(swarms))
		for i, s := range swarms {
			if n := count(s); n < share || n > share+1 {
				t.Errorf("with %d swarms, number %d has %d connections", k+1, i, n)
			}
		}
	}
	for _, s := range swarms {
		if connect(s, false) {
			t.Error("a swarm with its share took a connection from another")
		}
		n, oldest := count(s), b.swarms[s][0]
		if connect(s, true); count(s) != n || open[oldest] != nil {
			t.Errorf("somebody came to a swarm with %d connections; now it has %d, the oldest among them: %v", n, count(s), open[oldest] != nil)
		}
	}
	for c, s := range open {
		b.remove(s, c)
		b.remove(s, c)
	}
	if b.total != 0 || len(b.swarms) != 0 {
		t.Errorf("%d connections of %d swarms are left of none", b.total, len(b.swarms))
	}
}
