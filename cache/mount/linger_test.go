package mount

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// bind mounts m elsewhere too, as a container's runtime does.
func (m *mounted) bind(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(m.dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func isMountPoint(t *testing.T, dir string) bool {
	t.Helper()
	st, err := statMount(dir)
	if err != nil {
		t.Fatal(err)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// TestUnmountBound: a bind mount lives on when the mount's own directory is free.
func TestUnmountBound(t *testing.T) {
	data := content(20, testSize)
	src := (&origin{data: data}).open(t, patient)
	m := mountAt(t, Options{}, Entry{Path: "f", File: src.into})
	bound := m.bind(t)
	if err := m.unmountIdle(); err != nil {
		t.Fatal(err)
	}
	if isMountPoint(t, m.dir) {
		t.Error("the directory is not free")
	}
	if got := runChild(t, "read", filepath.Join(bound, "f")); got != sum(data) {
		t.Errorf("through the bind mount: %s", got)
	}
	if err := m.Unmount(); err != nil {
		t.Error("a second Unmount:", err)
	}
	select {
	case err := <-m.done:
		t.Fatal("Run ended under the bind mount:", err)
	default:
	}
	for unix.Unmount(bound, 0) == unix.EBUSY { // by the child, which is gone
	}
	if err := <-m.done; err != nil {
		t.Error("Run after the last mount is gone:", err)
	}
}

// TestStopBound ends Run under a bind mount whose reader waits, while another
// file system has taken the directory.
func TestStopBound(t *testing.T) {
	src := (&origin{data: content(21, testSize)}).held().open(t, patient)
	m := mountAt(t, Options{}, Entry{Path: "f", File: src.into})
	bound := m.bind(t)
	_, out := startChild(t, "read", filepath.Join(bound, "f"))
	<-src.begun
	if err := m.unmountIdle(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", m.dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	m.stop()
	if err := <-m.done; err != nil {
		t.Error(err)
	}
	if out.Scan(); !strings.HasPrefix(out.Text(), "error:") {
		t.Errorf("the reader got %q", out.Text())
	}
	if !isMountPoint(t, m.dir) {
		t.Error("Run unmounted what is not its own")
	}
}

// TestStopBoundInPlace is the same with the mount still in its directory.
func TestStopBoundInPlace(t *testing.T) {
	src := (&origin{data: content(22, testSize)}).open(t, patient)
	m := mountAt(t, Options{}, Entry{Path: "f", File: src.into})
	bound := m.bind(t)
	m.stop()
	if err := <-m.done; err != nil {
		t.Error(err)
	}
	if isMountPoint(t, m.dir) {
		t.Error("Run left the mount behind")
	}
	if got := runChild(t, "read", filepath.Join(bound, "f")); !strings.HasPrefix(got, "error:") {
		t.Errorf("read through the bind mount: %q", got)
	}
}

// TestStopAfterLazyUnmount: by hand, with a file open.
func TestStopAfterLazyUnmount(t *testing.T) {
	src := (&origin{data: content(23, testSize)}).open(t, patient)
	m := mountAt(t, Options{}, Entry{Path: "f", File: src.into})
	f, err := os.Open(m.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Unmount(m.dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(make([]byte, 10), 0); err != nil {
		t.Error("before the stop:", err)
	}
	m.stop()
	if err := <-m.done; err != nil {
		t.Error(err)
	}
	if n, err := f.ReadAt(make([]byte, 10), testSize-10); n != 0 || err == nil {
		t.Errorf("after the stop: %d, %v", n, err)
	}
}

// TestAborted: an administrator ends the connection under a reader that waits.
func TestAborted(t *testing.T) {
	src := (&origin{data: content(24, testSize)}).held().open(t, patient)
	m := mountAt(t, Options{}, Entry{Path: "f", File: src.into})
	_, out := startChild(t, "read", m.path("f"))
	<-src.begun
	unix.Unmount(m.dir, unix.MNT_FORCE) // aborts, whether or not it can unmount
	if err := <-m.done; err != nil {
		t.Error(err)
	}
	if out.Scan(); !strings.HasPrefix(out.Text(), "error:") {
		t.Errorf("the reader got %q", out.Text())
	}
	if isMountPoint(t, m.dir) {
		t.Error("a mount that nobody serves is left behind")
	}
}

// TestDeviceNumberIsUsedAgain: what takes the place and the number of a file
// system that is gone is not taken for it.
func TestDeviceNumberIsUsedAgain(t *testing.T) {
	src := (&origin{data: content(25, 10)}).open(t, patient)
	m := mountAt(t, Options{}, Entry{Path: "f", File: src.into})
	control, err := m.conn.control.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	control.Control(func(c uintptr) { fd, err = unix.Dup(int(c)) })
	if err != nil {
		t.Fatal(err)
	}
	old := &connection{dev: m.conn.dev, control: os.NewFile(uintptr(fd), "control")}
	defer old.control.Close()
	if !old.isAt(m.dir) {
		t.Fatal("the file system is not found")
	}
	if err := m.unmountIdle(); err != nil {
		t.Fatal(err)
	}
	<-m.done
	if err := unix.Mount("tmpfs", m.dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	st, err := statMount(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	old.dev = device(st) // mostly it is so already
	if old.isAt(m.dir) {
		t.Error("another file system is taken for the one that is gone")
	}
	if err := old.end(); err != nil {
		t.Error("end of what is gone:", err)
	}
	if err := m.Unmount(); err != nil || !isMountPoint(t, m.dir) {
		t.Errorf("a late Unmount: %v", err)
	}
}
