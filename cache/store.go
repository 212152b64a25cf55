// Package cache keeps objects on a node's disk, piece by piece: the only place
// that bytes are read from, shown from and passed on from.
//
// An object is one sparse file and one record of the pieces in it. Pieces come
// in any order, whole (Object.Put) or in blocks (Object.WriteBlock and
// Object.Commit), from whoever fetches them: a reader that touches an absent
// piece starts one flight for it, which asks the object's Source, and everyone
// who wants that piece waits for the same flight. An object whose tree nobody
// knows yet comes from its first byte to its last (Store.Receive).
//
// # What holds
//
//   - No byte is readable before the hash of its piece matched the object's
//     tree in this process. There is no way around that.
//   - No byte of a piece changes between the hash that verified it and the end
//     of the process, for as long as the piece is present.
//   - What an earlier process recorded is a claim: each piece is hashed again
//     before its first use. That is why nothing is ever synced: kill -9 loses
//     the pieces in flight, a power cut perhaps more, and neither a flipped
//     bit nor a lost write can reach a reader.
//   - Broken local data is a miss: it is dropped, counted and fetched again.
//   - A complete object is audited against its SHA-256. One that fails is moved
//     to quarantine and refuses every read from then on.
//   - The cache has no more bytes than its quota. What is written may evict whole
//     objects, which nobody uses and no name pins, by last use; where there are
//     none the write fails as on a full disk.
//
// The files, and what is on disk when, are described in record.go.
package cache

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spate-project/spate/cache/piece"
)

// Options of a Store. The zero value is ready to use.
type Options struct {
	Logger *slog.Logger // nil: silent

	// FetchTimeout is how long a piece may take to arrive, all tries together; 2 minutes when 0.
	FetchTimeout time.Duration

	// OnStall, when not nil, is called by each read that has to wait, at the
	// beginning of the wait. It must return soon and is called concurrently.
	OnStall StallFunc

	// Flights is how many pieces one read waits for at a time; 16 when 0.
	Flights int

	// VerifyMemory bounds the bytes of pieces that are held in memory to be
	// verified, though one piece is always allowed; 32 MiB when 0.
	VerifyMemory int64

	// AuditQuiet is for how long no piece must have come before a complete
	// object is audited, so that audits take no time from readers; 5 seconds when 0.
	// A cache that never rests audits all the same, after ten minutes of waiting.
	AuditQuiet time.Duration

	// Quota is how many bytes of objects the cache may have, 0 for no limit;
	// account.go says what counts. SetQuota changes it.
	Quota int64

	// Keep, when not nil, says which objects are evicted only when no others can be.
	// It must return at once, and is called concurrently with locks held.
	Keep func(d piece.Digest) bool

	// OnEvict, when not nil, is called after objects were evicted, some of which
	// may have lingered. It must not block and is called concurrently.
	OnEvict func()
}

// Below the cache's directory.
const (
	objectsDir    = "objects"
	quarantineDir = "quarantine"
)

// A Store is a directory of objects that one process uses. It is safe for concurrent use.
type Store struct {
	dir   string
	opts  Options
	log   *slog.Logger
	lock  *os.File
	bufs  *buffers
	stats counters
	queue auditQueue

	account *account

	mu      sync.Mutex
	objects map[piece.Digest]*Object // open, for somebody or lingering; nil when closed
	pins    pins
}

// Open opens the cache in dir, which is made if need be. It fails when another
// process has it open, and with a *QuotaError when more bytes are pinned than the
// quota allows. Run must be running for complete objects to be audited.
func Open(dir string, opts Options) (*Store, error) {
	opts.FetchTimeout = cmp.Or(opts.FetchTimeout, 2*time.Minute)
	opts.Flights = cmp.Or(opts.Flights, 16)
	opts.VerifyMemory = cmp.Or(opts.VerifyMemory, 32<<20)
	opts.AuditQuiet = cmp.Or(opts.AuditQuiet, 5*time.Second)
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open cache: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, objectsDir), 0o700); err != nil {
		return nil, fmt.Errorf("open cache %s: %w", dir, err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open cache %s: %w", dir, err)
	}
	// What was not whole when an earlier process ended.
	incoming := filepath.Join(dir, incomingDir)
	if err := errors.Join(os.RemoveAll(incoming), os.Mkdir(incoming, 0o700)); err != nil {
		lock.Close()
		return nil, fmt.Errorf("open cache %s: %w", dir, err)
	}
	s := &Store{
		dir: dir, opts: opts, log: opts.Logger, lock: lock,
		bufs:    newBuffers(opts.VerifyMemory),
		queue:   newAuditQueue(),
		objects: make(map[piece.Digest]*Object),
	}
	if s.pins, err = readPins(dir, s.log); err == nil {
		s.account, err = openAccount(dir)
	}
	if err == nil {
		err = s.SetQuota(opts.Quota)
	}
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("open cache %s: %w", dir, err)
	}
	return s, nil
}

// lockDir takes dir for this process. The kernel gives the lock back when the process ends, however it ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		pid, _ := os.ReadFile(f.Name())
		f.Close()
		return nil, fmt.Errorf("process %s is using it: stop that one or name another directory", strings.TrimSpace(string(pid)))
	case err != nil:
		f.Close()
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := f.Truncate(0); err == nil {
		fmt.Fprintln(f, os.Getpid()) // for the message above; the lock does not depend on it
	}
	return f, nil
}

// Close closes every object that is still open and gives the directory back.
func (s *Store) Close() error {
	s.mu.Lock()
	open := s.objects
	s.objects = nil
	var errs []error
	for _, o := range open {
		errs = append(errs, o.shut(fs.ErrClosed))
		if o.refs > 0 {
			s.touch(o.object.Digest)
		}
	}
	s.mu.Unlock()
	for _, o := range open {
		o.flying.Wait()
	}
	if open != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// Open opens t's object, making its file if need be; src brings what is absent,
// or nil when reads of absent pieces are to fail with piece.ErrNotHere. t's
// root must be trusted. Each Open is to be matched by one Object.Close or
// Object.Linger, and keeps the object from being evicted until then.
//
// An object that is open already is returned as it is, with the source that it
// has; one that is open with another root or piece length is an error. Files on
// disk that do not fit t are dropped and counted.
func (s *Store) Open(t *piece.Tree, src Source) (*Object, error) {
	want := t.Object()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects == nil {
		return nil, fmt.Errorf("open object %s: cache %s: %w", want.Digest, s.dir, fs.ErrClosed)
	}
	if o := s.objects[want.Digest]; o != nil {
		if have := o.object; have != want {
			return nil, fmt.Errorf("open object %s: it is open as %d bytes in pieces of %d with root %s; asked for are %d bytes in pieces of %d with root %s",
				want.Digest, have.Size, have.PieceLength, have.Root, want.Size, want.PieceLength, want.Root)
		}
		if err := o.Err(); err != nil {
			return nil, fmt.Errorf("open object %s: %w", want.Digest, err)
		}
		o.refs++
		return o, nil
	}
	if _, err := os.Stat(s.quarantinePath(want)); err == nil {
		return nil, fmt.Errorf("open object %s: %w: it is in quarantine; remove %s to fetch it again",
			want.Digest, &piece.WrongBytesError{Object: want.Digest, Piece: -1}, s.quarantinePath(want))
	}
	o, err := s.load(t, src)
	if err != nil {
		return nil, fmt.Errorf("open object %s: %w", want.Digest, s.explain(err))
	}
	s.objects[want.Digest] = o
	s.account.set(want, o.recordedBytes())
	s.touch(want.Digest)
	return o, nil
}

// close ends one use of o.
func (s *Store) close(o *Object) error {
	s.mu.Lock()
	if o.refs--; o.refs != 0 || s.objects == nil {
		s.mu.Unlock()
		return nil
	}
	delete(s.objects, o.object.Digest)
	// Nothing may be writing to the file any more when the object is opened anew.
	err := o.shut(fs.ErrClosed)
	s.account.settle(o.object.Digest, o.recordedBytes())
	s.touch(o.object.Digest)
	s.mu.Unlock()
	o.flying.Wait()
	return err
}

func (s *Store) objectPath(d piece.Digest) string {
	return filepath.Join(s.dir, objectsDir, d.Hex()[:2], d.Hex())
}

func (s *Store) quarantinePath(o piece.Object) string {
	return filepath.Join(s.dir, quarantineDir, o.Digest.Hex()+"."+o.Root.String())
}
