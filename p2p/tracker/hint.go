package tracker

import (
	"fmt"
	"time"

	"github.com/spate-project/spate/cache/piece"
)

// HintPath is where a tracker takes and gives hints, below its base URL. Bodies are JSON, by POST.
const HintPath = "/spate/v1/hint"

// maxHint bounds a hint request, in bytes: the largest piece layer in base64, and the rest.
const maxHint = 4 << 20

// A Hint says how a blob is cut into pieces that its swarm exchanges. Nobody
// vouches for it: who fetches by it believes nothing before the whole blob has the
// digest that was asked for.
type Hint struct {
	piece.Object
	Layer []byte `json:"layer,omitempty"` // as piece.NewTree takes it
	From  string `json:"from"`            // the node that gave it, by its own word; the tracker fills it in
}

// A HintRequest asks how a blob is cut into pieces, and tells what became of an
// earlier answer. A node has one question about a blob at a time.
type HintRequest struct {
	Node string       `json:"node"`
	Blob piece.Digest `json:"blob"`

	// Give is the blob's hint: the node holds all of it and is in its swarm.
	Give *Hint `json:"give,omitempty"`

	// Wrong is the root of a hint by which the blob did not come.
	Wrong *piece.Root `json:"wrong,omitempty"`

	// Failed gives the right to draw back, and asks for nothing.
	Failed bool `json:"failed,omitempty"`
}

// A HintAnswer answers a HintRequest: with a hint, with the right to draw the
// blob from its origin, or with when to ask again because another node draws it.
type HintAnswer struct {
	Hint *Hint `json:"hint,omitempty"`

	// Draw says that the node, and nobody else, is to draw the blob and then give
	// its hint. It keeps the right by asking again after Again.
	Draw  bool    `json:"draw,omitempty"`
	Again Seconds `json:"again,omitempty"`
}

const (
	// soonestHint and latestHint bound how long a node waits before it asks again
	// for a hint: longer the longer the blob takes.
	soonestHint = 100 * time.Millisecond
	latestHint  = 2 * time.Second
)

func (r *HintRequest) check() error {
	if err := checkName(r.Node); err != nil {
		return err
	}
	if r.Give == nil {
		return nil
	}
	if r.Give.Digest != r.Blob {
		return fmt.Errorf("a hint for blob %s is about %s", r.Blob, r.Give.Digest)
	}
	if r.Give.Size == 0 {
		return fmt.Errorf("a hint for blob %s, which has no bytes", r.Blob)
	}
	_, err := piece.NewTree(r.Give.Object, r.Give.Layer)
	return err
}
