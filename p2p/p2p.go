// Package p2p is the mesh: it brings an object's pieces from peers, and from
// the origin what no peer holds, into a Holding.
//
// One swarm stands for one object. Peers exchange pieces through an Engine
// (p2p/torrent); the origin's pieces are shared out by a tracker (p2p/tracker)
// so that simultaneous starters draw different ones and pass them on. What a
// reader waits for comes first, whatever the order of the fill.
package p2p

import (
	"context"
	"io"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p/tracker"
)

// A Holding is one object's pieces on this node: where the mesh puts what it
// brings and takes what it passes on. A cache's object is one. Whatever comes
// in, a piece is present only with the bytes that the tree proves, and then
// stays. It is safe for concurrent use.
type Holding interface {
	Reader
	Writer

	// OnPresent registers f to be called for each piece that becomes present
	// from now on, once a piece and without locks held.
	OnPresent(f func(i int))
}

// A Reader gives out verified pieces.
type Reader interface {
	Tree() *piece.Tree
	Has(i int) bool

	// Wait returns when piece i is present, or with the context's error.
	Wait(ctx context.Context, i int) error

	// ReadAt reads verified bytes, as io.ReaderAt has it; none at all, and
	// piece.ErrNotHere, where a piece of the range is absent.
	ReadAt(p []byte, off int64) (int, error)
}

// A Writer takes pieces in, whole or block by block; nothing becomes readable
// unverified. All of its methods borrow the bytes that they are given, and do
// nothing where the piece is present already.
type Writer interface {
	// Put stores a whole piece. It refuses the zero Verified and another object's.
	Put(v piece.Verified) error

	// WriteBlock stores bytes of piece i at off within the piece.
	WriteBlock(i int, p []byte, off int64) error

	// Commit verifies the blocks of piece i and makes it present. The error is
	// a *piece.WrongBytesError when they do not match; the piece then starts anew.
	Commit(i int) error
}

// An Origin is where an object's bytes come from when no peer holds them.
type Origin interface {
	// Range returns the object's bytes [off, off+n). The context governs the
	// reading too. The reader ends early only with an error.
	Range(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

// OriginFunc is an Origin that is a function.
type OriginFunc func(ctx context.Context, off, n int64) (io.ReadCloser, error)

// Range calls f.
func (f OriginFunc) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	return f(ctx, off, n)
}

// A Tracker introduces peers and leases origin pieces. *tracker.Client is one.
// Lease's error is tracker.ErrUnknown when the node has to announce first.
type Tracker interface {
	Announce(ctx context.Context, a tracker.Announce) (tracker.Peers, error)
	Lease(ctx context.Context, r tracker.LeaseRequest) (tracker.Lease, error)
}

// Urgency says how soon a piece is wanted.
type Urgency int

// From not wanted to waited for.
const (
	None  Urgency = iota
	Fill          // some time
	Ahead         // a reader comes this way
	Now           // a reader waits
)

// An Engine exchanges pieces with peers.
type Engine interface {
	// Join enters the swarm of h's object: it shares what h holds, now and
	// later, and puts the blocks that peers send into h.
	Join(h Holding) (Swarm, error)

	// Addr returns where peers reach this node, host:port; empty when they cannot.
	Addr() string

	// Banned returns the names of peers that the engine refuses now.
	Banned() []string
}

// A Swarm is an Engine's part in one object. It is safe for concurrent use.
type Swarm interface {
	// Want sets how soon pieces [first, last) are wanted.
	Want(first, last int, u Urgency)

	// AddPeers makes peers known; known ones are ignored.
	AddPeers(peers []tracker.Peer)

	// Held reports whether a connected peer holds piece i.
	Held(i int) bool

	// Spread returns how many peers are connected, and how many of them hold piece i.
	Spread(i int) (holders, peers int)

	// Stats returns what was exchanged so far.
	Stats() SwarmStats

	// Leave drops the swarm and its connections.
	Leave()
}

// SwarmStats are counts since a swarm was joined.
type SwarmStats struct {
	Peers    int   // connected now
	Received int64 // useful bytes from peers
	Wasted   int64 // blocks from peers that were there already
	Sent     int64 // bytes of pieces to peers
	Verified int64 // pieces from peers that matched the root
	Refused  int64 // pieces from peers that did not match the root
}
