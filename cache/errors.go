package cache

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/spate-project/spate/cache/piece"
)

// explain adds what to do to an error of the disk.
func (s *Store) explain(err error) error {
	if _, ok := errors.AsType[*QuotaError](err); ok {
		return err
	}
	for _, full := range []syscall.Errno{unix.ENOSPC, unix.EDQUOT} {
		if errors.Is(err, full) {
			return fmt.Errorf("%w: free space under %s", full, s.dir)
		}
	}
	return err
}

// diskFailed reports that the disk refused piece i. Asking the source again would
// not help, so a flight for the piece ends with this error.
func (o *Object) diskFailed(doing string, i int, err error) error {
	err = fmt.Errorf("%s piece %d of object %s: %w", doing, i, o.object.Digest, o.store.explain(err))
	o.mu.Lock()
	defer o.mu.Unlock()
	if f := o.flights[i]; f != nil && o.err == nil {
		f.disk = err
		f.cancel()
	}
	return err
}

func (o *Object) noPiece(i int) error {
	return fmt.Errorf("object %s has no piece %d", o.object.Digest, i)
}

// absent says that piece i is not here.
func (o *Object) absent(i int) error {
	return fmt.Errorf("piece %d of object %s: %w", i, o.object.Digest, piece.ErrNotHere)
}

func (o *Object) fetchFailed(i int, why error) error {
	return fmt.Errorf("fetch piece %d of object %s: %w", i, o.object.Digest, why)
}
