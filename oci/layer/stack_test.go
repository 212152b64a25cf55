package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// TestDifferentialStackable requires that Stackable refuses the stacks that
// overlayfs shows differently from what containerd unpacks, and no others.
func TestDifferentialStackable(t *testing.T) {
	old := time.Unix(1e9, 0)
	dir := func(name string, mode int64) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, ModTime: old}
	}
	file := func(name string) *tar.Header { return &tar.Header{Name: name, Mode: 0o644, ModTime: old} }
	link := &tar.Header{Typeflag: tar.TypeSymlink, Name: "lib", Linkname: "usr/lib", ModTime: old}
	owned := dir("d", 0o755)
	owned.Uid = 5
	marked := dir("d", 0o755)
	marked.PAXRecords = map[string]string{"SCHILY.xattr.user.x": "y"}

	type layers [][]*tar.Header
	for name, tt := range map[string]struct {
		layers layers
		ok     bool
	}{
		"alone":                   {layers{{file("d/x")}}, true},
		"nothing below":           {layers{{file("x")}, {file("d/x")}}, true},
		"the same below":          {layers{{dir("d", 0o755)}, {file("d/x")}}, true},
		"implied below as well":   {layers{{file("d/y")}, {file("d/x")}}, true},
		"another mode":            {layers{{dir("d", 0o1777)}, {file("d/x")}}, false},
		"another owner":           {layers{{owned}, {file("d/x")}}, false},
		"another attribute":       {layers{{marked}, {file("d/x")}}, false},
		"another two layers down": {layers{{dir("d", 0o700)}, {file("y")}, {file("d/x")}}, false},
		"another but hidden":      {layers{{dir("d", 0o700)}, {dir("d", 0o755)}, {file("d/x")}}, true},
		"another but whited out":  {layers{{dir("d", 0o700)}, {file(".wh.d")}, {file("d/x")}}, true},
		"another whited out here": {layers{{dir("d", 0o700)}, {file(".wh.d"), file("d/x")}}, true},
		"another under an opaque": {layers{{dir("a", 0o755), dir("a/d", 0o700)},
			{dir("a", 0o755), file("a/.wh..wh..opq")}, {dir("a", 0o755), file("a/d/x")}}, true},
		"another under an opaque here": {layers{{dir("a", 0o755), dir("a/d", 0o700)},
			{dir("a", 0o755), file("a/.wh..wh..opq"), file("a/d/x")}}, true},
		"another under a file":               {layers{{dir("a", 0o755), dir("a/d", 0o700)}, {file("a")}, {dir("a", 0o755), file("a/d/x")}}, true},
		"another with an entry":              {layers{{dir("d", 0o700)}, {dir("d", 0o755), file("d/x")}}, true},
		"whiteout of nothing":                {layers{{dir("d", 0o755)}, {file(".wh.x"), dir("d", 0o755), file("d/.wh.x")}}, true},
		"whiteout in a directory of its own": {layers{{file("x")}, {dir("d", 0o755), file("d/.wh.x")}}, false},
		"whiteout in the lowest":             {layers{{dir("d", 0o755), file("d/.wh.x")}}, false},
		"whiteout in an opaque": {layers{{dir("d", 0o755), file("d/x")},
			{dir("d", 0o755), file("d/.wh.x"), dir("d/e", 0o755), file("d/e/.wh.x"), file("d/.wh..wh..opq")}}, true},
		"a link below": {layers{{dir("usr", 0o755), dir("usr/lib", 0o755), link}, {file("lib/x")}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var files []string
			var images []io.ReaderAt
			for _, hdrs := range tt.layers {
				file := made(t, func(w *tar.Writer) {
					for _, hdr := range hdrs {
						put(t, w, hdr, nil)
					}
				})
				object, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				image, err := metadataOf(object)
				if err != nil {
					t.Fatal(err)
				}
				files, images = append(files, file), append(images, bytes.NewReader(image))
			}
			last := len(images) - 1
			err := Stackable(images[last], images[:last]...)
			if got := err == nil; got != tt.ok || err != nil && !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("Stackable: %v, want it stackable: %v", err, tt.ok)
			}
			mounted, _ := mountLayers(t, files...)
			unpacked, began := memoryDir(t), time.Now()
			for _, file := range files {
				unpack(t, file, unpacked)
			}
			differences := compare(walk(t, unpacked), walk(t, mounted), began, true)
			if same := len(differences) == 0; same != tt.ok {
				t.Errorf("overlayfs shows what containerd unpacks: %v, want %v\n%s", same, tt.ok, strings.Join(differences, "\n"))
			}
		})
	}
}

// The last inode of the lower metadata is one of 32 bytes, at the very end.
func TestStackableReadsTheLastInode(t *testing.T) {
	file := strings.Repeat("d", 28) + "/" + strings.Repeat("f", 210)
	var images []io.ReaderAt
	for _, name := range []string{file, file + "/x"} {
		object, err := os.ReadFile(made(t, func(w *tar.Writer) { put(t, w, &tar.Header{Name: name}, nil) }))
		if err != nil {
			t.Fatal(err)
		}
		image, err := metadataOf(object)
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, bytes.NewReader(image))
	}
	if err := Stackable(images[1], images[0]); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a directory above a file: %v", err)
	}
}

func TestStackableRefusesForeignBytes(t *testing.T) {
	for name, image := range map[string]string{"nothing": "", "no image": strings.Repeat("no image", 1000)} {
		if err := Stackable(strings.NewReader(image)); err == nil || !strings.Contains(err.Error(), "open the metadata of a layer") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// FuzzStackable requires that foreign metadata do no harm.
func FuzzStackable(f *testing.F) {
	image := func(hdrs ...*tar.Header) []byte {
		object, err := os.ReadFile(made(f, func(w *tar.Writer) {
			for _, hdr := range hdrs {
				put(f, w, hdr, nil)
			}
		}))
		if err != nil {
			f.Fatal(err)
		}
		image, err := metadataOf(object)
		if err != nil {
			f.Fatal(err)
		}
		return image
	}
	implied := image(&tar.Header{Name: "a/b/c"})
	explicit := image(&tar.Header{Typeflag: tar.TypeDir, Name: "a", Mode: 0o755}, &tar.Header{Typeflag: tar.TypeDir, Name: "a/b", Mode: 0o700})
	link := image(&tar.Header{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "b"}, &tar.Header{Name: ".wh.x"})
	f.Add(implied, explicit)
	f.Add(implied, link)
	f.Add(explicit, implied)
	f.Fuzz(func(t *testing.T, upper, lower []byte) {
		if err := Stackable(bytes.NewReader(upper), bytes.NewReader(lower)); errors.Is(err, errors.ErrUnsupported) && len(lower) == 0 {
			t.Errorf("no layer below, yet %v", err)
		}
	})
}
