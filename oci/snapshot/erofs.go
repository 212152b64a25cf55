package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// erofsMagic is what statfs tells of an EROFS mount (linux/magic.h: EROFS_SUPER_MAGIC_V1).
const erofsMagic = 0xE0F5E1E2

// A mountError: the kernel mounts no EROFS here, or not this one.
type mountError struct{ err error }

func (e *mountError) Error() string { return e.err.Error() }
func (e *mountError) Unwrap() error { return e.err }

// mountLayer mounts a layer at dir/fs, or keeps the mount that is there if it
// reads from the layer's files. The error is a *mountError.
func mountLayer(layer *Layer, dir string) (Path, error) {
	path, err := tryMount(layer, filepath.Join(dir, "fs"), filepath.Join(dir, "mount"))
	if err != nil {
		return "", &mountError{fmt.Errorf("mount %s over %s: %w", layer.Metadata, layer.Device, err)}
	}
	return path, nil
}

func tryMount(layer *Layer, dir, record string) (Path, error) {
	device, err := identify(layer.Device)
	if err != nil {
		return "", err
	}
	metadata, err := identify(layer.Metadata)
	if err != nil {
		return "", err
	}
	from := device + " " + metadata
	if mounted(dir) {
		if path := recorded(record, from); path != "" {
			return path, nil
		}
	}
	// A mount that reads from other files has lost its source: containers that
	// still run on it keep it, new ones get a new one.
	if err := errors.Join(unmount(dir), remove(record)); err != nil {
		return "", err
	}
	path := LazyFile
	err = mountEROFS(layer.Metadata, layer.Device, dir)
	if errors.Is(err, unix.ENOTBLK) {
		// Linux before 6.12, or files of a file system that lies on others itself.
		path = LazyLoop
		err = mountLoops(layer.Metadata, layer.Device, dir)
	}
	if err != nil {
		return "", err
	}
	return path, os.WriteFile(record, []byte(string(path)+" "+from), 0o600)
}

// identify names the file system and the file behind name, so that a new file
// at the same name is another one.
func identify(name string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: name, Err: err}
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino), nil
}

// recorded returns how the mount that record tells of was made, empty unless it
// reads from those files. A damaged record tells of none.
func recorded(record, files string) Path {
	data, err := os.ReadFile(record)
	if err != nil {
		return ""
	}
	path, from, _ := strings.Cut(string(data), " ")
	if from != files || path != string(LazyFile) && path != string(LazyLoop) {
		return ""
	}
	return Path(path)
}

func remove(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func mountEROFS(metadata, device, dir string) error {
	if strings.Contains(device, ",") {
		return fmt.Errorf("a comma in %q would end the mount option", device)
	}
	return unix.Mount(metadata, dir, "erofs", unix.MS_RDONLY, "device="+device)
}

// mountLoops mounts through a loop device for each of the files. The kernel
// frees them with the mount.
func mountLoops(metadata, device, dir string) error {
	var names [2]string
	for i, file := range []string{metadata, device} {
		loop, err := mount.SetupLoop(file, mount.LoopParams{Readonly: true, Autoclear: true})
		if err != nil {
			return fmt.Errorf("loop device of %s: %w", file, err)
		}
		defer loop.Close()
		names[i] = loop.Name()
	}
	return mountEROFS(names[0], names[1], dir)
}

// mounted reports whether an EROFS is mounted at dir.
func mounted(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && int64(st.Type) == erofsMagic
}

// unmount unmounts all that is mounted at dir, later if it is in use.
func unmount(dir string) error {
	for {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		if err == unix.EBUSY {
			err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		switch err {
		case nil: // one may lie on another
		case unix.EINVAL, unix.ENOENT: // nothing is mounted there
			return nil
		default:
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
}
