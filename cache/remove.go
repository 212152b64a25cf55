package cache

import (
	"fmt"
	"io/fs"
	"os"

	"github.com/spate-project/spate/cache/piece"
)

// Remove deletes what is here of an object that is not open. It returns nil
// where there is nothing. A part that a crash leaves is a miss.
func (s *Store) Remove(d piece.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.objects == nil:
		return fmt.Errorf("remove object %s: cache %s: %w", d, s.dir, fs.ErrClosed)
	case s.objects[d] != nil:
		return fmt.Errorf("remove object %s: it is open", d)
	}
	if err := os.RemoveAll(s.objectPath(d)); err != nil {
		return fmt.Errorf("remove object %s: %w", d, err)
	}
	return nil
}
