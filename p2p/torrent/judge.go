package torrent

import (
	"time"

	anacrolix "github.com/anacrolix/torrent"
)

const (
	// silentTicks is for how many good ticks a connection of which blocks are
	// asked may bring nothing at all before its peer is banned, and for how many
	// still ones before it is closed.
	silentTicks = 5

	// absurd is what a peer has to send in a second, on all its connections
	// together, over tricklingTicks of them. Whatever is above is just a slow link.
	absurd         = 16 << 10
	tricklingTicks = 20

	// fair times absurd has to be what an equal share of everything that came
	// would have been, for a tick to be a good one.
	fair = 4

	// readerTicks is for how long a connection on which a reader waits may bring
	// no whole block, and less than idle bytes a second, before it is closed.
	readerTicks = 2
	idle        = 64 << 10
)

// A judge tells peers that hold up what was asked of them from slow ones, by
// what they bring from tick to tick. Nobody is banned for what this node's own
// link may have done: only for ticks in which others brought enough.
type judge struct {
	absurd, idle int64 // in a tick

	conns    map[*anacrolix.Peer]*connection
	names    map[string]*record
	received int64 // over the node's link, up to the last tick
}

// A seen is a connection as it is at a tick.
type seen struct {
	peer   *anacrolix.Peer
	swarm  *swarm
	name   string
	owes   bool  // blocks are asked of it
	urgent bool  // a reader waits for one of them
	bytes  int64 // received on it so far, of all messages
	data   int64 // of whole blocks
}

// A connection is one as it was at the last tick.
type connection struct {
	seen
	silent int // good ticks since it last brought anything
	still  int // still ticks since then
	late   int // ticks since it last brought a block, while a reader waits
}

// A record is of one peer, over all its connections, also those that were closed.
type record struct {
	ticks       int   // good ones, in which blocks were asked of it
	bytes, data int64 // that it sent in them
}

// A closing is a connection that is to be closed.
type closing struct {
	seen
	offence *offence // nil: its peer may connect again
}

func newJudge(tick time.Duration) *judge {
	return &judge{
		absurd: int64(absurd * tick.Seconds()), idle: int64(idle * tick.Seconds()),
		conns: make(map[*anacrolix.Peer]*connection), names: make(map[string]*record),
	}
}

// judge returns the connections that are to be closed. now are all connections
// of which blocks were ever asked, received is over the node's link so far.
func (j *judge) judge(now []seen, received int64) []closing {
	arrived := received - j.received
	j.received = received
	owing := make(map[string]record) // by peer, in this tick
	for _, s := range now {
		if last := j.owed(s); last != nil {
			r := owing[s.name]
			owing[s.name] = record{1, r.bytes + s.bytes - last.bytes, r.data + s.data - last.data}
		}
	}
	// In a good tick others bring enough to show that the link is fine, in a
	// still one nothing comes. In between the link is crowded, and who brings
	// nothing may just not get through.
	good := arrived/int64(len(owing)+1) >= fair*j.absurd
	still := arrived < j.absurd

	var all []closing
	conns := make(map[*anacrolix.Peer]*connection, len(now))
	for _, s := range now {
		c := &connection{seen: s}
		conns[s.peer] = c
		last := j.owed(s)
		if last == nil {
			continue
		}
		bytes, data := s.bytes-last.bytes, s.data-last.data
		if bytes == 0 {
			c.silent = last.silent + count(good)
			c.still = last.still + count(still)
		}
		if s.urgent && last.urgent && data == 0 && bytes < j.idle {
			c.late = last.late + count(good || still)
		}
		switch {
		case c.silent >= silentTicks:
			all = append(all, closing{s, &silence})
		case c.still >= silentTicks, c.late >= readerTicks:
			all = append(all, closing{s, nil})
		}
	}
	j.conns = conns
	if good {
		tricklers := j.tricklers(owing)
		for _, s := range now {
			if tricklers[s.name] {
				all = append(all, closing{s, &trickle})
			}
		}
	}
	return all
}

// owed returns the connection as it was at the last tick, or nil unless blocks
// were asked of it then and are now.
func (j *judge) owed(s seen) *connection {
	if last := j.conns[s.peer]; last != nil && last.owes && s.owes {
		return last
	}
	return nil
}

func count(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

// tricklers adds a tick to the records of peers and returns who sent next to
// nothing for too long.
func (j *judge) tricklers(owing map[string]record) map[string]bool {
	found := make(map[string]bool)
	for name, tick := range owing {
		r := j.names[name]
		if r == nil {
			r = &record{}
			j.names[name] = r
		}
		r.ticks++
		r.bytes += tick.bytes
		r.data += tick.data
		if r.ticks < tricklingTicks {
			continue
		}
		// Blocks count, and of what else came as much as one that is on its way.
		found[name] = r.data+min(BlockSize, r.bytes-r.data) < tricklingTicks*j.absurd
		delete(j.names, name)
	}
	return found
}
