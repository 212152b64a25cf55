package cache

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/spate-project/spate/cache/piece"
)

// pinsName is the file that keeps pins over restarts: one JSON object, whose
// keys are the names and whose values are lists of digests. It is replaced in
// one step, by a rename after a sync: after a crash there are the pins from
// before a change or those after it. A file that is not one of pins is none.
const pinsName = "pins"

// pins are the objects that stay, by the name that they are pinned by.
type pins map[string][]piece.Digest

func readPins(dir string, log *slog.Logger) (pins, error) {
	path := filepath.Join(dir, pinsName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return pins{}, nil
	} else if err != nil {
		return nil, err
	}
	p := pins{}
	if err := json.Unmarshal(b, &p); err != nil || p == nil {
		log.Warn("the file of pins is broken: nothing is pinned; pin again what is to stay", "path", path, "error", err)
		return pins{}, nil
	}
	return p, nil
}

// of returns the names that pin an object, in order.
func (p pins) of(d piece.Digest) []string {
	var names []string
	for name, digests := range p {
		if slices.Contains(digests, d) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (p pins) write(dir string) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Join(dir, incomingDir), pinsName+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, pinsName))
}

// Pin keeps objects from being evicted for as long as they are pinned by name,
// over restarts too. What is not here yet stays once it came. Objects that the
// name pinned before are pinned by it no more.
func (s *Store) Pin(name string, objects []piece.Digest) error {
	if err := s.pin(name, slices.Clone(objects)); err != nil {
		return fmt.Errorf("pin %s: %w", name, s.explain(err))
	}
	return nil
}

// Unpin takes back what Pin did, and reports whether the name pinned anything.
func (s *Store) Unpin(name string) (was bool, err error) {
	s.mu.Lock()
	_, was = s.pins[name]
	s.mu.Unlock()
	if err := s.pin(name, nil); err != nil {
		return false, fmt.Errorf("unpin %s: %w", name, s.explain(err))
	}
	return was, nil
}

func (s *Store) pin(name string, objects []piece.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects == nil {
		return fs.ErrClosed
	}
	after := maps.Clone(s.pins)
	if delete(after, name); len(objects) > 0 {
		after[name] = objects
	}
	if err := after.write(s.dir); err != nil {
		return err
	}
	s.pins = after
	return nil
}

// Pins returns the names that pin an object, in order.
func (s *Store) Pins(d piece.Digest) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pins.of(d)
}

// Pinned returns the names that pin something, in order.
func (s *Store) Pinned() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.pins))
}
