package layer

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spate-project/spate/oci/snapshot/containerdtest"
)

func TestDifferentialBusybox(t *testing.T) {
	containerdtest.Package(t, "busybox-static", "/bin/busybox")
	root := t.TempDir()
	command(t, "mkdir", "-p", root+"/bin", root+"/etc", root+"/tmp")
	command(t, "chmod", "1777", root+"/tmp")
	command(t, "cp", "/bin/busybox", root+"/bin/busybox")
	for name := range strings.FieldsSeq(command(t, "/bin/busybox", "--list")) {
		if name == "busybox" {
			continue
		}
		if err := os.Link(root+"/bin/busybox", root+"/bin/"+name); err != nil {
			t.Fatal(err)
		}
	}
	mounted := compareLayers(t, packed(t, root))
	if out := command(t, mounted+"/bin/sh", "-c", "echo it runs"); out != "it runs\n" {
		t.Errorf("the mounted shell says %q", out)
	}
}

func TestDifferentialDebian(t *testing.T) {
	if testing.Short() {
		t.Skip("debootstrap takes a while")
	}
	containerdtest.Package(t, "debootstrap", "/usr/sbin/debootstrap")
	root := filepath.Join(memoryDir(t), "root")
	command(t, "debootstrap", "--variant=minbase", "bookworm", root)
	compareLayers(t, packed(t, root))
}

func TestDifferentialManySmallFiles(t *testing.T) {
	const dirs, files = 250, 200
	random := rand.New(rand.NewPCG(4, 4))
	compareLayers(t, made(t, func(w *tar.Writer) {
		body := make([]byte, 2000)
		for d := range dirs {
			dir := fmt.Sprintf("d%d/%s/", d%17, strings.Repeat("x", d/8))
			put(t, w, &tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: time.Unix(int64(d), 0)}, nil)
			for f := range files {
				body = body[:random.IntN(cap(body))]
				for i := range body {
					body[i] = byte(random.Uint32())
				}
				put(t, w, &tar.Header{Name: fmt.Sprintf("%sfile-%d", dir, f), Mode: int64(random.IntN(0o1000)),
					Uid: random.IntN(100_000), Gid: random.IntN(100_000), ModTime: time.Unix(random.Int64N(2e9), 0)}, body)
			}
		}
	}))
}

// TestDifferentialOdd compares a tar with all that a tar may hold.
func TestDifferentialOdd(t *testing.T) {
	compareLayers(t, made(t, func(w *tar.Writer) { putOdd(t, w) }))
}

// TestDifferentialEnds compares tars that end as they may: after nothing, without
// an end of the archive, and with more than one.
func TestDifferentialEnds(t *testing.T) {
	file := made(t, func(w *tar.Writer) {
		put(t, w, &tar.Header{Name: "last", Mode: 0o644, ModTime: time.Unix(1e9, 0)}, bytes.Repeat([]byte("x"), 5000))
	})
	for _, size := range []int64{1 << 20, 512 + 5120, 0} {
		if err := os.Truncate(file, size); err != nil {
			t.Fatal(err)
		}
		compareLayers(t, file)
	}
}

// TestDifferentialSparse compares what GNU tar makes of a file with holes. The old
// format containerd refuses, so that its contents are compared with the original.
func TestDifferentialSparse(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "holes"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range int64(9) { // more than the four that an old GNU header has room for
		if _, err := f.WriteAt(bytes.Repeat([]byte{byte('a' + i)}, 8192), i*(1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteAt([]byte("the end"), 10<<20); err != nil {
		t.Fatal(err)
	}
	command(t, "truncate", "-s", "3M", filepath.Join(dir, "nothing"))
	command(t, "sh", "-c", "truncate -s 5000000 "+dir+"/tail && printf x | dd conv=notrunc status=none of="+dir+"/tail")
	command(t, "sh", "-c", "echo not sparse > "+dir+"/zz")
	pack := func(options ...string) string {
		file := filepath.Join(t.TempDir(), "layer.tar")
		command(t, "tar", append(options, "--sparse", "-C", dir, "-cf", file, ".")...)
		if info, err := os.Stat(file); err != nil || info.Size() > 1<<20 {
			t.Fatalf("tar did not see the holes: %v, %v", info, err)
		}
		return file
	}
	for _, version := range []string{"0.0", "0.1", "1.0"} {
		t.Run("PAX "+version, func(t *testing.T) {
			compareLayers(t, pack("--format=pax", "--sparse-version="+version))
		})
	}
	t.Run("old GNU", func(t *testing.T) {
		got, _ := mountLayers(t, pack("--format=gnu"))
		buf := make([]byte, 1<<16)
		for _, name := range []string{"holes", "nothing", "tail", "zz"} {
			if a, b := sum(t, filepath.Join(dir, name), buf), sum(t, filepath.Join(got, name), buf); a != b {
				t.Errorf("%s: other contents than the original's", name)
			}
		}
	})
}

// TestDifferentialStack compares three layers: whiteouts, opaque directories, replaced types.
func TestDifferentialStack(t *testing.T) {
	dir := func(name string) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: time.Unix(1e9, 0)}
	}
	file := func(name string) *tar.Header { return &tar.Header{Name: name, Mode: 0o644, ModTime: time.Unix(2e9, 5)} }
	link := func(name, target string) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, ModTime: time.Unix(3e8, 0)}
	}
	all := func(hdrs ...*tar.Header) string {
		return made(t, func(w *tar.Writer) {
			for n, hdr := range hdrs {
				if hdr.Typeflag != 0 {
					put(t, w, hdr, nil)
				} else {
					put(t, w, hdr, fmt.Appendf(nil, "%s, entry %d of %d", hdr.Name, n, len(hdrs)))
				}
			}
		})
	}
	compareLayers(t,
		all(dir("gone"), file("gone/x"), dir("kept"), file("kept/old"), file("kept/removed"), dir("opaque"), file("opaque/hidden"),
			dir("opaque/sub"), file("opaque/sub/hidden"), file("file-to-dir"), dir("dir-to-file"), file("dir-to-file/x"),
			dir("dir-to-link"), file("dir-to-link/x"), link("link-to-dir", "kept"), link("link-to-file", "kept/old"),
			dir("back"), file("back/old"), file("top"), dir("again"), file("again/old"), dir("deep"), dir("deep/er"), file("deep/er/x"),
			file("deep/er/y"), dir("implied"), file("implied/old")),
		all(file(".wh.gone"), dir("kept"), file("kept/.wh.removed"), file("kept/new"), dir("opaque"), file("opaque/new"),
			file("opaque/.wh..wh..opq"), file(".wh..wh.aufs"), dir("file-to-dir"), file("file-to-dir/x"), file("dir-to-file"), link("dir-to-link", "kept"),
			dir("link-to-dir"), file("link-to-dir/y"), file("link-to-file"), file(".wh.back"), file(".wh.never-there"),
			file(".wh.again"), dir("again"), file("again/new"), dir("deep"), dir("deep/er"), file("deep/er/.wh.x"), file("implied/new")),
		all(dir("gone"), file("gone/y"), dir("opaque"), file("opaque/.wh.new"), file("opaque/newest"), dir("back"), file("back/new"),
			file(".wh.dir-to-file"), file(".wh.link-to-file"), file(".wh.top"), dir("deep"), dir("deep/er"), file("deep/er/z"), file("implied/newer")),
	)
}
