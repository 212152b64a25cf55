package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spate-project/spate/cache/piece"
)

// An account counts what lies in objects/ and incoming/, in bytes of the objects'
// own data: of every piece that is recorded, or that this process began to
// write, its whole length; of an Incoming its whole size. File system overhead
// and what is in quarantine do not count.
//
// What a killed process wrote of pieces that it did not record counts again when
// they are begun again. An object without a readable record counts with the disk
// blocks that it takes.
//
// The last use of an object is the modification time of its directory. It is set
// when the object is opened, closed and left to linger, and costs a reader nothing.
type account struct {
	mu           sync.Mutex // innermost: nothing else is locked under it
	quota, used  int64
	objects      map[piece.Digest]*entry
	evicted      int64 // objects
	evictedBytes int64
}

// An entry is what lies on the disk of one object.
type entry struct {
	size, bytes int64 // of the whole object; of what is here
	used        time.Time
}

// openAccount counts what an earlier process left below dir.
func openAccount(dir string) (*account, error) {
	a := &account{objects: make(map[piece.Digest]*entry)}
	paths, err := filepath.Glob(filepath.Join(dir, objectsDir, "*", "*"))
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		d, err := piece.ParseDigest("sha256:" + filepath.Base(path))
		if err != nil {
			continue
		}
		e, err := readEntry(path)
		if err != nil {
			return nil, err
		}
		a.objects[d] = e
		a.used += e.bytes
	}
	return a, nil
}

func readEntry(path string) (*entry, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	e := &entry{used: info.ModTime()}
	if e.size, e.bytes, err = recorded(filepath.Join(path, recordName)); err == nil {
		return e, nil
	}
	data, err := os.Stat(filepath.Join(path, dataName))
	if errors.Is(err, os.ErrNotExist) {
		return e, nil
	} else if err != nil {
		return nil, err
	}
	e.size, e.bytes = data.Size(), allocated(data)
	return e, nil
}

// recorded returns the size of the object whose record is at path, and how many
// bytes the recorded pieces have. It proves nothing and reads no piece layer.
func recorded(path string) (size, bytes int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	head := make([]byte, fixedSize)
	if _, err := io.ReadFull(f, head); err != nil {
		return 0, 0, err
	}
	o, err := parseObject(head)
	if err != nil {
		return 0, 0, fmt.Errorf("%s: %w", path, err)
	}
	slots := make([]byte, o.Pieces()*slotSize)
	if _, err := f.ReadAt(slots, int64(headerSize(o))); err != nil && len(slots) > 0 {
		return 0, 0, err
	}
	for i := range o.Pieces() {
		if binary.BigEndian.Uint64(slots[i*slotSize:]) != 0 {
			_, n := o.Span(i)
			bytes += n
		}
	}
	return o.Size, bytes, nil
}

// take counts n bytes of no object, or of d's when d is not nil, if the quota allows it.
func (a *account) take(d *piece.Digest, n int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.quota > 0 && a.used+n > a.quota {
		return false
	}
	a.used += n
	if d != nil {
		if e := a.objects[*d]; e != nil {
			e.bytes += n
		}
	}
	return true
}

// give counts n bytes of no object no more.
func (a *account) give(n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.used -= n
}

// set says what is here of an object, which is used now.
func (a *account) set(o piece.Object, bytes int64) {
	a.drop(o.Digest)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.objects[o.Digest] = &entry{size: o.Size, bytes: bytes, used: time.Now()}
	a.used += bytes
}

// settle says what is here of an object that is closed: what was begun and not recorded counts no more.
func (a *account) settle(d piece.Digest, bytes int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e := a.objects[d]; e != nil {
		a.used += bytes - e.bytes
		e.bytes = bytes
	}
}

// touch says that an object is used now.
func (a *account) touch(d piece.Digest, now time.Time) (known bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.objects[d]
	if e != nil {
		e.used = now
	}
	return e != nil
}

// drop forgets an object.
func (a *account) drop(d piece.Digest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e := a.objects[d]; e != nil {
		delete(a.objects, d)
		a.used -= e.bytes
	}
}

// short reports whether n bytes more would exceed the quota.
func (a *account) short(n int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.quota > 0 && a.used+n > a.quota
}
