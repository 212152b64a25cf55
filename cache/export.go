package cache

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// exportStep is how much is copied between two looks at the context.
const exportStep = 64 << 20

// Export writes the complete object to a file at path with the permissions of
// mode, replacing what was there in one step: on an error path is as it was.
// The file shares the cache's blocks where the file system can (a reflink) and
// is a copy elsewhere; in either case writing to it later leaves the cache alone.
func (o *Object) Export(ctx context.Context, path string, mode fs.FileMode) (err error) {
	if !o.Complete() {
		p := o.Progress()
		return fmt.Errorf("export object %s: %d of %d pieces are here", o.object.Digest, p.Present, p.Total)
	}
	out, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("export object %s: %w", o.object.Digest, err)
	}
	defer func() {
		if err != nil {
			out.Close()
			os.Remove(out.Name())
			err = fmt.Errorf("export object %s to %s: %w", o.object.Digest, path, err)
		}
	}()
	if err := o.copyTo(ctx, out); err != nil {
		return err
	}
	if err := out.Chmod(mode.Perm()); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	if err := o.failed(); err != nil { // quarantined meanwhile
		return err
	}
	return os.Rename(out.Name(), path)
}

func (o *Object) copyTo(ctx context.Context, out *os.File) error {
	in, err := os.Open(o.data.Name()) // for a position of its own, which copy_file_range(2) needs
	if err != nil {
		return err
	}
	defer in.Close()
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return nil
	}
	for left := o.object.Size; left > 0; left -= min(left, exportStep) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, err := io.CopyN(out, in, min(left, exportStep)); err != nil {
			return err
		}
	}
	return nil
}
