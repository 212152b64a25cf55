package cache

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/spate-project/spate/cache/piece"
)

// ErrEvicted is why an object that lingered refuses reads: the store needed its
// room. It is an fs.ErrClosed.
var ErrEvicted = fmt.Errorf("evicted to make room: %w", fs.ErrClosed)

// A QuotaError says that the quota has no room, and that nothing can be evicted.
// It is syscall.ENOSPC.
type QuotaError struct {
	Quota  int64 // bytes
	Pinned int64 // bytes that are pinned, in use, or on their way
}

func (e *QuotaError) Error() string {
	return fmt.Sprintf("the cache's quota of %d bytes has no room: %d bytes are pinned or in use; raise the quota, unpin something, or end its use", e.Quota, e.Pinned)
}

// Unwrap makes a full quota a full disk.
func (e *QuotaError) Unwrap() error { return syscall.ENOSPC }

// A Held is what lies in the cache of one object.
type Held struct {
	Digest piece.Digest `json:"digest"`
	Size   int64        `json:"size"`      // of the whole object
	Bytes  int64        `json:"heldBytes"` // of the pieces that are here
	Used   time.Time    `json:"lastUse"`   // when it was opened, closed or left to linger last
	InUse  bool         `json:"inUse"`
	Pins   []string     `json:"pins,omitempty"` // names that pin it, in order
	Keep   bool         `json:"keep,omitempty"` // Options.Keep says so
}

// evictable reports whether the object may go to make room.
func (h *Held) evictable() bool { return !h.InUse && len(h.Pins) == 0 }

// List returns what lies in the cache, the last used first.
func (s *Store) List() []Held {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.list()
	slices.Reverse(list)
	return list
}

// list returns what lies in the cache in the order of its last use. s.mu is held.
func (s *Store) list() []Held {
	s.account.mu.Lock()
	list := make([]Held, 0, len(s.account.objects))
	for d, e := range s.account.objects {
		o := s.objects[d]
		list = append(list, Held{Digest: d, Size: e.size, Bytes: e.bytes, Used: e.used, InUse: o != nil && o.refs > 0, Pins: s.pins.of(d), Keep: s.opts.Keep != nil && s.opts.Keep(d)})
	}
	s.account.mu.Unlock()
	slices.SortFunc(list, func(a, b Held) int {
		return cmp.Or(a.Used.Compare(b.Used), slices.Compare(a.Digest[:], b.Digest[:]))
	})
	return list
}

// pinned returns how many bytes cannot be evicted: all but those of list that can. s.mu is held.
func (s *Store) pinned(list []Held) int64 {
	s.account.mu.Lock()
	defer s.account.mu.Unlock()
	n := s.account.used
	for _, h := range list {
		if h.evictable() {
			n -= h.Bytes
		}
	}
	return n
}

// SetQuota changes how many bytes the cache may have, 0 for no limit, and evicts
// what is beyond it. A quota of fewer bytes than are pinned or in use is refused
// with a *QuotaError and changes nothing.
func (s *Store) SetQuota(quota int64) error {
	s.mu.Lock()
	pinned := s.pinned(s.list())
	if quota > 0 && pinned > quota {
		s.mu.Unlock()
		return fmt.Errorf("set the cache's quota: %w", &QuotaError{quota, pinned})
	}
	s.account.mu.Lock()
	s.account.quota = max(0, quota)
	s.account.mu.Unlock()
	s.mu.Unlock()
	return s.makeRoom(0)
}

// GC removes what nobody can use: what is in quarantine, and objects that are
// neither open nor pinned and of which no piece is here. It also evicts down to the quota.
func (s *Store) GC() error {
	err := os.RemoveAll(filepath.Join(s.dir, quarantineDir))
	s.mu.Lock()
	var gone trash
	for _, h := range s.list() {
		if h.Bytes == 0 && h.evictable() {
			err = errors.Join(err, s.discard(h.Digest, &gone))
		}
	}
	s.mu.Unlock()
	return errors.Join(err, gone.empty(), s.makeRoom(0))
}

// makeRoom evicts objects that are neither open for anybody nor pinned, those
// first whose last use is longest ago, and what Options.Keep is for after all
// others, until n bytes more are within the quota.
// The caller holds no lock and has no piece sealed.
func (s *Store) makeRoom(n int64) error {
	if !s.account.short(n) {
		return nil
	}
	gone, err := s.evict(n)
	err = errors.Join(err, gone.empty())
	if len(gone) > 0 && s.opts.OnEvict != nil {
		s.opts.OnEvict()
	}
	return err
}

func (s *Store) evict(n int64) (gone trash, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects == nil {
		return nil, fmt.Errorf("make room in cache %s: %w", s.dir, fs.ErrClosed)
	}
	list := s.list()
	slices.SortStableFunc(list, func(a, b Held) int {
		switch {
		case a.Keep == b.Keep:
			return 0
		case b.Keep:
			return -1
		}
		return 1
	})
	for _, h := range list {
		if !s.account.short(n) {
			return gone, nil
		}
		if h.Bytes == 0 || !h.evictable() {
			continue
		}
		if err := s.discard(h.Digest, &gone); err != nil {
			return gone, fmt.Errorf("evict object %s: %w", h.Digest, err)
		}
		s.account.mu.Lock()
		s.account.evicted++
		s.account.evictedBytes += h.Bytes
		s.account.mu.Unlock()
		s.log.Info("evicted", "object", h.Digest, "bytes", h.Bytes, "lastUse", h.Used)
	}
	if s.account.short(n) {
		s.account.mu.Lock()
		quota := s.account.quota
		s.account.mu.Unlock()
		return gone, &QuotaError{quota, s.pinned(s.list())}
	}
	return gone, nil
}

// trash is directories that are to be removed, once no lock is held.
type trash []string

func (t trash) empty() (err error) {
	for _, dir := range t {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// discard takes an object that nobody uses out of the store. Its directory goes
// to incoming/ in one step, from where it is removed: by who has gone, or after a
// crash by the next Open. So an object lies in the cache as it was, or not at
// all. s.mu is held.
func (s *Store) discard(d piece.Digest, gone *trash) error {
	if o := s.objects[d]; o != nil {
		delete(s.objects, d)
		if err := o.shut(ErrEvicted); err != nil {
			s.log.Warn("close an object that is evicted", "object", d, "error", err)
		}
	}
	to := filepath.Join(s.dir, incomingDir, d.Hex()+"."+rand.Text())
	switch err := os.Rename(s.objectPath(d), to); {
	case err == nil:
		*gone = append(*gone, to)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	s.account.drop(d)
	return nil
}

// charge counts piece i, which is about to be written, unless it is counted
// already. It evicts where the quota needs it, so the caller holds no lock and
// has no piece sealed.
func (o *Object) charge(i int) error {
	if i < 0 || i >= len(o.states) {
		return o.noPiece(i)
	}
	_, n := o.object.Span(i)
	for {
		o.mu.Lock()
		done := o.charged[i] || o.err != nil || o.store.account.take(&o.object.Digest, n)
		if done {
			o.charged[i] = true
		}
		o.mu.Unlock()
		if done {
			return nil
		}
		if err := o.store.makeRoom(n); err != nil {
			return o.diskFailed("write", i, err)
		}
	}
}

// recordedBytes returns the length of all pieces that are recorded.
func (o *Object) recordedBytes() (n int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, s := range o.states {
		if s == present || s == claimed {
			_, length := o.object.Span(i)
			n += length
		}
	}
	return n
}

// touch records that an object is used now.
func (s *Store) touch(d piece.Digest) {
	now := time.Now()
	if !s.account.touch(d, now) {
		return // in quarantine
	}
	if err := os.Chtimes(s.objectPath(d), now, now); err != nil {
		s.log.Warn("note the last use of an object", "object", d, "error", err)
	}
}

// allocated returns how many bytes a file takes on the disk.
func allocated(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}
