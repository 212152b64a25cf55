package mirror

import (
	"context"
	"io"
	"sync/atomic"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Blobs is what the mirror gives out without asking the origin.
// Implementations are safe for concurrent use.
type Blobs interface {
	// Open opens blob, which the manifest that was admitted as reference,
	// HOST/NAME@DIGEST, lists. The reader gives verified bytes, blob.Size of
	// them; ctx governs it too, and the mirror closes it.
	//
	// Errors: piece.ErrNotTrusted ends the request; after any other, of which
	// piece.ErrNotHere is the ordinary one, blob is passed on.
	Open(ctx context.Context, reference string, blob ocispec.Descriptor) (io.ReadSeekCloser, error)

	// Pass tells how blob comes, which an admitted manifest lists and which
	// could not be opened. It may wait for another node that has it or
	// is about to; ctx governs the waiting, which has an end of its own too.
	Pass(ctx context.Context, blob ocispec.Descriptor) Passed
}

// A Passed is a blob from the mesh, or the advice to ask the origin.
type Passed struct {
	Reason Reason // one of Reasons, but not ByIndex

	// Reader gives the blob, all of which matched its digest. The mirror closes
	// it. Nil says that the origin is to be asked.
	Reader io.ReadSeekCloser

	// Sink takes what the origin sends, so that other nodes may have it. Nil
	// where that is of no use.
	Sink Sink
}

// A Sink takes a blob from its first byte to its last. It is not safe for concurrent use.
type Sink interface {
	// Write takes all of p, which it does not keep. It never fails: what becomes
	// of the bytes is not the concern of who gives them.
	io.Writer

	// Commit says that the blob is whole and has its digest.
	Commit()

	// Close ends the taking. Without Commit before it the bytes are of no use.
	// It is called once, and does not wait for what becomes of them.
	Close()
}

// A Reason says why a blob took the way that it took.
type Reason string

// From the mesh.
const (
	ByIndex Reason = "index" // a trusted index lists it
	ByHint  Reason = "hint"  // no trusted index lists it: all of it was fetched and checked first
)

// From the origin: no trusted index lists the blob, and
const (
	Draws     Reason = "draw"       // this node draws it on behalf of all
	Late      Reason = "late"       // it did not come from another node in time
	WrongHint Reason = "wrong-hint" // what another node said of its pieces is wrong
	Failing   Reason = "failing"    // peers, or this node's disk, failed
	NoTracker Reason = "no-tracker" // no tracker says who has it
	NoMesh    Reason = "no-mesh"    // this node has no peers
	Unfit     Reason = "unfit"      // it is too small to be worth it, too large, or not named by SHA-256
)

// A tally counts blobs by why they took their way. It has all Reasons from the start.
type tally map[Reason]*atomic.Int64

func newTally() tally {
	t := tally{}
	for _, r := range Reasons() {
		t[r] = new(atomic.Int64)
	}
	return t
}

// Blobs returns how many blobs were given out since the start, whole or in part, for each of Reasons.
func (m *Mirror) Blobs() map[Reason]int64 {
	counts := make(map[Reason]int64, len(m.reasons))
	for r, n := range m.reasons {
		counts[r] = n.Load()
	}
	return counts
}

// Reasons returns all there are.
func Reasons() []Reason {
	return []Reason{ByIndex, ByHint, Draws, Late, WrongHint, Failing, NoTracker, NoMesh, Unfit}
}

// Path returns r after where the blob came from, such as mesh-index or origin-draw.
func (r Reason) Path() string {
	if r == ByIndex || r == ByHint {
		return fromMesh.String() + "-" + string(r)
	}
	return fromOrigin.String() + "-" + string(r)
}
