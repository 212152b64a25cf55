package registry

import (
	"context"
	"crypto/rand"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// An Upload is a blob that is being received. Its bytes come in order, over any
// number of connections and restarts of the process:
//
//	data   what was received; its length is the offset
//	state  the repository, and a checkpoint: the hash of the first bytes of data
//
// The file data is the truth, the checkpoint only saves work: after a restart
// the bytes behind it are read and hashed again. Data is synced before its
// checkpoint is written, every 64 MiB. So a killed process loses nothing that it
// wrote. A power cut may spoil what came after the last checkpoint; Finish then
// finds the wrong digest, and the client begins again.
//
// The methods that change an upload are for whoever has acquired it; the others
// are safe for concurrent use.
type Upload struct {
	store *Store
	id    string
	repo  string

	turn      chan struct{} // holds a value while the upload is acquired
	mu        sync.Mutex
	interrupt func() // of whoever has acquired it

	offset atomic.Int64

	// For whoever has acquired it.
	algorithm digest.Algorithm
	hash      hash.Hash // over the first offset bytes; nil after a restart until needed
	saved     int64     // the offset of the last checkpoint
	resumed   bool      // the hash rests on a checkpoint
	gone      bool
}

type state struct {
	Repository string           `json:"repository"`
	Algorithm  digest.Algorithm `json:"algorithm"`
	Offset     int64            `json:"offset"`         // bytes
	Hash       []byte           `json:"hash,omitempty"` // the hash's own form, over Offset bytes
}

// CreateUpload begins an upload to repo. The algorithm is the digest's that
// Finish will be given; with another one Finish reads the bytes again.
func (s *Store) CreateUpload(repo string, algorithm digest.Algorithm) (*Upload, error) {
	u := s.newUpload(rand.Text(), repo, algorithm)
	u.hash = algorithm.Hash()
	b, err := json.Marshal(state{Repository: repo, Algorithm: algorithm})
	if err == nil {
		err = s.root.Mkdir(u.dir(), 0o700)
	}
	if err == nil {
		err = s.root.WriteFile(u.dataPath(), nil, 0o600)
	}
	if err == nil {
		err = s.root.WriteFile(u.statePath(), b, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("begin an upload to %s: %w", repo, err)
	}
	s.uploadsMu.Lock()
	defer s.uploadsMu.Unlock()
	s.uploads[u.id] = u
	return u, nil
}

func (s *Store) newUpload(id, repo string, algorithm digest.Algorithm) *Upload {
	return &Upload{store: s, id: id, repo: repo, algorithm: algorithm, turn: make(chan struct{}, 1)}
}

// Upload returns repo's unfinished upload called id. ErrUploadUnknown when there is none.
func (s *Store) Upload(repo, id string) (*Upload, error) {
	s.uploadsMu.Lock()
	defer s.uploadsMu.Unlock()
	u := s.uploads[id]
	if u == nil {
		st, size, err := s.readState(id)
		if err != nil {
			return nil, fmt.Errorf("find upload %s of %s: %w", id, repo, err)
		}
		u = s.newUpload(id, st.Repository, st.Algorithm)
		u.offset.Store(size)
	}
	if u.repo != repo {
		return nil, fmt.Errorf("find upload %s of %s: %w", id, repo, ErrUploadUnknown)
	}
	s.uploads[id] = u
	return u, nil
}

// readState returns an upload's state and the length of its data. A state that
// cannot be read, or data that is not there, is ErrUploadUnknown.
func (s *Store) readState(id string) (st state, size int64, err error) {
	if len(id) != len(rand.Text()) {
		return st, 0, ErrUploadUnknown
	}
	b, err := s.root.ReadFile(path.Join("uploads", id, "state"))
	if errors.Is(err, fs.ErrNotExist) {
		return st, 0, ErrUploadUnknown
	}
	if err != nil {
		return st, 0, err
	}
	if err := json.Unmarshal(b, &st); err != nil || !st.Algorithm.Available() {
		s.log.Warn("the state of an upload is damaged; its client has to begin again", "upload", id)
		return st, 0, ErrUploadUnknown
	}
	fi, err := s.root.Stat(path.Join("uploads", id, "data"))
	if errors.Is(err, fs.ErrNotExist) {
		return st, 0, ErrUploadUnknown
	}
	if err != nil {
		return st, 0, err
	}
	return st, fi.Size(), nil
}

// sweepUploads removes the uploads that have got no byte since expiry.
func (s *Store) sweepUploads(expiry time.Time) error {
	entries, err := s.list("uploads")
	if err != nil {
		return fmt.Errorf("sweep uploads: %w", err)
	}
	for _, e := range entries {
		dir := path.Join("uploads", e.Name())
		fi, err := s.root.Stat(path.Join(dir, "data"))
		if err != nil {
			fi, err = e.Info() // the process was killed while it made or removed the upload
		}
		if err != nil || fi.ModTime().After(expiry) {
			continue
		}
		s.uploadsMu.Lock()
		u := s.uploads[e.Name()]
		if u == nil {
			u = s.newUpload(e.Name(), "", "") // belongs to no repository: nobody finds it any more
			s.uploads[u.id] = u
		}
		s.uploadsMu.Unlock()
		select {
		case u.turn <- struct{}{}:
			u.Cancel()
			<-u.turn
			s.log.Info("removed an expired upload", "upload", e.Name(), "repository", u.repo, "bytes", fi.Size())
		default: // in use after all
		}
	}
	return nil
}

func (u *Upload) dir() string       { return path.Join("uploads", u.id) }
func (u *Upload) dataPath() string  { return path.Join(u.dir(), "data") }
func (u *Upload) statePath() string { return path.Join(u.dir(), "state") }

// ID returns the upload's name: 26 letters and digits that cannot be guessed.
func (u *Upload) ID() string { return u.id }

// Offset returns how many bytes were received.
func (u *Upload) Offset() int64 { return u.offset.Load() }

// Acquire waits until nobody else has the upload, or ctx is done. Whoever has
// it is interrupted first: a client that comes back after a broken connection
// need not wait until the server notices the break. The caller gives its own
// interrupt, which must not block, and calls Release in the end.
// ErrUploadUnknown when the upload was finished or cancelled meanwhile.
func (u *Upload) Acquire(ctx context.Context, interrupt func()) error {
	u.mu.Lock()
	if u.interrupt != nil {
		u.interrupt()
	}
	u.mu.Unlock()
	select {
	case u.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("wait for upload %s of %s: %w: %v", u.id, u.repo, ErrInterrupted, ctx.Err())
	}
	if u.gone {
		<-u.turn
		return fmt.Errorf("find upload %s of %s: %w", u.id, u.repo, ErrUploadUnknown)
	}
	u.mu.Lock()
	u.interrupt = interrupt
	u.mu.Unlock()
	return nil
}

// Release lets the next one acquire the upload.
func (u *Upload) Release() {
	u.mu.Lock()
	u.interrupt = nil
	u.mu.Unlock()
	<-u.turn
}

// restore makes the hash what it was before the process restarted.
func (u *Upload) restore() error {
	if u.hash != nil {
		return nil
	}
	st, size, err := u.store.readState(u.id)
	if err != nil {
		return err
	}
	h := u.algorithm.Hash()
	u.resumed = st.Offset > 0 && st.Offset <= size && h.(encoding.BinaryUnmarshaler).UnmarshalBinary(st.Hash) == nil
	if !u.resumed {
		h, st.Offset = u.algorithm.Hash(), 0
	}
	if err := u.hashFrom(h, st.Offset); err != nil {
		return err
	}
	u.hash, u.saved = h, st.Offset
	return nil
}

// hashFrom adds the received bytes from offset on to h.
func (u *Upload) hashFrom(h hash.Hash, offset int64) error {
	f, err := u.store.root.Open(u.dataPath())
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(h, io.NewSectionReader(f, offset, u.Offset()-offset))
	return err
}

// Finish makes the received bytes a blob of the upload's repository and ends
// the upload. It is ended too, and its bytes removed, by a *DigestError: they
// are not the ones that d names.
//
// Killed before the blob is in place, the upload is still there and can be
// finished again; killed after, the rest of it expires.
func (u *Upload) Finish(d digest.Digest) error {
	if err := u.finish(d); err != nil {
		return fmt.Errorf("finish upload %s of %s: %w", u.id, u.repo, err)
	}
	return nil
}

func (u *Upload) finish(d digest.Digest) error {
	got, err := u.sum(d)
	if err != nil {
		return err
	}
	if got != d {
		u.Cancel()
		return &DigestError{Want: d, Got: got}
	}
	if err := u.store.sync(u.dataPath()); err != nil {
		u.Cancel() // as after any failed sync
		return err
	}
	if err := u.store.adopt(u.dataPath(), path.Join(u.dir(), "shared"), u.repo, d); err != nil {
		return err
	}
	u.Cancel()
	return nil
}

// sum returns the digest of what was received, by want's algorithm. It reads the
// bytes again where no hash was kept for them, or where a checkpoint may have been wrong.
func (u *Upload) sum(want digest.Digest) (digest.Digest, error) {
	if err := u.restore(); err != nil {
		return "", err
	}
	a := want.Algorithm()
	if a == u.algorithm {
		got := digest.NewDigest(a, u.hash)
		if got == want || !u.resumed {
			return got, nil
		}
	}
	h := a.Hash()
	if err := u.hashFrom(h, 0); err != nil {
		return "", err
	}
	return digest.NewDigest(a, h), nil
}

// Cancel ends the upload and removes what was received. Killed meanwhile, the rest of it expires.
func (u *Upload) Cancel() {
	u.gone = true
	u.store.uploadsMu.Lock()
	delete(u.store.uploads, u.id)
	u.store.uploadsMu.Unlock()
	if err := u.store.root.RemoveAll(u.dir()); err != nil {
		u.store.log.Warn("the rest of an upload stays on disk until it expires", "upload", u.id, "error", err)
	}
}
