package registry

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
)

// A Batch is what this process adds to a repository beside a manifest that is
// there: blobs, and the manifests that need them. Until Commit all of it is in
// the store's tmp/ or in memory, so that nothing stays behind of a batch that is
// given up, or whose process is killed. It is safe for concurrent use until Commit.
type Batch struct {
	store *Store
	repo  string

	mu        sync.Mutex
	blobs     map[digest.Digest]madeBlob
	manifests []*Manifest
}

// A madeBlob is a blob of a batch, synced, under a name in tmp/.
type madeBlob struct {
	name   string
	size   int64
	shared bool // it is another name of the pool's file
}

// NewBatch returns an empty batch for repo. The caller closes it, also after Commit.
func (s *Store) NewBatch(repo string) *Batch {
	return &Batch{store: s, repo: repo, blobs: map[digest.Digest]madeBlob{}}
}

// BlobSize returns the size in bytes of a blob of the batch or of its repository. ErrBlobUnknown when neither has it.
func (b *Batch) BlobSize(d digest.Digest) (int64, error) {
	b.mu.Lock()
	made, ok := b.blobs[d]
	b.mu.Unlock()
	if ok {
		return made.size, nil
	}
	return b.store.BlobSize(b.repo, d)
}

// PutBlob reads r to its end and adds the bytes. *DigestError when they are not what d names.
func (b *Batch) PutBlob(d digest.Digest, r io.Reader) error {
	if err := b.putBlob(d, r); err != nil {
		return fmt.Errorf("add blob %s to %s: %w", d, b.repo, err)
	}
	return nil
}

func (b *Batch) putBlob(d digest.Digest, r io.Reader) error {
	s := b.store
	made := madeBlob{name: path.Join("tmp", rand.Text())}
	if err := made.write(s.root, d, r); err != nil {
		s.root.Remove(made.name)
		return err
	}
	spare := path.Join("tmp", rand.Text())
	shared, err := s.share(poolPath(d), made.name, spare)
	if err != nil {
		s.root.Remove(made.name)
		return err
	}
	if shared {
		s.root.Remove(made.name)
		made.name, made.shared = spare, true
	} else if err := s.quota.room(made.size); err != nil {
		s.root.Remove(made.name)
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.blobs[d]; ok {
		return s.root.Remove(made.name)
	}
	b.blobs[d] = made
	return nil
}

func (m *madeBlob) write(root *os.Root, d digest.Digest, r io.Reader) error {
	f, err := root.OpenFile(m.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	digester := d.Algorithm().Digester()
	if m.size, err = io.CopyBuffer(io.MultiWriter(f, digester.Hash()), r, make([]byte, bufferSize)); err != nil {
		return err
	}
	if got := digester.Digest(); got != d {
		return &DigestError{Want: d, Got: got}
	}
	return f.Sync()
}

// PutManifest adds m, which the batch keeps.
func (b *Batch) PutManifest(m *Manifest) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.manifests = append(b.manifests, m)
}

// Commit makes the batch part of its repository, if that still holds the
// manifest beside. ErrManifestUnknown, and nothing is added, when it does not.
//
// The steps are: the blobs, then the manifests, the last one first, so that what
// is said about a manifest is there before the manifest is found. Killed between
// two steps, the repository keeps what it got; the same batch made again adds the rest.
func (b *Batch) Commit(beside digest.Digest) error {
	if err := b.commit(beside); err != nil {
		return fmt.Errorf("add what belongs to manifest %s of %s: %w", beside, b.repo, err)
	}
	return nil
}

func (b *Batch) commit(beside digest.Digest) (err error) {
	var added []digest.Digest
	defer func() {
		if err != nil {
			for _, d := range added {
				err = errors.Join(err, b.store.DeleteBlob(b.repo, d))
			}
		}
	}()
	if err := b.store.holds(b.repo, beside); err != nil {
		return err
	}
	for d, made := range b.blobs {
		if _, err := b.store.BlobSize(b.repo, d); err == nil {
			continue // pushed meanwhile
		}
		if err := b.store.place(made.name, b.repo, d, made.shared); err != nil {
			return err
		}
		added = append(added, d)
	}
	b.store.names.Lock()
	defer b.store.names.Unlock()
	if err := b.store.holds(b.repo, beside); err != nil {
		return err
	}
	for _, m := range slices.Backward(b.manifests) {
		if err := b.store.putManifest(b.repo, m, nil); err != nil {
			return err
		}
		added = nil // they are needed now
	}
	return nil
}

// Close removes what was not committed.
func (b *Batch) Close() {
	for d, made := range b.blobs {
		err := b.store.root.Remove(made.name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			b.store.log.Warn("a blob that was not needed stays on disk until the registry starts again", "digest", d, "error", err)
		}
	}
}

// TempDir returns a directory on the store's file system for files being made. It is emptied when the store is opened.
func (s *Store) TempDir() string { return filepath.Join(s.root.Name(), "tmp") }
