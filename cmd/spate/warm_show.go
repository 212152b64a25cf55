package main

import (
	"cmp"
	"fmt"
	"io"
	"time"

	"github.com/spate-project/spate/cmd/internal/agent"
	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/prefetch/warm"
)

// A warmView is a version of a warm set.
type warmView struct {
	Set      string       `json:"set"` // its name in the registry
	Pool     string       `json:"pool"`
	Version  int64        `json:"version"`
	Digest   string       `json:"digest,omitempty"`   // of its manifest
	Previous string       `json:"previous,omitempty"` // of that of the version before
	SignedBy string       `json:"signedBy,omitempty"`
	Entries  []warm.Entry `json:"entries"`
}

func viewWarm(reference string, s warm.Signed) warmView {
	return warmView{
		Set: reference, Pool: s.Pool, Version: s.Version, Digest: s.Digest.String(), Previous: s.Previous.String(),
		SignedBy: s.SignedBy, Entries: append([]warm.Entry{}, s.Entries...),
	}
}

// print writes v for people.
func (v warmView) print(w io.Writer) error {
	fmt.Fprintf(w, "warm set of pool %s: version %d, signed by %s\n%s@%s\n", v.Pool, v.Version, cmp.Or(v.SignedBy, "nobody"), v.Set, v.Digest)
	if len(v.Entries) == 0 {
		return nil
	}
	t := ui.NewTable("REFERENCE", "DIGEST", "PRIORITY", "SEEDS", "ADDED")
	for _, e := range v.Entries {
		t.Row(e.Name(), shortDigest(e.Digest()), e.Priority, e.Seeds, e.Added.Local().Format(time.DateTime))
	}
	return t.Print(w)
}

func printWarmHistory(list []warmView) func(io.Writer) error {
	return func(w io.Writer) error {
		t := ui.NewTable("VERSION", "DIGEST", "ENTRIES", "SIGNED BY")
		for _, v := range list {
			t.Row(v.Version, v.Digest, len(v.Entries), v.SignedBy)
		}
		return t.Print(w)
	}
}

// printWarm shows how far a node is with its warm sets.
func printWarm(w io.Writer, sets []agent.WarmStatus) error {
	for _, s := range sets {
		if s.Version > 0 {
			fmt.Fprintf(w, "warm set %s: version %d, signed by %s\n", s.Set, s.Version, cmp.Or(s.SignedBy, "somebody; its entries are not known until the registry answers"))
		}
		if s.Problem != "" {
			fmt.Fprintf(w, "warm set %s: nothing new is taken up: %s\n", s.Set, s.Problem)
		}
		if len(s.Entries) == 0 {
			continue
		}
		t := ui.NewTable("WARM", "STATE", "HERE", "SIZE", "WHY")
		for _, e := range s.Entries {
			here := "-"
			if e.Total > 0 {
				here = percent(e.Have, e.Total)
			}
			t.Row(e.Name(), e.State, here, ui.Size(e.Total), cmp.Or(e.Error, "-"))
		}
		if err := t.Print(w); err != nil {
			return err
		}
	}
	return nil
}
