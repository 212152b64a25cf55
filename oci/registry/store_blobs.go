package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"

	"github.com/opencontainers/go-digest"
)

func blobPath(repo string, d digest.Digest) string { return repository(repo, "_blobs", digestPath(d)) }

// poolPath is where a blob is found again when another repository gets the same bytes.
func poolPath(d digest.Digest) string { return path.Join("blobs", digestPath(d)) }

// OpenBlob opens a blob that repo holds; the caller closes it. The bytes are as
// the disk has them: whoever uses them compares the digest. It stays readable
// when the blob is deleted meanwhile. ErrBlobUnknown when repo does not hold it.
func (s *Store) OpenBlob(repo string, d digest.Digest) (*os.File, error) {
	f, err := s.root.Open(blobPath(repo, d))
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrBlobUnknown
	}
	if err != nil {
		return nil, fmt.Errorf("open blob %s of %s: %w", d, repo, err)
	}
	return f, nil
}

// BlobSize returns a blob's size in bytes. ErrBlobUnknown when repo does not hold it.
func (s *Store) BlobSize(repo string, d digest.Digest) (int64, error) {
	fi, err := s.root.Stat(blobPath(repo, d))
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrBlobUnknown
	}
	if err != nil {
		return 0, fmt.Errorf("look for blob %s of %s: %w", d, repo, err)
	}
	return fi.Size(), nil
}

// MountBlob lets repo hold a blob that from holds, without copying.
// ErrBlobUnknown when from does not hold it. One link: done or not.
func (s *Store) MountBlob(repo, from string, d digest.Digest) error {
	if _, err := s.BlobSize(from, d); err != nil {
		return err
	}
	name := blobPath(repo, d)
	err := s.mkdir(path.Dir(name))
	if err == nil {
		err = s.use(blobPath(from, d))
	}
	if err == nil {
		err = s.link(blobPath(from, d), name)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("mount blob %s of %s to %s: %w", d, from, repo, err)
	}
	return nil
}

// DeleteBlob takes a blob from repo; other repositories keep theirs. Whoever
// finds a blob damaged deletes it and pushes it again. ErrBlobUnknown when repo does not hold it.
//
// Killed after the first step, repo is without the blob and its bytes wait for Sweep.
func (s *Store) DeleteBlob(repo string, d digest.Digest) error {
	err := s.remove(blobPath(repo, d))
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrBlobUnknown
	}
	if err == nil {
		err = s.reclaim(poolPath(d))
	}
	if err != nil {
		return fmt.Errorf("delete blob %s of %s: %w", d, repo, err)
	}
	return nil
}

// adopt makes data, a synced file whose digest was found to be d, a blob of
// repo. spare is a free name beside it. Either may still be there afterwards.
func (s *Store) adopt(data, spare, repo string, d digest.Digest) error {
	shared, err := s.share(poolPath(d), data, spare)
	if err != nil {
		return err
	}
	if shared {
		data = spare
	} else if err := s.fits(data); err != nil {
		return err
	}
	return s.place(data, repo, d, shared)
}

// place makes the synced file data a blob of repo. shared says that it is the pool's file already.
//
// Killed before the rename, repo is without the blob; after it, repo holds it
// and only the sharing with later uploads is lost.
func (s *Store) place(data, repo string, d digest.Digest, shared bool) error {
	pool, name := poolPath(d), blobPath(repo, d)
	for _, dir := range []string{path.Dir(pool), path.Dir(name)} {
		if err := s.mkdir(dir); err != nil {
			return err
		}
	}
	if err := s.use(data); err != nil {
		return err
	}
	if err := s.rename(data, name); err != nil || shared {
		return err
	}
	// The pool only saves space. The link fails when another upload was first,
	// or when a file has as many links as the file system allows.
	switch err := s.link(name, pool); {
	case err == nil:
		s.count(pool, 1)
	case !errors.Is(err, fs.ErrExist):
		s.log.Warn("blob will not be shared between repositories", "digest", d, "error", err)
	}
	return nil
}

// fits returns ErrFull unless the quota has room for the file.
func (s *Store) fits(name string) error {
	fi, err := s.root.Stat(name)
	if err != nil {
		return err
	}
	return s.quota.room(fi.Size())
}

// count adds a file of the pool to what the quota counts, or takes it off.
func (s *Store) count(pool string, sign int64) {
	if fi, err := s.root.Stat(pool); err == nil {
		s.quota.used.Add(sign * fi.Size())
	}
}

// share gives the pool's file the name spare if it has the bytes of data, which
// are known to be right. One that has not is damaged, and gives its place up.
func (s *Store) share(pool, data, spare string) (bool, error) {
	same, err := s.equal(pool, data)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !same {
		s.log.Error("blob was damaged on disk and is replaced by a new push; push it to its other repositories again", "blob", pool)
		s.count(pool, -1)
		return false, s.remove(pool)
	}
	return s.link(pool, spare) == nil, nil
}

// equal reports whether two files have the same bytes.
func (s *Store) equal(a, b string) (bool, error) {
	var files [2]*os.File
	var bufs [2]*[bufferSize]byte
	for i, name := range []string{a, b} {
		f, err := s.root.Open(name)
		if err != nil {
			return false, err
		}
		defer f.Close()
		files[i], bufs[i] = f, s.buffers.Get().(*[bufferSize]byte)
		defer s.buffers.Put(bufs[i])
	}
	for {
		n, err := fill(files[0], bufs[0][:])
		m, err2 := fill(files[1], bufs[1][:])
		switch {
		case err != nil && err != io.EOF:
			return false, err
		case err2 != nil && err2 != io.EOF:
			return false, err2
		case !bytes.Equal(bufs[0][:n], bufs[1][:m]):
			return false, nil
		case err == io.EOF || err2 == io.EOF:
			return err == err2, nil
		}
	}
}

// sweepBlobs removes the blobs that no repository holds.
func (s *Store) sweepBlobs() error {
	algorithms, err := s.list("blobs")
	if err != nil {
		return fmt.Errorf("sweep blobs: %w", err)
	}
	for _, a := range algorithms {
		entries, err := s.list(path.Join("blobs", a.Name()))
		if err != nil {
			return fmt.Errorf("sweep blobs: %w", err)
		}
		for _, e := range entries {
			if err := s.reclaim(path.Join("blobs", a.Name(), e.Name())); err != nil {
				return fmt.Errorf("sweep blobs: %w", err)
			}
		}
	}
	return nil
}

// reclaim removes a blob whose only name is the pool's. An upload that finds
// the blob at the same moment keeps it; only the sharing is lost.
func (s *Store) reclaim(pool string) error {
	fi, err := s.root.Stat(pool)
	if err == nil {
		if st, ok := fi.Sys().(*syscall.Stat_t); !ok || st.Nlink > 1 {
			return nil
		}
		if err = s.remove(pool); err == nil {
			s.quota.used.Add(-fi.Size())
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
