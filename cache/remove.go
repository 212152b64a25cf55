package cache

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/spate-project/spate/cache/piece"
)

// Remove deletes what is here of an object that is in nobody's use, pinned or
// not. It returns nil where there is nothing.
func (s *Store) Remove(d piece.Digest) error {
	gone, err := s.remove(d)
	if err = errors.Join(err, gone.empty()); err != nil {
		return fmt.Errorf("remove object %s: %w", d, err)
	}
	return nil
}

func (s *Store) remove(d piece.Digest) (gone trash, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[d]
	switch {
	case s.objects == nil:
		return nil, fmt.Errorf("cache %s: %w", s.dir, fs.ErrClosed)
	case o != nil && o.refs > 0:
		return nil, errors.New("it is open")
	}
	err = s.discard(d, &gone)
	return gone, err
}
