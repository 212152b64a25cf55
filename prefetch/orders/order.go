// Package orders is how the nodes of a pool are asked to fetch references before
// anybody waits for them, and how it is known which of them have done so.
//
// A Board keeps the orders; it runs in the registry. Agents connect out to it and
// stay connected: they say what they are and how far they are, and learn what they
// are to fetch (Report, Work). Orders are on disk and survive a restart of the
// board. All that it knows of nodes is soft, and whole again once each of them has
// reported. Agents keep nothing: one that restarts is given its orders again, and
// finds in its cache what it had of them.
package orders

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"oras.land/oras-go/v2/registry"
)

// PoolLabel is the label that says which pool a node is in.
const PoolLabel = "pool"

// Limits of one order.
const (
	MaxReferences = 64
	MaxNodes      = 1024    // by name
	maxReference  = 1 << 10 // bytes
	maxReady      = maxNodes
	maxName       = 253 // bytes of a node's name, a pool, a label
)

// DefaultLife is when an order without a deadline ends, and MaxDeadline the longest that it may have.
const (
	DefaultLife = 24 * time.Hour
	MaxDeadline = 7 * 24 * time.Hour
)

// A Request asks for references to be held by nodes of a pool. Requests that are
// equal are one order.
type Request struct {
	References []string `json:"references"`          // HOST[:PORT]/NAME@DIGEST each
	Pool       string   `json:"pool,omitempty"`      // every node when empty
	NodeNames  []string `json:"nodeNames,omitempty"` // instead of a pool: these, sorted, whether they are connected or not
	Ready      int      `json:"ready,omitempty"`     // how many nodes are enough; 0 is all of NodeNames, or of the pool that are connected when the order is accepted

	// Deadline is when the order ends, in seconds after it is accepted; 0 is DefaultLife.
	Deadline float64 `json:"deadlineSeconds,omitempty"`

	// IntoMemory asks for the bytes to be in the page cache too, as far as there is room.
	IntoMemory bool `json:"intoMemory,omitempty"`

	Plan Plan `json:"plan,omitzero"`

	// Rate is how many bytes a second a node fetches for the order, at most; 0 is no limit.
	Rate int64 `json:"rate,omitempty"`

	// Between is when nodes fetch for the order. Its deadline does not wait for that.
	Between Hours `json:"between,omitempty"`
}

// ID returns the name of the order that r makes: 16 hex digits, which follow from r alone.
func (r Request) ID() string {
	b, _ := json.Marshal(r) // strings and finite numbers
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// isFor reports whether the order is for a node of that name and with those labels.
func (r Request) isFor(name string, labels map[string]string) bool {
	if len(r.NodeNames) > 0 {
		return slices.Contains(r.NodeNames, name)
	}
	return isIn(r.Pool, labels)
}

// Check reports whether a board accepts r. The error says what is wrong with it.
func (r Request) Check() error {
	if n := len(r.References); n == 0 || n > MaxReferences {
		return fmt.Errorf("%d references are outside 1..%d", n, MaxReferences)
	}
	for _, s := range r.References {
		if len(s) > maxReference {
			return fmt.Errorf("a reference of %d bytes, at most %d are accepted", len(s), maxReference)
		}
		ref, err := registry.ParseReference(s)
		if err != nil {
			return fmt.Errorf("reference %q: %w", s, err)
		}
		if ref.ValidateReferenceAsDigest() != nil {
			return fmt.Errorf("reference %q names no digest: a tag may move while nodes fetch it", s)
		}
	}
	if len(r.Pool) > maxName {
		return fmt.Errorf("the name of a pool has %d bytes, at most %d are accepted", len(r.Pool), maxName)
	}
	if r.Ready < 0 || r.Ready > maxReady {
		return fmt.Errorf("%d nodes are outside 0..%d", r.Ready, maxReady)
	}
	if err := r.checkNodes(); err != nil {
		return err
	}
	if !(r.Deadline >= 0 && r.Deadline <= MaxDeadline.Seconds()) {
		return fmt.Errorf("a deadline of %v seconds is outside 0..%v", r.Deadline, MaxDeadline.Seconds())
	}
	if r.Rate < 0 {
		return fmt.Errorf("a rate of %d bytes a second is less than none", r.Rate)
	}
	if err := r.Plan.check(); err != nil {
		return err
	}
	return r.Between.check()
}

func (r Request) checkNodes() error {
	switch n := len(r.NodeNames); {
	case n == 0:
		return nil
	case r.Pool != "":
		return fmt.Errorf("an order is for a pool or for nodes by name, not for both")
	case n > MaxNodes:
		return fmt.Errorf("%d nodes by name, at most %d are accepted; give them a pool", n, MaxNodes)
	case r.Ready > n:
		return fmt.Errorf("%d of %d nodes can never be ready", r.Ready, n)
	}
	for i, name := range r.NodeNames {
		if name == "" || len(name) > maxName {
			return fmt.Errorf("node name %.40q of %d bytes is outside 1..%d", name, len(name), maxName)
		}
		if i > 0 && r.NodeNames[i-1] >= name {
			return fmt.Errorf("nodes by name have to be sorted, each once; %.40q is not after %.40q", name, r.NodeNames[i-1])
		}
	}
	return nil
}

// A State is where an order stands. All but Active are for good, until the same
// order is placed again.
type State string

// The states of an order.
const (
	Active    State = "active"
	Done      State = "done"      // enough nodes held all of it at the same time; the others go on until it ends
	Late      State = "late"      // its deadline passed before
	Refused   State = "refused"   // policies of nodes refuse it, and too few nodes are left
	Cancelled State = "cancelled" // somebody asked for that
)

func (s State) valid() bool {
	switch s {
	case Active, Done, Late, Refused, Cancelled:
		return true
	}
	return false
}

// An Order is a Request that a board has accepted.
type Order struct {
	ID string `json:"id"`
	Request

	Run     int       `json:"run"`     // counts how often the order was begun, from 1 on
	Need    int       `json:"need"`    // how many nodes are enough
	Members []string  `json:"members"` // nodes of the pool that were connected when it was begun
	Created time.Time `json:"created"` // when it was begun
	Ends    time.Time `json:"ends"`    // from then on nodes fetch nothing for it
	State   State     `json:"state"`
}

// check reports whether an order that was read from a file could have been written there.
func (o Order) check() error {
	if err := o.Request.Check(); err != nil {
		return err
	}
	if o.ID != o.Request.ID() || o.Run < 1 || o.Need < 1 || len(o.Members) > maxNodes || !o.State.valid() {
		return errors.New("it is none that was accepted")
	}
	return nil
}

// offered reports whether nodes are to work on the order.
func (o Order) offered(now time.Time) bool {
	return (o.State == Active || o.State == Done) && now.Before(o.Ends)
}
