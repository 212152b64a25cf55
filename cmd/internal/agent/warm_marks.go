package agent

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
	"sync"

	"github.com/opencontainers/go-digest"
)

// marksName is the file, in the data directory, that says which warm sets were
// the last ones: one JSON object, whose keys are the names of sets and whose
// values are marks. It is replaced in one step, by a rename after a sync: after a
// crash there are the marks from before a change or those after it. A file that
// is not one of marks is none; the node then takes up any version.
const marksName = "warm.json"

// A mark says which version of a warm set was the last.
type mark struct {
	Digest  digest.Digest `json:"digest"` // of its manifest
	Version int64         `json:"version"`
}

// marks are those of all sets. They are safe for concurrent use.
type marks struct {
	path string

	mu   sync.Mutex
	list map[string]mark
}

// openMarks reads the marks in the data directory dir.
func openMarks(dir string, log *slog.Logger) *marks {
	m := &marks{path: filepath.Join(dir, marksName), list: make(map[string]mark)}
	b, err := os.ReadFile(m.path)
	if err == nil {
		err = json.Unmarshal(b, &m.list)
	}
	if err != nil || m.list == nil {
		m.list = make(map[string]mark)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("it is not known which warm sets were the last ones: any version is taken up", "path", m.path, "err", err)
	}
	return m
}

func (m *marks) of(set string) (mark, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	last, ok := m.list[set]
	return last, ok
}

// put keeps what is the last version of set.
func (m *marks) put(set string, last mark) error {
	return m.change(func(list map[string]mark) { list[set] = last })
}

// retain forgets all but the given sets.
func (m *marks) retain(sets []string) error {
	return m.change(func(list map[string]mark) {
		maps.DeleteFunc(list, func(set string, _ mark) bool { return !slices.Contains(sets, set) })
	})
}

func (m *marks) change(f func(map[string]mark)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	after := maps.Clone(m.list)
	if f(after); maps.Equal(after, m.list) {
		return nil
	}
	b, err := json.Marshal(after)
	if err == nil {
		err = replaceFile(m.path, b)
	}
	if err != nil {
		return fmt.Errorf("keep the marks of warm sets: %w", err)
	}
	m.list = after
	return nil
}

// replaceFile writes b to path in one step: after a crash there is the file from before or the new one.
func replaceFile(path string, b []byte) error {
	tmp, err := os.Create(path + ".new") // one name, so that crashes leave no more than one
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
