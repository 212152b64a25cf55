package cache

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// exportStep is how much is copied between two looks at the context.
const exportStep = 64 << 20

// Export writes the complete object to the file name in root, a slash-separated
// relative path whose missing directories are made, with the permissions of
// mode. It replaces what was there in one step, once the bytes are on the disk:
// on an error, and after a power cut, name is as it was or whole. Nothing
// outside root is touched, whatever symbolic links lie in it. The file shares
// the cache's blocks where the file system can (a reflink) and is a copy
// elsewhere; in either case writing to it later leaves the cache alone. The
// context ends a copy.
func (o *Object) Export(ctx context.Context, root *os.Root, name string, mode fs.FileMode) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("export object %s to %s in %s: %w", o.object.Digest, name, root.Name(), err)
		}
	}()
	if !fs.ValidPath(name) || name == "." {
		return fmt.Errorf("the name is not a relative path: %w", fs.ErrInvalid)
	}
	if err := o.Err(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !o.Complete() {
		p := o.Progress()
		return fmt.Errorf("%d of %d pieces are here", p.Present, p.Total)
	}
	dir := path.Dir(name)
	if err := root.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	part := path.Join(dir, ".spate-"+rand.Text()) // short and random, as name may be as long as can be
	out, err := root.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			out.Close()
			root.Remove(part)
		}
	}()
	if err := o.copyTo(ctx, out); err != nil {
		return err
	}
	if err := out.Chmod(mode.Perm()); err != nil {
		return err
	}
	if err := out.Sync(); err != nil { // else a power cut could leave zeros under name
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	if err := o.Err(); err != nil { // quarantined meanwhile
		return err
	}
	return root.Rename(part, name)
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
