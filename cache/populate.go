package cache

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// populateWindow is how much of an object Populate maps at a time.
const populateWindow = 32 << 20

// Populate reads what is here of the object from disk into the page cache, where
// readers of File find it, and those of mounts that show it: its present pieces in
// their order, of at most limit bytes. It returns how many bytes it read or found
// there. The kernel may drop them again whenever it needs the room; they count for
// the cgroup that they were read in first. It ends early when ctx does, and with
// the object's Err.
func (o *Object) Populate(ctx context.Context, limit int64) (int64, error) {
	var done int64
	pieces := o.object.Pieces()
	for i := 0; i < pieces; {
		if !o.Has(i) {
			i++
			continue
		}
		off, n := o.object.Span(i)
		for i++; i < pieces && n < populateWindow && o.Has(i); i++ {
			_, more := o.object.Span(i)
			n += more
		}
		n = min(n, limit-done)
		if n <= 0 {
			break
		}
		if err := ctx.Err(); err != nil {
			return done, err
		}
		if err := o.populate(off, n); err != nil {
			return done, fmt.Errorf("read object %s into the page cache at %d: %w", o.object.Digest, off, err)
		}
		done += n
	}
	return done, o.Err()
}

// populate reads n bytes. A kernel before Linux 5.14 has no MADV_POPULATE_READ:
// then they are copied once, to nowhere.
func (o *Object) populate(off, n int64) error {
	o.mu.Lock()
	if o.err != nil {
		o.mu.Unlock()
		return o.err
	}
	o.writers++ // the files stay open
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.writers--
		o.moved.Broadcast()
	}()
	mapped, err := unix.Mmap(int(o.shown.Fd()), off, int(n), unix.PROT_READ, unix.MAP_SHARED)
	if err == nil {
		err = errors.Join(unix.Madvise(mapped, unix.MADV_POPULATE_READ), unix.Munmap(mapped))
	}
	if errors.Is(err, unix.EINVAL) {
		_, err = io.Copy(io.Discard, io.NewSectionReader(o.shown, off, n))
	}
	return err
}
