// Package mount shows files whose bytes are still on their way: a read-only
// FUSE file system over a cache's objects.
//
// A read waits until what it asks for is verified. It gets exactly the file's
// bytes or an error, never zeros and never less than there is. What the kernel
// has read stays in its page cache; a complete file is handed to the kernel
// altogether (FUSE passthrough), and reading it never enters this process again.
//
// The file system keeps no state that a successor could not compute: a node's
// id is its inode number, given by the sorted paths alone, and a file handle
// says no more than how the file was opened. What remains, how many have each
// file open, is in a memory file. So a mount outlives the process that serves
// it where another holds the descriptors that Files returns: what is asked
// meanwhile waits for the next one, which takes the mount over by Resume.
//
// A process must not use a mount that it serves: the kernel would make it wait
// for itself, past all that the Go runtime can preempt and all that can kill it.
package mount

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/spate-project/spate/cache/piece"
)

const (
	fsType = "fuse.spate"

	// maxRead is the largest read that the kernel sends: its limit unless an administrator raised it.
	maxRead = 1 << 20

	// maxBackground is how many reads ahead of the readers the kernel sends
	// before they are answered. Each holds a buffer of maxRead.
	maxBackground = 32
)

// A File is what a mounted file needs of its object. A cache's object is one.
// It is safe for concurrent use.
type File interface {
	// Size returns the length in bytes. It never changes.
	Size() int64

	// ReadContext reads len(p) verified bytes at off, fewer only at the end of
	// the file, and waits for what is not here. The context governs the wait.
	ReadContext(ctx context.Context, p []byte, off int64) (int, error)

	// Complete reports whether every byte is here and verified.
	Complete() bool

	// File returns the descriptor that the kernel may read a Complete file from.
	File() *os.File
}

// An Entry is one file of a mount.
type Entry struct {
	Path    string      // slash-separated and relative, as fs.ValidPath has it
	Mode    fs.FileMode // permissions; those to write are dropped. 0444 when 0
	ModTime time.Time   // the epoch when zero
	File    File        // open until Run has returned

	// Digest says what is in File. Only Resume needs it.
	Digest piece.Digest
}

// Options of an FS. The zero value is ready to use.
type Options struct {
	Logger *slog.Logger // nil: silent

	// ReadAhead is how far the kernel reads ahead of a sequential reader, in bytes; 4 MiB when 0.
	ReadAhead int64

	// NoPassthrough serves complete files through this process too, as is needed
	// where other file systems are to be mounted from files of this one.
	NoPassthrough bool
}

// An FS is a file system that is mounted, or taken over, at most once.
type FS struct {
	fuse.RawFileSystem // refuses what is not defined here

	opts  Options
	log   *slog.Logger
	nodes []*node // by inode number, less one
	size  int64   // of all files
	said  complaints

	dir    string
	server *server
	conn   *connection
	rec    *record

	serving context.Context // of Run
	left    chan struct{}   // closed by Leave

	mu          sync.Mutex // guards the rest, and the opens in rec
	passthrough bool
	leaving     bool
}

// New makes a file system of entries. Directories are made as the paths need them.
func New(entries []Entry, opts Options) (*FS, error) {
	opts.ReadAhead = cmp.Or(opts.ReadAhead, 4<<20)
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	f := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		opts:          opts, log: opts.Logger, left: make(chan struct{}),
	}
	if err := f.build(entries); err != nil {
		return nil, err
	}
	return f, nil
}

// Mount mounts the file system at dir, an empty directory. Reads wait until
// Run, which must be called after a Mount that returned nil. It needs the right
// to mount and /dev/fuse.
func (f *FS) Mount(dir string) error {
	dir, err := checkMountPoint(dir)
	if err != nil {
		return err
	}
	if err := f.mount(dir); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	f.raiseReadAhead()
	return nil
}

func (f *FS) mount(dir string) (err error) {
	// The descriptor must not be inherited: a child that outlived us would keep readers waiting.
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/fuse: %w", err)
	}
	dev := os.NewFile(uintptr(fd), "/dev/fuse")
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,max_read=%d,allow_other,default_permissions",
		fd, unix.S_IFDIR, os.Geteuid(), os.Getegid(), maxRead)
	if err := unix.Mount("spate", dir, fsType, unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		dev.Close()
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%w: it takes root, or CAP_SYS_ADMIN", err)
		}
		return err
	}
	defer func() {
		if err != nil {
			unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
		}
	}()
	st, err := statMount(dir)
	if err != nil {
		dev.Close()
		return err
	}
	conn, err := connect(dev, device(st))
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			conn.close()
		}
	}()
	request, err := conn.read()
	if err != nil {
		return fmt.Errorf("read the kernel's first request: %w", err)
	}
	server, reply, err := f.negotiate(request)
	if err != nil {
		return err
	}
	rec, err := newRecord(head{Dir: dir, Device: conn.dev, Entries: f.sum(), Request: request, Reply: reply}, len(f.nodes))
	if err == nil {
		if err = conn.write(reply); err != nil {
			rec.close()
		}
	}
	if err != nil {
		server.abandon(conn)
		return err
	}
	f.serveOn(conn, rec, server)
	return nil
}

// Run serves the file system, which Mount has mounted or Resume taken over,
// until nothing holds it any more: it is unmounted, and so is every mount that
// was bound to it, and after a lazy unmount its last file is closed.
//
// When ctx ends, Run ends the file system at once, whatever is in use and
// wherever it is mounted, and unmounts it from its directory if it is there
// still. Reads that wait fail, and so do later ones, but what was opened by
// passthrough stays readable. Mounts bound elsewhere stay, for those who made
// them to unmount; all that is asked of them fails.
//
// After Leave, Run returns and ends nothing.
//
// Run returns nil unless that failed.
func (f *FS) Run(ctx context.Context) error {
	defer f.rec.close()
	defer f.conn.close()
	serving, cancel := context.WithCancel(ctx)
	defer cancel()
	f.serving = serving
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.server.Serve()
	}()
	select {
	case <-done:
	case <-f.left:
	case <-ctx.Done():
	}
	if f.isLeaving() {
		cancel()
		drain(done)
		return nil
	}
	if ctx.Err() != nil {
		if err := f.conn.end(); err != nil {
			f.Leave()
			drain(done)
			return fmt.Errorf("end the mount %s: %w", f.dir, err)
		}
	}
	<-done
	return f.unmount(unix.MNT_DETACH)
}

// Unmount frees the directory, and returns nil also when that was done before
// or something else is mounted there by now. Run returns then, unless a mount
// that was bound to this one, or a file after a lazy unmount, is still in use:
// those are served on until they are gone or Run's context ends. Unmount fails
// when files are in use through the directory; end Run's context to unmount all
// the same.
func (f *FS) Unmount() error { return f.unmount(0) }

func (f *FS) unmount(flags int) error {
	if !f.conn.isAt(f.dir) {
		return nil
	}
	switch err := unix.Unmount(f.dir, flags); {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("unmount %s: %w: end the processes that use files in it (fuser -vm %s lists them)", f.dir, err, f.dir)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // unmounted by hand
		return nil
	case err != nil:
		return fmt.Errorf("unmount %s: %w", f.dir, err)
	}
	return nil
}

// statMount asks nothing of a file system mounted at dir, which may hang.
func statMount(dir string) (st unix.Statx_t, err error) {
	err = unix.Statx(unix.AT_FDCWD, dir, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	return st, err
}

// checkMountPoint returns the absolute path of dir if it can be mounted at.
func checkMountPoint(dir string) (string, error) {
	st, err := statMount(dir)
	switch {
	case errors.Is(err, unix.ENOENT):
		return "", fmt.Errorf("mount %s: %w: make it first", dir, err)
	case errors.Is(err, unix.ENOTCONN):
		return "", fmt.Errorf("mount %s: %w: the server of a mount there is gone; remove that with: umount -l %s", dir, err, dir)
	case err != nil:
		return "", fmt.Errorf("mount %s: %w", dir, err)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return "", fmt.Errorf("mount %s: %w", dir, unix.ENOTDIR)
	case st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0:
		return "", fmt.Errorf("mount %s: %w: something is mounted there; unmount it first: umount %s", dir, unix.EBUSY, dir)
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("mount %s: %w", dir, err)
	}
	if len(names) > 0 {
		return "", fmt.Errorf("mount %s: %w: the mount would hide %s and what else is in it", dir, unix.ENOTEMPTY, names[0].Name())
	}
	if dir, err = filepath.EvalSymlinks(dir); err == nil {
		dir, err = filepath.Abs(dir)
	}
	return dir, err
}

// raiseReadAhead lets the kernel read further ahead than the 128 KiB that FUSE can ask for.
func (f *FS) raiseReadAhead() {
	st, err := statMount(f.dir)
	if err == nil {
		path := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", st.Dev_major, st.Dev_minor)
		err = os.WriteFile(path, strconv.AppendInt(nil, f.opts.ReadAhead>>10, 10), 0)
	}
	if err != nil {
		f.log.Warn("the kernel's readahead stays at its default, so reads are small and slower", "mount", f.dir, "error", err)
	}
}
