// Package holder keeps open files for a process that may be killed and comes
// back: the descriptors of its mounts, which live as long as somebody holds them.
//
// They are held by a small process of our own, or by systemd (254 or newer)
// where that runs the service and has room: FileDescriptorStoreMax= in the unit.
// Neither ever uses what it holds. A process of ours in a unit without such room
// needs KillMode=process there, or systemd ends it together with the service.
package holder

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// A Store keeps open files by name, beyond the end of this process. Names are 1
// to 128 bytes of printable ASCII without spaces and colons. It is safe for
// concurrent use.
type Store interface {
	// Put keeps duplicates of the files, at most 8, in place of what had that
	// name. When it returns nil they are safe.
	Put(name string, files ...*os.File) error

	// Get returns duplicates of the files of that name, which are the caller's,
	// in Put's order. Errors: fs.ErrNotExist.
	Get(name string) ([]*os.File, error)

	// Drop closes what is kept by that name, if there is any.
	Drop(name string) error

	// Names returns all names, sorted.
	Names() ([]string, error)
}

// Open returns systemd's store where systemd offers one to this process, and
// otherwise the holder process's: see Start.
func Open(socket string, command ...string) (Store, error) {
	if s, err := NewSystemd(); s != nil || err != nil {
		return s, err
	}
	return Start(socket, command...)
}

const (
	maxName  = 128
	maxFiles = 8
)

func checkName(name string) error {
	bad := func(r rune) bool { return r <= ' ' || r > '~' || r == ':' }
	if name == "" || len(name) > maxName || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("the name %q is not of 1 to %d printable ASCII characters without spaces and colons", name, maxName)
	}
	return nil
}

func checkFiles(n int) error {
	if n < 1 || n > maxFiles {
		return fmt.Errorf("%d files are not 1 to %d", n, maxFiles)
	}
	return nil
}

// duplicate opens files a second time. It does not change how they block.
func duplicate(files []*os.File) (dup []*os.File, err error) {
	for _, f := range files {
		var fd int
		outer := withFd(f, func(old int) { fd, err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0) })
		if err := errors.Join(outer, err); err != nil {
			closeAll(dup)
			return nil, err
		}
		dup = append(dup, os.NewFile(uintptr(fd), f.Name()))
	}
	return dup, nil
}

func withFd(f *os.File, use func(fd int)) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Control(func(fd uintptr) { use(int(fd)) })
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
