// Package warm is the warm set of a pool: the references that each of its nodes
// always holds, the new ones too.
//
// A set is an OCI artifact in the registry: signed, and found by the pool's name.
// Each version names the one that it replaced. It only says what to fetch early;
// whoever fetches an entry admits it like any other reference.
package warm

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"oras.land/oras-go/v2/registry"

	"github.com/spate-project/spate/cache/piece"
)

// Bounds of a set.
const (
	MaxEntries   = 256
	MaxPriority  = 1000 // and the least is its negative
	MaxSeeds     = 1000
	maxReference = 1 << 10 // bytes
	maxSet       = 1 << 20 // bytes, as JSON
)

// A Set is one version of a pool's warm set.
type Set struct {
	Pool    string  `json:"pool"`
	Version int64   `json:"version"` // 1 is the first; 0 is the empty set before it
	Entries []Entry `json:"entries"` // in the order in which they are fetched
}

// An Entry is one reference of a set.
type Entry struct {
	Reference string    `json:"reference"`          // HOST[:PORT]/NAME@DIGEST
	Tag       string    `json:"tag,omitempty"`      // that it had when it was added; empty when it was added by digest
	Priority  int       `json:"priority,omitempty"` // what has a higher one is fetched first
	Added     time.Time `json:"added"`

	// Seeds is how many nodes of each zone fetch it first: the others begin when
	// these hold it, with peers. 0 is all at once.
	Seeds int `json:"seeds,omitempty"`
}

// Name returns what the entry was added as: HOST[:PORT]/NAME:TAG, or by its digest.
func (e Entry) Name() string {
	ref, err := registry.ParseReference(e.Reference)
	if err != nil || e.Tag == "" {
		return e.Reference
	}
	ref.Reference = e.Tag
	return ref.String()
}

// Digest returns the digest of the entry's manifest.
func (e Entry) Digest() string { return e.Reference[strings.LastIndex(e.Reference, "@")+1:] }

// Check reports whether a set may have the entry.
func (e Entry) Check() error {
	if len(e.Reference) > maxReference {
		return fmt.Errorf("a reference of %d bytes, at most %d are accepted", len(e.Reference), maxReference)
	}
	ref, err := registry.ParseReference(e.Reference)
	if err != nil {
		return fmt.Errorf("reference %q: %w", e.Reference, err)
	}
	if _, err := piece.ParseDigest(ref.Reference); err != nil {
		return fmt.Errorf("reference %q names no digest: a tag may move", e.Reference)
	}
	if ref.String() != e.Reference {
		return fmt.Errorf("reference %q is written %s, so that an entry has one name", e.Reference, ref)
	}
	if e.Tag != "" && !isTag(e.Tag) {
		return fmt.Errorf("reference %q: %.40q is no tag", e.Reference, e.Tag)
	}
	if e.Priority < -MaxPriority || e.Priority > MaxPriority {
		return fmt.Errorf("reference %q: priority %d is outside %d..%d", e.Reference, e.Priority, -MaxPriority, MaxPriority)
	}
	if e.Seeds < 0 || e.Seeds > MaxSeeds {
		return fmt.Errorf("reference %q: %d seeds are outside 0..%d", e.Reference, e.Seeds, MaxSeeds)
	}
	return nil
}

// Add puts e into the set, in place of an entry with its name or its reference.
// One that differs in nothing but the time stays as it is.
func (s *Set) Add(e Entry) error {
	if err := e.Check(); err != nil {
		return err
	}
	same := func(x Entry) bool { return x.Reference == e.Reference || x.Name() == e.Name() }
	for _, x := range s.Entries {
		kept := x
		if kept.Added = e.Added; kept == e {
			return nil
		}
	}
	entries := append(slices.DeleteFunc(slices.Clone(s.Entries), same), e)
	if len(entries) > MaxEntries {
		return fmt.Errorf("the warm set of pool %s has %d entries, and no more have room: remove some first", s.Pool, MaxEntries)
	}
	s.Entries = entries
	s.sort()
	return nil
}

// Remove takes out the entry with that name or reference, and reports whether there was one.
func (s *Set) Remove(name string) bool {
	n := len(s.Entries)
	s.Entries = slices.DeleteFunc(slices.Clone(s.Entries), func(e Entry) bool { return e.Name() == name || e.Reference == name })
	return len(s.Entries) < n
}

// sort puts the entries in their order: by priority, then the oldest first.
func (s *Set) sort() { slices.SortFunc(s.Entries, Entry.Compare) }

// Compare is negative when e is fetched before x. No two entries of a set are equal in it.
func (e Entry) Compare(x Entry) int {
	return cmp.Or(cmp.Compare(x.Priority, e.Priority), e.Added.Compare(x.Added), cmp.Compare(e.Reference, x.Reference))
}

// plain is Set without its methods.
type plain Set

// MarshalJSON refuses what UnmarshalJSON would.
func (s Set) MarshalJSON() ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if s.Entries == nil {
		s.Entries = []Entry{}
	}
	return json.Marshal(plain(s))
}

// UnmarshalJSON refuses what is beyond the bounds of this package, and entries
// that are not in their order.
func (s *Set) UnmarshalJSON(b []byte) error {
	if len(b) > maxSet {
		return fmt.Errorf("a warm set of %d bytes is longer than %d", len(b), maxSet)
	}
	var x plain
	if err := json.Unmarshal(b, &x); err != nil {
		return err
	}
	if err := Set(x).check(); err != nil {
		return err
	}
	*s = Set(x)
	return nil
}

func (s Set) check() error {
	if err := CheckPool(s.Pool); err != nil {
		return err
	}
	if s.Version < 1 {
		return fmt.Errorf("a warm set has version %d", s.Version)
	}
	if len(s.Entries) > MaxEntries {
		return fmt.Errorf("a warm set has %d entries, more than %d", len(s.Entries), MaxEntries)
	}
	seen := make(map[string]bool, 2*len(s.Entries))
	for i, e := range s.Entries {
		if err := e.Check(); err != nil {
			return fmt.Errorf("entry %d of a warm set: %w", i, err)
		}
		if seen[e.Reference] || seen[e.Name()] {
			return fmt.Errorf("entry %d of a warm set, %s, is listed twice", i, e.Name())
		}
		seen[e.Reference], seen[e.Name()] = true, true
		if i > 0 && s.Entries[i-1].Compare(e) >= 0 {
			return errors.New("the entries of a warm set are not in their order")
		}
	}
	return nil
}

// tagged is what tags are (distribution-spec, "Pulling manifests").
var tagged = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)

func isTag(s string) bool { return tagged.MatchString(s) }

// CheckPool reports whether a pool of that name can have a warm set: the name
// is the tag that the set is found by.
func CheckPool(pool string) error {
	if !isTag(pool) {
		return fmt.Errorf("pool %.40q can have no warm set: its name has to be a tag, of at most 128 letters, digits and . _ -", pool)
	}
	return nil
}
