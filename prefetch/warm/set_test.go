package warm_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/spate-project/spate/prefetch/warm"
)

// entry returns one of the model called name, as its tag v1 was when bytes were its manifest.
func entry(name, bytes string, priority int, minute int) warm.Entry {
	return warm.Entry{
		Reference: "127.0.0.1:5000/" + name + "@" + digest.FromString(bytes).String(), Tag: "v1", Priority: priority,
		Added: time.Date(2026, 1, 2, 3, minute, 0, 0, time.UTC),
	}
}

// names returns those of the entries of s in their order.
func names(s warm.Set) (list []string) {
	for _, e := range s.Entries {
		list = append(list, strings.TrimPrefix(e.Name(), "127.0.0.1:5000/"))
	}
	return list
}

// TestSetOrder: what has a higher priority comes first, then what is older; a name is there once.
func TestSetOrder(t *testing.T) {
	s := warm.Set{Pool: "gpu"}
	is := func(want ...string) {
		t.Helper()
		if got := names(s); !reflect.DeepEqual(got, want) {
			t.Errorf("the order is %v, want %v", got, want)
		}
	}
	add := func(e warm.Entry) {
		t.Helper()
		if err := s.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	add(entry("late", "l", 0, 2))
	add(entry("early", "e", 0, 1))
	add(entry("first", "f", 7, 3))
	add(entry("last", "z", -1, 0))
	is("first:v1", "early:v1", "late:v1", "last:v1")

	before := s.Entries
	add(entry("early", "e", 0, 9))
	if !reflect.DeepEqual(s.Entries, before) {
		t.Error("what was there already changed something")
	}
	moved := entry("early", "another manifest", 0, 9)
	add(moved)
	is("first:v1", "late:v1", "early:v1", "last:v1")
	if s.Entries[2] != moved {
		t.Errorf("in place of what the tag was there is %+v", s.Entries[2])
	}
	if before[1].Digest() == moved.Digest() {
		t.Error("the entries that a caller had were changed")
	}
	byDigest := moved
	byDigest.Tag = ""
	add(byDigest)
	if len(s.Entries) != 4 || s.Entries[2] != byDigest {
		t.Errorf("the same by its digest: %+v", s.Entries)
	}
	if s.Remove("127.0.0.1:5000/early:v1") {
		t.Error("removed by a name that it has no more")
	}
	if !s.Remove(moved.Reference) || !s.Remove("127.0.0.1:5000/last:v1") || s.Remove("127.0.0.1:5000/last:v1") {
		t.Error("not removed once by its digest and once by its name")
	}
	is("first:v1", "late:v1")
}

// refused are sets that nobody may write or read.
func refused() map[string]warm.Set {
	set := func(edit func(*warm.Set)) warm.Set {
		s := warm.Set{Pool: "gpu", Version: 1, Entries: []warm.Entry{entry("a", "a", 1, 1), entry("b", "b", 0, 1)}}
		edit(&s)
		return s
	}
	reference := func(r string) warm.Set { return set(func(s *warm.Set) { s.Entries[0].Reference = r }) }
	sum := digest.FromString("a").String()
	return map[string]warm.Set{
		"no pool":           set(func(s *warm.Set) { s.Pool = "" }),
		"pool with slash":   set(func(s *warm.Set) { s.Pool = "a/b" }),
		"version 0":         set(func(s *warm.Set) { s.Version = 0 }),
		"wrong order":       set(func(s *warm.Set) { s.Entries[0].Priority = -1 }),
		"twice":             set(func(s *warm.Set) { s.Entries[1] = s.Entries[0] }),
		"one name twice":    set(func(s *warm.Set) { s.Entries[1] = entry("a", "other", 0, 1) }),
		"priority":          set(func(s *warm.Set) { s.Entries[0].Priority = warm.MaxPriority + 1 }),
		"low priority":      set(func(s *warm.Set) { s.Entries[1].Priority = -warm.MaxPriority - 1 }),
		"tag":               set(func(s *warm.Set) { s.Entries[0].Tag = "a/b" }),
		"by tag":            reference("127.0.0.1:5000/a:v1"),
		"no tag":            reference("127.0.0.1:5000/a"),
		"tag and digest":    reference("127.0.0.1:5000/a:v1@" + sum),
		"half a digest":     reference("127.0.0.1:5000/a@" + sum[:40]),
		"another algorithm": reference("127.0.0.1:5000/a@" + digest.SHA512.FromString("a").String()),
		"no host":           reference("a@" + sum),
		"long":              reference("127.0.0.1:5000/" + strings.Repeat("a/", 1000) + "a@" + sum),
		"too many": set(func(s *warm.Set) {
			s.Entries = nil
			for i := range warm.MaxEntries + 1 {
				s.Entries = append(s.Entries, entry(fmt.Sprint("m", i), "m", 0, i))
			}
		}),
	}
}

// TestSetRefused: what no reader would take up is not written either.
func TestSetRefused(t *testing.T) {
	type plain warm.Set
	for name, s := range refused() {
		if b, err := json.Marshal(s); err == nil {
			t.Errorf("%s: written as %s", name, b)
		}
		b, err := json.Marshal(plain(s))
		if err != nil {
			t.Fatal(err)
		}
		got := warm.Set{Pool: "kept"}
		if err := json.Unmarshal(b, &got); err == nil || got.Pool != "kept" {
			t.Errorf("%s: read as %+v, %v", name, got, err)
		}
	}
	huge := `{"pool":"gpu","version":1,"entries":[],"x":"` + strings.Repeat("x", 1<<20) + `"}`
	if err := json.Unmarshal([]byte(huge), new(warm.Set)); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("more than a MiB: %v", err)
	}
}

// TestSetFull: a full set takes no other entry, and may still replace one.
func TestSetFull(t *testing.T) {
	s := warm.Set{Pool: "gpu", Version: 1}
	for i := range warm.MaxEntries {
		if err := s.Add(entry(fmt.Sprint("m", i), "m", 0, i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Add(entry("more", "m", 0, 0)); err == nil || !strings.Contains(err.Error(), "remove some first") || len(s.Entries) != warm.MaxEntries {
		t.Errorf("one more: %v, %d entries", err, len(s.Entries))
	}
	if err := s.Add(entry("m7", "another", 3, 0)); err != nil || names(s)[0] != "m7:v1" {
		t.Errorf("in place of one: %v, first is %s", err, names(s)[0])
	}
	for _, bad := range refused()["by tag"].Entries[:1] {
		if err := s.Add(bad); err == nil {
			t.Error("an entry without a digest was added")
		}
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var again warm.Set
	if err := json.Unmarshal(b, &again); err != nil || !reflect.DeepEqual(again, s) {
		t.Errorf("written and read it is another one: %v", err)
	}
}

// FuzzSet: whatever is read is within the bounds, and is written and read again as the same.
func FuzzSet(f *testing.F) {
	type plain warm.Set
	for _, s := range refused() {
		if b, err := json.Marshal(plain(s)); err == nil && len(b) < 4096 {
			f.Add(b)
		}
	}
	good, err := json.Marshal(warm.Set{Pool: "gpu", Version: 3, Entries: []warm.Entry{entry("a", "a", 1, 1), entry("b", "b", 0, 1)}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"pool":"gpu","version":1,"entries":null}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s warm.Set
		if json.Unmarshal(b, &s) != nil {
			return
		}
		if len(s.Entries) > warm.MaxEntries {
			t.Fatalf("%d entries", len(s.Entries))
		}
		for i, e := range s.Entries {
			if e.Check() != nil || i > 0 && s.Entries[i-1].Compare(e) >= 0 {
				t.Fatalf("entry %d of %+v", i, s)
			}
		}
		out, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var again warm.Set
		if err := json.Unmarshal(out, &again); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		if twice, err := json.Marshal(again); err != nil || string(twice) != string(out) {
			t.Fatalf("%s is written again as %s, %v", out, twice, err)
		}
	})
}
