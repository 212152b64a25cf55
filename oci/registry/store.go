package registry

import (
	"crypto/rand"
	_ "crypto/sha256" // go-digest takes the algorithms that are linked in
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// A Store keeps repositories in a directory:
//
//	lock                                            held while a process has the store open
//	tmp/                                            files being made; emptied on open
//	blobs/ALGORITHM/HEX                             each blob once, whoever holds it
//	uploads/ID/data, state                          unfinished uploads
//	repositories/NAME/_blobs/ALGORITHM/HEX          a hard link: the repository holds the blob
//	repositories/NAME/_manifests/ALGORITHM/HEX      a manifest's bytes
//	repositories/NAME/_tags/TAG                     a digest
//	repositories/NAME/_referrers/ALGORITHM/HEX/REF  empty: REF is a manifest whose subject is HEX
//
// A repository's right to a blob is its own link, so knowing a digest is no
// right, and the file system counts who holds a blob. An element of a
// repository's name never starts with "_", so names and rooms cannot collide.
//
// A file appears under its final name complete and synced, or not at all; what
// a method has returned without error survives a power cut. What may stay
// behind when the process is killed between two steps is said at each method.
//
// Names and tags must match the specification's grammar. Nothing outside the
// directory is reachable even if they do not. A Store is safe for concurrent use.
type Store struct {
	root  *os.Root
	log   *slog.Logger
	lock  *os.File
	dirs  sync.Mutex // held while a directory is made
	names sync.Mutex // held while manifests, tags and referrers change

	marking    *marking // of the repository that is being collected; nil when none is; guarded by names
	collecting sync.Mutex
	opened     time.Time
	quota      quota

	uploadsMu sync.Mutex
	uploads   map[string]*Upload // those that this process has touched
	buffers   sync.Pool

	checkpointBytes int64
	beforeChange    func() // tests kill the process here; else nil
}

// OpenStore opens the store in dir, made where it is missing. It fails while
// another process has it open. Damage that it meets goes to log.
func OpenStore(dir string, log *slog.Logger) (_ *Store, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open registry store %s: %w", dir, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open registry store %s: %w", dir, err)
	}
	s := &Store{root: root, log: log, uploads: map[string]*Upload{}, checkpointBytes: 64 << 20, opened: time.Now()}
	s.buffers.New = func() any { return new([bufferSize]byte) }
	defer func() {
		if err != nil {
			s.Close()
		}
	}()

	if s.lock, err = root.OpenFile("lock", os.O_RDONLY|os.O_CREATE, 0o600); err != nil {
		return nil, fmt.Errorf("open registry store %s: %w", dir, err)
	}
	if err := syscall.Flock(int(s.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("open registry store %s: another process has it open; stop that one first (%v)", dir, err)
	}
	if err := root.RemoveAll("tmp"); err != nil {
		return nil, fmt.Errorf("open registry store %s: %w", dir, err)
	}
	for _, d := range []string{"tmp", "blobs", "uploads", "repositories"} {
		if err := s.mkdir(d); err != nil {
			return nil, fmt.Errorf("open registry store %s: %w", dir, err)
		}
	}
	return s, nil
}

// Close lets another process open the store. Calls that are under way fail or finish.
func (s *Store) Close() error {
	if s.lock != nil {
		s.lock.Close()
	}
	return s.root.Close()
}

// Sweep removes uploads that have got no byte since expiry, and blobs that no repository holds any more.
func (s *Store) Sweep(expiry time.Time) error {
	return errors.Join(s.sweepUploads(expiry), s.sweepBlobs())
}

func digestPath(d digest.Digest) string { return path.Join(d.Algorithm().String(), d.Encoded()) }

func repository(repo string, elements ...string) string {
	return path.Join("repositories", repo, path.Join(elements...))
}

// known returns ErrNameUnknown unless something was ever pushed to repo.
func (s *Store) known(repo string) error {
	for _, room := range []string{"_manifests", "_blobs"} {
		if _, err := s.root.Stat(repository(repo, room)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return ErrNameUnknown
}

// The functions below are the only ones that change what is under a final name.

// mkdir makes dir and the parents that it lacks; on return their names are durable.
func (s *Store) mkdir(dir string) error {
	s.dirs.Lock()
	defer s.dirs.Unlock()
	return s.mkdirLocked(dir)
}

func (s *Store) mkdirLocked(dir string) error {
	err := s.root.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrNotExist) {
		if err := s.mkdirLocked(path.Dir(dir)); err != nil {
			return err
		}
		err = s.root.Mkdir(dir, 0o700)
	}
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil
	case err != nil:
		return err
	}
	return s.sync(path.Dir(dir))
}

// write puts data under name: temporary file, sync, rename, sync of the directory.
func (s *Store) write(name string, data []byte) error {
	if err := s.mkdir(path.Dir(name)); err != nil {
		return err
	}
	tmp := path.Join("tmp", rand.Text())
	f, err := s.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = s.rename(tmp, name)
	}
	if err != nil {
		s.root.Remove(tmp)
		return err
	}
	return nil
}

// rename moves the synced file old to name, whose directory exists, replacing what was there.
func (s *Store) rename(old, name string) error {
	s.changing()
	if err := s.root.Rename(old, name); err != nil {
		return err
	}
	return s.sync(path.Dir(name))
}

// link gives the file old the further name, whose directory exists and which must be free.
func (s *Store) link(old, name string) error {
	s.changing()
	if err := s.root.Link(old, name); err != nil {
		return err
	}
	return s.sync(path.Dir(name))
}

// remove takes a file's name away.
func (s *Store) remove(name string) error {
	s.changing()
	if err := s.root.Remove(name); err != nil {
		return err
	}
	return s.sync(path.Dir(name))
}

// sync makes a file's bytes, or a directory's names, durable.
func (s *Store) sync(name string) error {
	f, err := s.root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func (s *Store) changing() {
	if s.beforeChange != nil {
		s.beforeChange()
	}
}

// list returns the names in a directory in lexical order; none when it does not exist.
func (s *Store) list(dir string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(s.root.FS(), dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return entries, err
}
