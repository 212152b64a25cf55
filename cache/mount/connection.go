package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// A connection is the kernel's end of a file system. Both live as long as
// anything holds them: the mount itself, another that was bound to it, or an
// open file after a lazy unmount. Nothing but the kernel's control files ends
// the connection before; to close /dev/fuse is no use while it is being read.
type connection struct {
	dev     uint64   // a number that is another's once the file system is gone
	device  *os.File // /dev/fuse, read and written here only while no server does; it has a descriptor of its own
	control *os.File // the directory of the connection's control files
}

// connect returns the connection of the file system with device number dev,
// whose /dev/fuse is device. That is closed with the connection, and
// when connect fails.
func connect(device *os.File, dev uint64) (*connection, error) {
	control, err := openControl(unix.Minor(dev))
	if err != nil {
		device.Close()
		return nil, fmt.Errorf("open the kernel's control files for it: %w: mount fusectl at %s", err, controlDir)
	}
	return &connection{dev: dev, device: device, control: control}, nil
}

// read returns the next request of the kernel's, one without data.
func (c *connection) read() (request []byte, err error) {
	request = make([]byte, minRead)
	n := 0
	outer := withFd(c.device, func(fd int) {
		for n, err = unix.Read(fd, request); err == unix.EINTR; n, err = unix.Read(fd, request) {
		}
	})
	return request[:max(n, 0)], errors.Join(outer, err)
}

// write sends the kernel a reply or a notice.
func (c *connection) write(b []byte) (err error) {
	outer := withFd(c.device, func(fd int) { _, err = unix.Write(fd, b) })
	return errors.Join(outer, err)
}

// minRead is the least room for a request that the kernel takes (FUSE_MIN_READ_BUFFER).
const minRead = 8192

const controlDir = "/sys/fs/fuse/connections"

// openControl opens the control directory of the connection with this device
// number. A mount of our own is used where the kernel allows that, for in
// containers there is often none at controlDir.
func openControl(minor uint32) (*os.File, error) {
	name := strconv.FormatUint(uint64(minor), 10)
	root, err := mountControl()
	if err != nil {
		return os.Open(controlDir + "/" + name)
	}
	defer unix.Close(root)
	fd, err := unix.Openat(root, name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// mountControl mounts the control file system, which there is only one of, without a path.
func mountControl() (root int, err error) {
	fd, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	if err := unix.FsconfigCreate(fd); err != nil {
		return -1, err
	}
	return unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
}

// openAbort opens the file that ends the connection. It is there for as long as the file system is.
func (c *connection) openAbort() (f *os.File, err error) {
	outer := withFd(c.control, func(dir int) {
		var fd int
		if fd, err = unix.Openat(dir, "abort", unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
			f = os.NewFile(uintptr(fd), "abort")
		}
	})
	return f, errors.Join(outer, err)
}

// end makes every use of the file system fail, waiting ones included, and the server return.
func (c *connection) end() error {
	f, err := c.openAbort()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString("1")
	return err
}

// alive reports whether the kernel may still ask anything.
func (c *connection) alive() bool {
	poll := []unix.PollFd{{}}
	err := withFd(c.device, func(fd int) {
		poll[0].Fd = int32(fd)
		unix.Poll(poll, 0) // does not wait
	})
	return err == nil && poll[0].Revents&unix.POLLERR == 0
}

// isAt reports whether the file system is what is mounted at dir.
func (c *connection) isAt(dir string) bool {
	st, err := statMount(dir)
	if err != nil || st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 || device(st) != c.dev {
		return false
	}
	f, err := c.openAbort() // still there, so the number was not another's
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// close ends all use of c, though not the connection. It may be called beside the other methods.
func (c *connection) close() {
	c.device.Close()
	c.control.Close()
}

// withFd calls use with f's descriptor, which stays open meanwhile.
func withFd(f *os.File, use func(fd int)) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Control(func(fd uintptr) { use(int(fd)) })
}

func device(st unix.Statx_t) uint64 { return unix.Mkdev(st.Dev_major, st.Dev_minor) }
