package orders

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

const (
	orderSuffix = ".json"
	maxFile     = 4 << 20 // bytes of an order's file
)

// A store keeps each order in a file of a directory: ID.json. It appears under
// that name complete and synced, in place of the one before, or not at all; what
// is killed before leaves a file new-*, which the next start removes.
type store struct{ dir string }

// A diskError says that the board's own disk failed.
type diskError struct{ error }

func (e *diskError) Unwrap() error { return e.error }

// openStore returns the orders that are kept in dir, which is made when missing.
// A broken file is removed and told to log: it holds no order that was accepted.
func openStore(dir string, log *slog.Logger) (store, []Order, error) {
	s := store{dir}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return s, nil, fmt.Errorf("open the orders in %s: %w", dir, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return s, nil, fmt.Errorf("open the orders in %s: %w", dir, err)
	}
	var kept []Order
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		id, isOrder := strings.CutSuffix(e.Name(), orderSuffix)
		if isOrder {
			b, err := readFile(path)
			if err != nil {
				return s, nil, fmt.Errorf("open the orders in %s: %w", dir, err)
			}
			o, err := parseOrder(b)
			if err == nil && o.ID != id {
				err = fmt.Errorf("it holds order %s", o.ID)
			}
			if err == nil {
				kept = append(kept, o)
				continue
			}
			log.Warn("an order's file is broken, and is dropped", "path", path, "err", err)
		}
		if err := os.Remove(path); err != nil {
			return s, nil, fmt.Errorf("open the orders in %s: %w", dir, err)
		}
	}
	return s, kept, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

func parseOrder(b []byte) (Order, error) {
	var o Order
	if err := json.Unmarshal(b, &o); err != nil {
		return Order{}, err
	}
	return o, o.check()
}

func (s store) path(id string) string { return filepath.Join(s.dir, id+orderSuffix) }

// put keeps o in place of what was kept of it.
func (s store) put(o Order) error {
	b, err := json.Marshal(o)
	if err == nil {
		err = s.write(s.path(o.ID), b)
	}
	if err != nil {
		return &diskError{fmt.Errorf("keep order %s: %w", o.ID, err)}
	}
	return nil
}

// write replaces a file.
func (s store) write(path string, b []byte) (err error) {
	tmp, err := os.CreateTemp(s.dir, "new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(b)
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err = os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return s.sync()
}

// sync makes the names in the directory durable.
func (s store) sync() error {
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// remove forgets an order. One that comes back after a power cut has ended, and is removed again.
func (s store) remove(id string) error {
	if err := os.Remove(s.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget order %s: %w", id, err)
	}
	return nil
}
