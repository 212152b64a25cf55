package model

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"oras.land/oras-go/v2/content"

	"github.com/spate-project/spate/cache/piece"
)

// filesAtOnce is how many files Unpack has open at once, whatever the number of streams.
const filesAtOnce = 4

// Unpack writes the files of a model into dir, which it makes where it is
// missing. A file appears under its name when its digest was verified and not
// before; one that is there already with the right bytes is left alone, one with
// others is replaced. Nothing is written outside dir, whatever the model's paths
// and dir's links say. After an error, files that were completed stay, and
// nothing else that Unpack made.
//
// A source that is a Ranger is read in several ranges at once, and a range that
// breaks off is taken up again where it ended. Archives are read whole. Memory
// does not depend on the size of the files: about 1 MiB a stream.
func Unpack(ctx context.Context, source content.Fetcher, files []File, dir string, opts Options) error {
	if err := unpack(ctx, source, files, dir, opts); err != nil {
		return fmt.Errorf("unpack into %s: %w", dir, err)
	}
	return nil
}

func unpack(ctx context.Context, source content.Fetcher, files []File, dir string, opts Options) (err error) {
	streams := cmp.Or(max(opts.Concurrency, 0), 8)
	opts.Silence = cmp.Or(max(opts.Silence, 0), time.Minute)
	u := &unpacker{source: source, opts: opts, streams: semaphore.NewWeighted(int64(streams))}
	var size int64
	for _, f := range files {
		size += f.Size
		if !f.Archive() {
			if err := u.paths.add(f.Path); err != nil {
				return err
			}
		}
	}
	_, statErr := os.Stat(dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if u.root, err = os.OpenRoot(dir); err != nil {
		return err
	}
	defer u.root.Close()
	defer func() {
		if err != nil {
			u.removeDirs()
			if errors.Is(statErr, fs.ErrNotExist) {
				os.Remove(dir) // fails when a file was completed, as it should
			}
		}
	}()
	opts.progress(Event{Step: Planned, Files: len(files), Size: size})
	missing, err := u.missing(ctx, files)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(min(filesAtOnce, streams))
	for _, f := range missing {
		g.Go(func() error {
			if err := u.write(ctx, f); err != nil {
				return fmt.Errorf("%s: %w", f.Path, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// An unpacker is one run of Unpack.
type unpacker struct {
	source   content.Fetcher
	opts     Options
	root     *os.Root
	streams  *semaphore.Weighted // one for each stream from the source
	received atomic.Bool         // whether the source has ever sent anything

	mu    sync.Mutex
	paths tree     // of all files, as far as they are known
	made  []string // directories that were not there before
}

// missing returns the files that are not there yet, or not as they should be.
func (u *unpacker) missing(ctx context.Context, files []File) ([]File, error) {
	there := make([]bool, len(files))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, f := range files {
		g.Go(func() (err error) {
			there[i], err = u.isThere(ctx, f)
			if there[i] {
				u.opts.progress(Event{Step: Started, Path: f.Path, Size: f.Size})
				u.opts.progress(Event{Step: Finished, Path: f.Path, Done: f.Size, Size: f.Size})
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var missing []File
	for i, f := range files {
		if !there[i] {
			missing = append(missing, f)
		}
	}
	return missing, nil
}

// isThere reports whether f was unpacked before. A file that cannot be read is not.
func (u *unpacker) isThere(ctx context.Context, f File) (bool, error) {
	if f.Archive() {
		return false, nil
	}
	info, err := u.root.Lstat(f.Path)
	if err != nil || !info.Mode().IsRegular() || info.Size() != f.Size {
		return false, nil
	}
	file, err := u.root.Open(f.Path)
	if err != nil {
		return false, nil
	}
	defer file.Close()
	v := newVerifier(f)
	if err := v.read(ctx, file, 0, f.Size); err != nil {
		return false, ctx.Err()
	}
	if v.check() != nil {
		return false, nil
	}
	if info.Mode().Perm() != f.Mode {
		return true, file.Chmod(f.Mode)
	}
	return true, nil
}

// write unpacks one file or archive.
func (u *unpacker) write(ctx context.Context, f File) error {
	u.opts.progress(Event{Step: Started, Path: f.Path, Size: f.Size})
	unpack := u.writeFile
	if f.Archive() {
		unpack = u.writeArchive
	}
	if err := unpack(ctx, f); err != nil {
		return err
	}
	u.opts.progress(Event{Step: Finished, Path: f.Path, Done: f.Size, Size: f.Size})
	return nil
}

// writeFile unpacks a plain file: under a name of its own first, beside the
// place where it belongs.
func (u *unpacker) writeFile(ctx context.Context, f File) (err error) {
	dir := path.Dir(f.Path)
	if err := u.makeDirs(dir); err != nil {
		return err
	}
	temp := path.Join(dir, tempName())
	file, err := u.root.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, u.root.Remove(temp))
		}
	}()
	err = u.fill(ctx, file, f)
	if err == nil {
		err = file.Chmod(f.Mode)
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return u.root.Rename(temp, f.Path)
}

// tempName returns a name that nobody else has, hidden from ls and from Pack.
func tempName() string { return ".spate-" + rand.Text() }

// makeDirs makes a directory of the model with its parents.
func (u *unpacker) makeDirs(dir string) error {
	if dir == "." {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	var missing []string
	for d := dir; d != "."; d = path.Dir(d) {
		missing = append(missing, d)
	}
	for _, d := range slices.Backward(missing) {
		err := u.root.Mkdir(d, 0o755)
		if err == nil {
			u.made = append(u.made, d)
		} else if !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// removeDirs removes the directories that were made and stayed empty.
func (u *unpacker) removeDirs() {
	for _, dir := range slices.Backward(u.made) {
		u.root.Remove(dir) // fails for those with a file, as it should
	}
}

// claim takes a path for a file out of an archive.
func (u *unpacker) claim(file string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.paths.add(file)
}

// wrongBytes blames whatever the source is; it is known to the source's own errors only.
func wrongBytes(f File) error {
	d, err := piece.ParseDigest(f.Descriptor.Digest.String())
	if err != nil {
		return err
	}
	return &piece.WrongBytesError{Object: d, Piece: -1}
}
