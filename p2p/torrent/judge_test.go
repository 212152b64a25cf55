package torrent

import (
	"slices"
	"testing"
	"time"

	anacrolix "github.com/anacrolix/torrent"
)

// A life is what one connection does from second to second.
type life struct {
	name   string
	idle   bool  // nothing is asked of it
	urgent bool  // a reader waits for it
	bytes  int64 // a second
	data   int64 // of them, of whole blocks
}

// TestJudge plays peers' lives to a judge, second after second.
func TestJudge(t *testing.T) {
	good := life{name: "good", bytes: 1 << 20, data: 1 << 20}
	slow := life{name: "slow", bytes: 24 << 10, data: 24 << 10}
	silent := life{name: "silent"}
	trickles := life{name: "trickles", bytes: 1 << 10}
	chatty := life{name: "chatty", bytes: 100 << 10} // anything but blocks
	for _, tt := range []struct {
		what    string
		lives   []life
		origin  int64 // received besides, a second
		seconds int
		banned  []string
		closed  []string // not banned
	}{
		{"all is well", []life{good, slow}, 0, 100, nil, nil},
		{"silence", []life{good, silent}, 0, 5, []string{"silent"}, nil},
		{"silence is not at once", []life{good, silent}, 0, 4, nil, nil},
		{"silence where only the origin sends", []life{silent, silent}, 1 << 20, 5, []string{"silent", "silent"}, nil},
		{"nobody sends: the link is the suspect", []life{silent, silent}, 0, 5, nil, []string{"silent", "silent"}},
		{"silence while next to nothing comes", []life{silent}, 1 << 10, 5, nil, []string{"silent"}},
		{"silence in a crowd", []life{silent, silent, slow, slow}, 0, 100, nil, nil},
		{"a reader waits in a crowd", []life{slow, slow, {name: "silent", urgent: true}}, 0, 100, nil, nil},
		{"nothing was asked", []life{good, {name: "silent", idle: true}}, 0, 100, nil, nil},
		{"trickle", []life{good, trickles}, 0, 20, []string{"trickles"}, nil},
		{"trickle is not at once", []life{good, trickles}, 0, 19, nil, nil},
		{"trickle on two connections", []life{good, trickles, trickles}, 0, 20, []string{"trickles", "trickles"}, nil},
		{"trickle among talk", []life{good, chatty}, 0, 20, []string{"chatty"}, nil},
		{"everybody trickles: the link is the suspect", []life{trickles, trickles, chatty}, 0, 100, nil, nil},
		{"a narrow link has nobody banned", []life{slow, slow, slow, trickles}, 100 << 10, 100, nil, nil},
		{"many connections of a slow peer add up", []life{
			good, {name: "slow", bytes: 10 << 10, data: 10 << 10}, {name: "slow", bytes: 10 << 10, data: 10 << 10},
		}, 0, 100, nil, nil},
		{"a reader waits", []life{good, {name: "trickles", bytes: 1 << 10, urgent: true}}, 0, 2, nil, []string{"trickles"}},
		{"a reader waits, and the link is idle", []life{{name: "silent", urgent: true}}, 0, 2, nil, []string{"silent"}},
		{"a reader waits for a slow peer's next block", []life{good, {name: "slow", bytes: 80 << 10, urgent: true}}, 0, 3, nil, nil},
	} {
		t.Run(tt.what, func(t *testing.T) {
			j := newJudge(time.Second)
			conns := make([]*anacrolix.Peer, len(tt.lives))
			for i := range conns {
				conns[i] = new(anacrolix.Peer)
			}
			var banned, closed []string
			for sec := range tt.seconds + 1 { // between n ticks are n-1 seconds
				var now []seen
				received := tt.origin * int64(sec)
				for i, l := range tt.lives {
					received += l.bytes * int64(sec)
					if conns[i] != nil {
						now = append(now, seen{
							peer: conns[i], name: l.name, owes: !l.idle, urgent: l.urgent,
							bytes: l.bytes * int64(sec), data: l.data * int64(sec),
						})
					}
				}
				for _, c := range j.judge(now, received) {
					conns[slices.Index(conns, c.peer)] = nil
					if c.offence != nil {
						banned = append(banned, c.name)
					} else {
						closed = append(closed, c.name)
					}
				}
			}
			if !slices.Equal(banned, tt.banned) || !slices.Equal(closed, tt.closed) {
				t.Errorf("banned %q, closed %q, want %q, %q", banned, closed, tt.banned, tt.closed)
			}
		})
	}
}

// TestJudgeForgets: a peer that trickled once and is fine now is not banned for both together.
func TestJudgeForgets(t *testing.T) {
	j := newJudge(time.Second)
	slow, good := new(anacrolix.Peer), new(anacrolix.Peer)
	var sent, received int64
	for sec := range 200 {
		if sec%20 >= 15 { // a pause of the reader, say
			sent += 128 << 10
		}
		received += 2 << 20
		now := []seen{
			{peer: slow, name: "slow", owes: true, bytes: sent + int64(sec), data: sent},
			{peer: good, name: "good", owes: true, bytes: received, data: received},
		}
		if all := j.judge(now, received); len(all) > 0 {
			t.Fatalf("%s is judged after %d seconds", all[0].name, sec)
		}
	}
	if n := len(j.names); n > 2 {
		t.Errorf("%d records of two peers", n)
	}
}
