package mount

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/spate-project/spate/cache/piece"
)

// ErrGone says that the kernel asks nothing of the file system any more: it was
// unmounted, or ended, while nobody served it.
var ErrGone = errors.New("the mount is gone")

// Files returns the open files by which a successor can Resume the file system:
// the kernel's connection and a record. As long as some process holds them the
// mount outlives this one, and whoever uses it waits. They may be used between
// Mount or Resume and the end of Run, and are closed then.
func (f *FS) Files() []*os.File { return []*os.File{f.conn.device, f.rec.file} }

// Resume takes over what another FS with the same entries and options had
// mounted, in a process that is dead or has returned from Run after Leave. The
// files are those that Files had returned there; Resume closes them in the end,
// also when it fails.
//
// What was asked of the predecessor and not answered is asked again. Run must
// be called after a Resume that returned nil. After an error, which is ErrGone
// where there is nothing to take over, f can be mounted anew once the caller has
// let Clear remove the old mount. It takes Linux 6.9.
func (f *FS) Resume(files []*os.File) error {
	dir, err := f.resume(files)
	switch {
	case err != nil && dir == "":
		return fmt.Errorf("resume a mount: %w", err)
	case err != nil:
		return fmt.Errorf("resume the mount %s: %w", dir, err)
	}
	return nil
}

func (f *FS) resume(files []*os.File) (dir string, err error) {
	rest := slices.Clone(files) // what nobody owns yet
	defer func() {
		for _, file := range rest {
			file.Close()
		}
	}()
	if len(files) != 2 {
		return "", fmt.Errorf("there are %d files for it, not 2", len(files))
	}
	if !isDevice(files[0]) {
		return "", errors.New("the first file is not /dev/fuse")
	}
	rec, err := openRecord(files[1], len(f.nodes))
	if err != nil {
		return "", err
	}
	rest = rest[:1]
	defer func() {
		if err != nil {
			rec.close()
		}
	}()
	dir = rec.head.Dir
	for _, n := range f.nodes {
		if n.file != nil && n.digest == (piece.Digest{}) {
			return dir, fmt.Errorf("%s has no digest to know it by", n.path)
		}
	}
	if !bytes.Equal(rec.head.Entries, f.sum()) {
		return dir, errChanged
	}
	rest = nil
	conn, err := connect(files[0], rec.head.Device)
	if errors.Is(err, unix.ENOENT) {
		return dir, ErrGone
	}
	if err != nil {
		return dir, err
	}
	defer func() {
		if err != nil {
			conn.close()
		}
	}()
	if !conn.alive() { // so what has that number may be another
		return dir, ErrGone
	}
	server, reply, err := f.negotiate(rec.head.Request)
	if err != nil {
		return dir, err
	}
	if err := f.agree(rec.head.Reply, reply); err != nil {
		server.abandon(conn)
		return dir, err
	}
	if err := conn.resend(); err != nil {
		server.abandon(conn)
		return dir, fmt.Errorf("ask for what was not answered: %w", err)
	}
	f.serveOn(conn, rec, server)
	return dir, nil
}

// agree checks that a server that answered FUSE_INIT so can go on with a
// connection on which the kernel was answered otherwise.
func (f *FS) agree(old, reply []byte) error {
	was, err := parseInit(old)
	if err != nil {
		return err
	}
	is, err := parseInit(reply)
	if err != nil {
		return err
	}
	if is.MaxWrite < was.MaxWrite {
		return fmt.Errorf("the kernel may send %d bytes, for which this server has no room", was.MaxWrite)
	}
	return nil
}

// serveOn makes f what Run serves.
func (f *FS) serveOn(conn *connection, rec *record, s *server) {
	f.dir, f.conn, f.rec, f.server = rec.head.Dir, conn, rec, s
	reply, _ := parseInit(rec.head.Reply) // was parsed before
	f.passthrough = !f.opts.NoPassthrough && reply.passthrough()
	s.turnTo(conn.device)
}

// Leave leaves the mount to a successor, who has f.Files: from now on nothing is
// answered here, and Run returns when what is being read has been given up. It
// may be called between Mount or Resume and the end of Run, beside all else.
func (f *FS) Leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.leaving || !f.conn.alive() { // the server's descriptor may be closed and its number another's
		return
	}
	f.leaving = true
	f.server.turnTo(f.conn.control) // which takes no answer and has no requests
	close(f.left)
}

func (f *FS) isLeaving() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.leaving
}

// Clear unmounts lazily what a process that is gone has mounted at dir and
// nobody can resume. It returns nil when that is not there.
func Clear(dir string) error {
	within, err := filepath.EvalSymlinks(filepath.Dir(dir)) // not of dir itself: it is dead
	if err == nil {
		within, err = filepath.Abs(within)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("clear the mount %s: %w", dir, err)
	}
	dir = filepath.Join(within, filepath.Base(dir))
	var top *mountinfo.Info
	_, err = mountinfo.GetMounts(func(info *mountinfo.Info) (skip, stop bool) {
		if info.Mountpoint == dir {
			top = info
		}
		return true, false
	})
	if err != nil {
		return fmt.Errorf("clear the mount %s: %w", dir, err)
	}
	if top == nil || top.FSType != fsType {
		return nil
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("clear the mount %s: %w", dir, err)
	}
	return nil
}

// resent marks the number of a request that was sent before (FUSE_UNIQUE_RESEND).
const resent = 1 << 63

// resend has the kernel send again what was read and not answered
// (FUSE_NOTIFY_RESEND, which is a reply to nothing).
func (c *connection) resend() error {
	const notifyResend, length = 7, 16
	b := binary.NativeEndian.AppendUint32(nil, length)
	b = binary.NativeEndian.AppendUint32(b, notifyResend)
	return c.write(append(b, make([]byte, length-len(b))...))
}

func isDevice(file *os.File) bool {
	var st unix.Stat_t
	var err error
	outer := withFd(file, func(fd int) { err = unix.Fstat(fd, &st) })
	return outer == nil && err == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(10, 229) // misc, FUSE_MINOR
}
