package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spate-project/spate/cache/piece"
)

// incomingDir is where blobs lie that are not whole, below the cache's
// directory. What an earlier process left there is removed.
const incomingDir = "incoming"

// An Incoming is an object that comes in order, from its first byte to its last,
// and whose tree is known only then. It is not safe for concurrent use.
type Incoming struct {
	store  *Store
	digest piece.Digest
	file   *os.File
	hasher *piece.Hasher
	room   int64 // that the account counts for it, in bytes
}

// Receive begins an object of which nothing is known but its digest and size,
// which it makes room for. Each Receive is to be matched by one Close.
func (s *Store) Receive(d piece.Digest, size int64) (*Incoming, error) {
	if err := (piece.Object{Digest: d, Size: size, PieceLength: piece.PieceLength(size)}).Check(); err != nil {
		return nil, fmt.Errorf("receive %w", err)
	}
	for !s.account.take(nil, size) {
		if err := s.makeRoom(size); err != nil {
			return nil, fmt.Errorf("receive object %s: %w", d, s.explain(err))
		}
	}
	file, err := os.CreateTemp(filepath.Join(s.dir, incomingDir), d.Hex()+".*")
	if err != nil {
		s.account.give(size)
		return nil, fmt.Errorf("receive object %s: %w", d, s.explain(err))
	}
	return &Incoming{store: s, digest: d, file: file, hasher: piece.NewHasher(size), room: size}, nil
}

// Write takes the next bytes. It does not keep p.
func (in *Incoming) Write(p []byte) (int, error) {
	n, err := in.file.Write(p)
	in.hasher.Write(p[:n])
	if err != nil {
		err = fmt.Errorf("receive object %s: %w", in.digest, in.store.explain(err))
	}
	return n, err
}

// Commit ends the object and returns its tree, with which Store.Open finds it: as
// if an earlier process had recorded every piece. An object that is open already
// stays as it is. Other bytes than the digest names are a *piece.WrongBytesError,
// and change nothing.
//
// The record is removed before the bytes are put in its place, and written after
// that: a crash in between leaves an object without a record, which starts anew.
func (in *Incoming) Commit() (*piece.Tree, error) {
	t, err := in.hasher.Sum()
	if err != nil {
		return nil, fmt.Errorf("receive object %s: %w", in.digest, err)
	}
	if t.Object().Digest != in.digest {
		return nil, &piece.WrongBytesError{Object: in.digest, Piece: -1}
	}
	s := in.store
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.objects == nil:
		return nil, fmt.Errorf("receive object %s: cache %s: %w", in.digest, s.dir, fs.ErrClosed)
	case s.objects[in.digest] != nil:
		return t, nil
	}
	if err := in.place(t); err != nil {
		return nil, fmt.Errorf("receive object %s: %w", in.digest, s.explain(err))
	}
	in.vacate()
	s.account.set(t.Object(), t.Object().Size)
	return t, nil
}

// place makes the bytes t's object. s.mu is held.
func (in *Incoming) place(t *piece.Tree) error {
	dir := in.store.objectPath(in.digest)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(dir, recordName)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(in.file.Name(), filepath.Join(dir, dataName)); err != nil {
		return err
	}
	record := encodeHeader(t)
	for i := range t.Object().Pieces() {
		record = append(record, slot(t, i)...)
	}
	return os.WriteFile(path, append(record, slot(t, t.Object().Pieces())...), 0o600)
}

// vacate has the account count nothing for it any more.
func (in *Incoming) vacate() {
	in.store.account.give(in.room)
	in.room = 0
}

// Close ends the receiving. What was not committed is removed.
func (in *Incoming) Close() error {
	in.vacate()
	err := os.Remove(in.file.Name())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // it was committed
	}
	return errors.Join(err, in.file.Close())
}
