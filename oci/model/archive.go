package model

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"oras.land/oras-go/v2/content"

	"github.com/spate-project/spate/oci/layer"
)

// writeArchive unpacks an archive: into a directory of its own first, from where
// its files move to their places when the whole archive was verified.
func (u *unpacker) writeArchive(ctx context.Context, f File) (err error) {
	if err := u.streams.Acquire(ctx, 1); err != nil {
		return err
	}
	defer u.streams.Release(1)
	temp := tempName()
	if err := u.root.Mkdir(temp, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, u.root.RemoveAll(temp)) }()
	dir, err := u.root.OpenRoot(temp)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := u.extract(ctx, f, dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := u.claim(name); err != nil {
			return err
		}
		if err := u.makeDirs(path.Dir(name)); err != nil {
			return err
		}
		if err := u.root.Rename(path.Join(temp, name), name); err != nil {
			return err
		}
	}
	return nil
}

// extract writes the files of the archive f into dir and returns their paths.
// When it succeeds the archive had the right digest.
func (u *unpacker) extract(ctx context.Context, f File, dir *os.Root) ([]string, error) {
	body, err := u.source.Fetch(ctx, f.Descriptor)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	blob := &blobReader{VerifyReader: content.NewVerifyReader(body, f.Descriptor), file: f, advanced: u.counter(f)}
	names, err := extractBlob(f.Descriptor.MediaType, blob, dir)
	if errors.As(err, new(*archiveError)) {
		// The source may have made it so rather than the publisher; the digest tells.
		if _, blobErr := io.Copy(io.Discard, blob); blobErr != nil {
			err = blobErr
		}
	}
	return names, err
}

func extractBlob(mediaType string, blob io.Reader, dir *os.Root) ([]string, error) {
	expanded, err := layer.Expand(mediaType, blob)
	if err != nil {
		return nil, &archiveError{err}
	}
	defer expanded.Close()
	names, err := extractEntries(tar.NewReader(expanded), dir)
	if err != nil {
		return nil, err
	}
	// What is behind the last entry is part of the digest too.
	if _, err := io.Copy(io.Discard, expanded); err != nil {
		return nil, &archiveError{err}
	}
	return names, nil
}

// An archiveError says that bytes are no archive.
type archiveError struct{ err error }

func (e *archiveError) Error() string { return "read the archive: " + e.err.Error() }
func (e *archiveError) Unwrap() error { return e.err }

func extractEntries(archive *tar.Reader, dir *os.Root) (names []string, err error) {
	var paths tree
	for {
		entry, err := archive.Next()
		if err == io.EOF {
			return names, nil
		}
		if err != nil {
			return nil, &archiveError{err}
		}
		name, err := entryName(entry)
		if err != nil {
			return nil, err
		}
		if name == "" {
			continue
		}
		if err := paths.add(name); err != nil {
			return nil, err
		}
		if names = append(names, name); len(names) > MaxFiles {
			return nil, fmt.Errorf("the archive has more than %d files", MaxFiles)
		}
		if err := writeEntry(archive, entry, dir, name); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
}

// entryName returns the path of a file in an archive, and "" for an entry that
// is none and needs nothing done.
func entryName(entry *tar.Header) (string, error) {
	switch entry.Typeflag {
	case tar.TypeReg:
	case tar.TypeDir, tar.TypeXGlobalHeader:
		return "", nil
	default:
		return "", fmt.Errorf("the archive's %q is of type %q; a model has files and directories only", entry.Name, entry.Typeflag)
	}
	name := strings.TrimPrefix(entry.Name, "./")
	return name, checkPath(name)
}

func writeEntry(r io.Reader, entry *tar.Header, dir *os.Root, name string) error {
	if err := dir.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	file, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = io.Copy(file, r); err != nil && !errors.As(err, new(*fs.PathError)) {
		err = &archiveError{err} // it was not the disk
	}
	if err == nil {
		err = file.Chmod(plainMode(entry.FileInfo().Mode()))
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	return err
}

// A blobReader cannot be read to its end when the blob is not what it should be.
type blobReader struct {
	*content.VerifyReader
	file     File
	advanced func(n int64)
}

func (r *blobReader) Read(p []byte) (int, error) {
	n, err := r.VerifyReader.Read(p)
	if n > 0 {
		r.advanced(int64(n))
	}
	if err == io.EOF {
		if verifyErr := r.Verify(); verifyErr != nil {
			err = verifyErr
		}
	}
	if errors.Is(err, content.ErrMismatchedDigest) || errors.Is(err, content.ErrTrailingData) {
		err = wrongBytes(r.file)
	}
	return n, err
}
