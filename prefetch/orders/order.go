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
	"time"

	"oras.land/oras-go/v2/registry"
)

// PoolLabel is the label that says which pool a node is in.
const PoolLabel = "pool"

// Limits of one order.
const (
	MaxReferences = 64
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
	References []string `json:"references"`      // HOST[:PORT]/NAME@DIGEST each
	Pool       string   `json:"pool,omitempty"`  // every node when empty
	Ready      int      `json:"ready,omitempty"` // how many nodes are enough; 0 is all of the pool that are connected when the order is accepted

	// Deadline is when the order ends, in seconds after it is accepted; 0 is DefaultLife.
	Deadline float64 `json:"deadlineSeconds,omitempty"`

	// IntoMemory asks for the bytes to be in the page cache too, as far as there is room.
	IntoMemory bool `json:"intoMemory,omitempty"`
}

// ID returns the name of the order that r makes: 16 hex digits, which follow from r alone.
func (r Request) ID() string {
	b, _ := json.Marshal(r) // strings and finite numbers
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// check reports whether a foreign request is within bounds.
func (r Request) check() error {
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
	if !(r.Deadline >= 0 && r.Deadline <= MaxDeadline.Seconds()) {
		return fmt.Errorf("a deadline of %v seconds is outside 0..%v", r.Deadline, MaxDeadline.Seconds())
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
	if err := o.Request.check(); err != nil {
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
