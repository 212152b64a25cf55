// Package tracker is the meeting point of a mesh: it tells nodes of each other
// and shares out the origin's pieces among them.
//
// Every node announces what it holds and learns its peers (the part of BEP 3's
// tracker). Beyond that the tracker leases origin pieces: a piece that no live
// node holds is given to one asker at a time, for a limited time, so that N
// simultaneous starters draw N different pieces and pass them on. The origin
// then sends each byte about once, whatever N is.
//
// Of blobs whose pieces no signed index tells it passes on hints, which nobody
// has to believe, and lets one node at a time draw what has none.
//
// All state is soft. A tracker that lost it is whole again after every node has announced once.
package tracker

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/spate-project/spate/cache/piece"
)

// The paths that a tracker serves, below its base URL. Bodies are JSON, by POST.
const (
	AnnouncePath = "/spate/v1/announce"
	LeasePath    = "/spate/v1/lease"
)

// Limits of one message.
const (
	MaxBody   = 8 << 20 // bytes of an announce; a lease request is far smaller
	MaxSwarms = 4096    // in an announce
	maxLeases = 1 << 20 // bytes of a lease request
	maxAnswer = 64 << 20
	maxPieces = 4 * piece.TargetPieces
	maxName   = 253
	maxLease  = 64 // pieces
	maxPeers  = 50 // of one swarm in one answer

	MaxBanned = 256 // names in a lease request
	MaxSpans  = 64  // and spans of pieces
)

// A SwarmID names the swarm of one object. Nodes whose indexes disagree about
// the object in any value never meet.
type SwarmID [sha256.Size]byte

// SwarmOf returns the swarm of o: SHA-256 over its digest, size, piece length and root.
func SwarmOf(o piece.Object) SwarmID {
	return sha256.Sum256(fmt.Appendf(nil, "spate swarm 1\n%s\n%d\n%d\n%s\n", o.Digest, o.Size, o.PieceLength, o.Root))
}

// String returns 64 hex digits.
func (id SwarmID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText returns what String returns.
func (id SwarmID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (id *SwarmID) UnmarshalText(b []byte) error {
	if len(b) != hex.EncodedLen(len(id)) {
		return fmt.Errorf("swarm id %q: want %d hex digits", b, hex.EncodedLen(len(id)))
	}
	_, err := hex.Decode(id[:], b)
	return err
}

// An Announce says which swarms a node is in and what it holds of each. It
// replaces all that the node announced before; a swarm no longer listed is left.
type Announce struct {
	Node   string    `json:"node"`           // its mesh identity's name
	Addr   string    `json:"addr,omitempty"` // host:port where peers reach it; empty when they cannot
	Zone   string    `json:"zone,omitempty"` // within which traffic is cheap
	Swarms []Holding `json:"swarms"`         // each swarm once
}

// UnmarshalJSON reads one swarm after the other, so that a short message
// cannot ask for much more memory than its own length.
func (a *Announce) UnmarshalJSON(b []byte) error {
	var m struct {
		Node   string          `json:"node"`
		Addr   string          `json:"addr"`
		Zone   string          `json:"zone"`
		Swarms json.RawMessage `json:"swarms"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	*a = Announce{Node: m.Node, Addr: m.Addr, Zone: m.Zone}
	if len(m.Swarms) == 0 || string(m.Swarms) == "null" {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(m.Swarms))
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return errors.New("swarms is not a list")
	}
	for dec.More() {
		if len(a.Swarms) == MaxSwarms {
			return fmt.Errorf("more than %d swarms", MaxSwarms)
		}
		var h Holding
		if err := dec.Decode(&h); err != nil {
			return err
		}
		a.Swarms = append(a.Swarms, h)
	}
	return nil
}

// A Holding is one swarm in an Announce.
type Holding struct {
	Swarm  SwarmID `json:"swarm"`
	Pieces int     `json:"pieces"` // of the whole object
	Have   Bitmap  `json:"have"`
}

// Peers answers an Announce. A large swarm is answered with a random part of
// it, another one every time; nodes that hold everything are not told of each other.
//
// Nodes are told of those in their own zone. One node of each zone, its bridge,
// is also told of the other zones' bridges. As it asks for each piece once, a
// zone gets about one copy from all other zones and the origin together.
type Peers struct {
	Interval Seconds            `json:"interval"` // until the next Announce is due
	Swarms   map[SwarmID][]Peer `json:"swarms"`

	// Keeps are the swarms of which the node is the keeper of its zone: of the
	// nodes there that hold everything the one that is to let go of it last.
	Keeps []SwarmID `json:"keeps,omitempty"`
}

// A Peer is another node of a swarm.
type Peer struct {
	Node string `json:"node"`
	Addr string `json:"addr"`
}

// A LeaseRequest reports finished origin pieces of one swarm and asks for more.
// The node must have announced itself in the swarm.
type LeaseRequest struct {
	Node   string  `json:"node"`
	Swarm  SwarmID `json:"swarm"`
	Done   []int   `json:"done,omitempty"`   // leased before, now verified and held
	Failed []int   `json:"failed,omitempty"` // leased before, given back

	// Want names a piece that a reader waits for; -1 asks for the next ones in order.
	Want int `json:"want"`

	// Among are the pieces that the next ones in order are taken from, and the
	// order; all of the swarm's where it is empty.
	Among []Span `json:"among,omitempty"`

	// Read says that a reader comes to these pieces, as one does in any case to
	// Want: what is only to be there some time has to wait for them.
	Read bool `json:"read,omitempty"`

	// Unheld says that none of the node's peers holds Want and what follows,
	// whatever the tracker believes; only a live lease then stands in the way.
	Unheld bool `json:"unheld,omitempty"`

	// Backlog is how many pieces the node has drawn that most of its peers lack.
	// Of the nodes that ask in order those with less of it come first, so that
	// who is slow to pass on draws less.
	Backlog int `json:"backlog,omitempty"`

	// Banned names peers that the node will have nothing to do with: to it,
	// and to it alone, what they say they hold is not held.
	Banned []string `json:"banned,omitempty"`

	Max int `json:"max"` // how many pieces at most; 0 only reports
}

// A Span is consecutive pieces.
type Span struct {
	First int `json:"first"`
	Count int `json:"count"`
}

// A Lease answers a LeaseRequest: consecutive pieces that the node is to
// draw from the origin. None are given when all are held or leased.
type Lease struct {
	First int `json:"first"`
	Count int `json:"count"`

	// Open is how many of the swarm's pieces no live node holds, leased ones
	// included: when it is 0, the origin is not needed any more.
	Open int `json:"open"`

	// Again is when to ask again for pieces in order that none were given of
	// because others come first; 0 when that is not the reason.
	Again Seconds `json:"again,omitempty"`
}

// Seconds is a duration that JSON carries as seconds.
type Seconds time.Duration

// MarshalJSON writes seconds as a number.
func (s Seconds) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(s).Seconds()) }

// UnmarshalJSON reads a number of seconds between 0 and one day.
func (s *Seconds) UnmarshalJSON(b []byte) error {
	var f float64
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	if f < 0 || f > 86400 {
		return fmt.Errorf("%v seconds is out of range", f)
	}
	*s = Seconds(f * float64(time.Second))
	return nil
}

// check reports whether a foreign announce is within bounds.
func (a *Announce) check() error {
	if err := checkName(a.Node); err != nil {
		return err
	}
	if len(a.Zone) > maxName {
		return fmt.Errorf("zone name of %d bytes, at most %d are accepted", len(a.Zone), maxName)
	}
	if a.Addr != "" {
		host, port, err := net.SplitHostPort(a.Addr)
		if err != nil || host == "" || port == "" || len(a.Addr) > maxName+6 {
			return fmt.Errorf("address %q is not host:port", a.Addr)
		}
		if ip, err := netip.ParseAddr(host); err == nil && ip.Unmap().WithZone("").IsUnspecified() {
			return fmt.Errorf("address %q is where a node listens, not where peers reach it: announce a host name or an address of its own", a.Addr)
		}
	}
	if len(a.Swarms) > MaxSwarms {
		return fmt.Errorf("%d swarms, at most %d are accepted", len(a.Swarms), MaxSwarms)
	}
	seen := make(map[SwarmID]bool, len(a.Swarms))
	for _, h := range a.Swarms {
		if seen[h.Swarm] {
			return fmt.Errorf("swarm %s is listed twice", h.Swarm)
		}
		seen[h.Swarm] = true
		if h.Pieces < 1 || h.Pieces > maxPieces {
			return fmt.Errorf("swarm %s: %d pieces is outside 1..%d", h.Swarm, h.Pieces, maxPieces)
		}
		if len(h.Have) > 0 && len(h.Have) != bitmapLen(h.Pieces) {
			return fmt.Errorf("swarm %s: a bitmap of %d bytes for %d pieces", h.Swarm, len(h.Have), h.Pieces)
		}
	}
	return nil
}

func (r *LeaseRequest) check() error {
	if err := checkName(r.Node); err != nil {
		return err
	}
	if r.Max < 0 || r.Want < -1 {
		return fmt.Errorf("want %d, at most %d pieces: out of range", r.Want, r.Max)
	}
	if len(r.Among) > MaxSpans {
		return fmt.Errorf("pieces among %d spans, at most %d are accepted", len(r.Among), MaxSpans)
	}
	all := 0
	for _, s := range r.Among {
		if s.First < 0 || s.First >= maxPieces || s.Count < 1 || s.Count > maxPieces-all {
			return fmt.Errorf("%d pieces from %d on, after %d others: out of range", s.Count, s.First, all)
		}
		all += s.Count
	}
	if len(r.Banned) > MaxBanned {
		return fmt.Errorf("%d banned peers, at most %d are accepted", len(r.Banned), MaxBanned)
	}
	if r.Backlog < 0 || r.Backlog > maxPieces {
		return fmt.Errorf("a backlog of %d pieces is out of range", r.Backlog)
	}
	if len(r.Done)+len(r.Failed) > maxPieces {
		return errors.New("more pieces reported than an object has")
	}
	return nil
}

func checkName(s string) error {
	if s == "" || len(s) > maxName {
		return fmt.Errorf("node name of %d bytes is outside 1..%d", len(s), maxName)
	}
	return nil
}

// A Bitmap has one bit a piece, the first piece in the highest bit of the
// first byte, as BEP 3's bitfield. JSON carries it in base64.
type Bitmap []byte

func bitmapLen(n int) int { return (n + 7) / 8 }

// NewBitmap returns a Bitmap of n clear bits.
func NewBitmap(n int) Bitmap { return make(Bitmap, bitmapLen(n)) }

// Set sets bit i.
func (b Bitmap) Set(i int) { b[i/8] |= 0x80 >> (i % 8) }

func (b Bitmap) clear(i int) { b[i/8] &^= 0x80 >> (i % 8) }

// Has reports bit i; bits beyond the end are clear.
func (b Bitmap) Has(i int) bool { return i/8 < len(b) && b[i/8]&(0x80>>(i%8)) != 0 }
