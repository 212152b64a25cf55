package layer

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"golang.org/x/sys/unix"
)

// compareLayers requires that the layers in the files, shown by their metadata and
// overlayfs, are what containerd unpacks. It returns where they are mounted.
func compareLayers(t *testing.T, files ...string) string {
	t.Helper()
	mounted, layers := mountLayers(t, files...)
	unpacked, began := memoryDir(t), time.Now()
	for _, file := range files {
		unpack(t, file, unpacked)
	}
	want := walk(t, unpacked)
	for _, difference := range compare(want, walk(t, mounted), began, true) {
		t.Error(difference)
	}
	if len(files) == 1 {
		for _, difference := range compare(want, walk(t, layers[0]), began, false) {
			t.Error("without overlayfs:", difference)
		}
	}
	t.Logf("%d files compared", len(want))
	return mounted
}

// compare tells where two trees differ. Directories that the unpacking itself has
// touched since it began have times of no meaning. Overlayfs does not count the
// links of merged directories.
func compare(want, got map[string]file, began time.Time, overlay bool) (differences []string) {
	for name := range got {
		if _, ok := want[name]; !ok {
			differences = append(differences, name+": mounted, not unpacked")
		}
	}
	for name, w := range want {
		g, ok := got[name]
		if !ok {
			differences = append(differences, name+": unpacked, not mounted")
			continue
		}
		if name == "." || w.dir && !time.Unix(w.mtime.Unix()).Before(began.Add(-time.Second)) {
			g.mtime, w.mtime = unix.Timespec{}, unix.Timespec{}
		}
		if name == "." {
			w.mode, g.mode = 0, 0 // of the mount point, or of the empty upper directory
		}
		if overlay && w.dir {
			w.links, g.links = 0, 0
		}
		if g != w {
			differences = append(differences, fmt.Sprintf("%s:\n  mounted  %+v\n  unpacked %+v", name, g, w))
		}
	}
	return differences
}

// A file is all that is compared of one.
type file struct {
	dir      bool
	mode     uint32
	uid, gid uint32
	rdev     uint64
	links    uint64
	size     int64
	mtime    unix.Timespec
	content  string // its SHA-256, or the target of a symbolic link
	xattrs   string
}

func walk(t *testing.T, root string) map[string]file {
	t.Helper()
	files := map[string]file{}
	buf := make([]byte, 1<<16)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			files[name] = file{content: "listed, but " + err.Error()}
			return nil
		}
		f := file{dir: d.IsDir(), mode: st.Mode, uid: st.Uid, gid: st.Gid, rdev: st.Rdev,
			links: st.Nlink, size: st.Size, mtime: st.Mtim, xattrs: xattrsOf(t, path, buf)}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			f.size = 0 // each file system has its own
		case unix.S_IFLNK:
			f.content, err = os.Readlink(path)
		case unix.S_IFREG:
			f.content = sum(t, path, buf)
		}
		files[name] = f
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// xattrsOf lists extended attributes, but for those of overlayfs, sorted by name.
func xattrsOf(t *testing.T, path string, buf []byte) string {
	t.Helper()
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatalf("listxattr %s: %v", path, err)
	}
	var list []string
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		n, err := unix.Lgetxattr(path, name, buf)
		if err != nil {
			t.Fatalf("getxattr %s %s: %v", path, name, err)
		}
		list = append(list, fmt.Sprintf("%s=%q", name, buf[:n]))
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

func sum(t *testing.T, path string, buf []byte) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{f}, buf); err != nil {
		t.Fatalf("read %s: %v", path, err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// mountLayers mounts the layers in the files, lowest first, and an overlay of them.
func mountLayers(t *testing.T, files ...string) (overlay string, layers []string) {
	t.Helper()
	for _, file := range files {
		layers = append(layers, mountLayer(t, file))
	}
	lower := layers[0]
	for _, layer := range layers[1:] {
		lower = layer + ":" + lower
	}
	overlay, upper, work := t.TempDir(), t.TempDir(), t.TempDir()
	mount(t, "overlay", overlay, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+",workdir="+work)
	return overlay, layers
}

// mountLayer mounts the layer in the file by its metadata.
func mountLayer(t *testing.T, file string) string {
	t.Helper()
	object, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer object.Close()
	return mountObject(t, file, object)
}

// mountObject is mountLayer for a file whose bytes are also those of object.
func mountObject(t *testing.T, file string, object io.Reader) string {
	t.Helper()
	image, err := os.Create(filepath.Join(t.TempDir(), "layer.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	if err := Metadata(image, object); err != nil {
		t.Fatalf("Metadata: %v", err)
	}
	i, err1 := image.Stat()
	o, err2 := os.Stat(file)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes of metadata for a tar of %d: %.2f %%", i.Size(), o.Size(), 100*float64(i.Size())/float64(o.Size()))
	dir := t.TempDir()
	mount(t, image.Name(), dir, "erofs", unix.MS_RDONLY, "device="+file)
	return dir
}

// memoryDir is a temporary directory in memory, where many files come and go at once.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	mount(t, "tmpfs", dir, "tmpfs", 0, "mode=755")
	return dir
}

func mount(t *testing.T, source, dir, kind string, flags uintptr, options string) {
	t.Helper()
	if err := unix.Mount(source, dir, kind, flags, options); err != nil {
		t.Fatalf("mount %s: %v", kind, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

// unpack does what containerd does with a layer.
func unpack(t *testing.T, file, dir string) {
	t.Helper()
	object, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer object.Close()
	if _, err := archive.Apply(context.Background(), dir, object); err != nil {
		t.Fatalf("containerd unpacks: %v", err)
	}
}

// packed returns a tar of the directory as GNU tar makes it.
func packed(t *testing.T, root string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "layer.tar")
	command(t, "tar", "--format=pax", "--xattrs", "--xattrs-include=*", "-C", root, "-cf", file, ".")
	return file
}

// made returns a tar with the entries that write puts into it.
func made(t testing.TB, write func(*tar.Writer)) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "layer.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	write(w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func put(t testing.TB, w *tar.Writer, hdr *tar.Header, body []byte) {
	t.Helper()
	hdr.Size = int64(len(body))
	if hdr.Format == tar.FormatUnknown {
		hdr.Format = tar.FormatPAX
	}
	if err := w.WriteHeader(hdr); err != nil {
		t.Fatalf("entry %q: %v", hdr.Name, err)
	}
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return string(out)
}
