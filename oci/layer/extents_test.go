package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestExtents: what lies where Extents says is the file.
func TestExtents(t *testing.T) {
	files := map[string]string{
		"usr/bin/server": strings.Repeat("server ", 1000),
		"usr/bin/small":  "small",
		"empty":          "",
	}
	var object bytes.Buffer
	w := tar.NewWriter(&object)
	write := func(h tar.Header, data string) {
		h.Size, h.Mode = int64(len(data)), 0o755
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range files {
		write(tar.Header{Typeflag: tar.TypeReg, Name: name}, data)
	}
	write(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin", Linkname: "usr/bin"}, "")
	write(tar.Header{Typeflag: tar.TypeSymlink, Name: "usr/bin/latest", Linkname: "/bin/server"}, "")
	write(tar.Header{Typeflag: tar.TypeSymlink, Name: "loop", Linkname: "loop"}, "")
	write(tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}, "")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	metadata, err := os.Create(filepath.Join(t.TempDir(), "metadata"))
	if err != nil {
		t.Fatal(err)
	}
	defer metadata.Close()
	if err := Metadata(metadata, bytes.NewReader(object.Bytes())); err != nil {
		t.Fatal(err)
	}
	for name, of := range map[string]string{
		"usr/bin/server": "usr/bin/server", "/usr/bin/small": "usr/bin/small", "/bin/server": "usr/bin/server",
		"usr/bin/latest": "usr/bin/server", "../bin/./small": "usr/bin/small", "empty": "empty",
	} {
		extents, err := Extents(metadata, name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got []byte
		for _, e := range extents {
			got = append(got, object.Bytes()[e.Offset:e.Offset+e.Length]...)
		}
		if string(got) != files[of] {
			t.Errorf("%s has %d bytes at %v, want the %d of %s", name, len(got), extents, len(files[of]), of)
		}
	}
	for _, name := range []string{"none", "usr/bin", "null", "/", ""} {
		if _, err := Extents(metadata, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"loop", "usr/bin/server/more"} {
		if _, err := Extents(metadata, name); err == nil {
			t.Errorf("%q leads somewhere", name)
		}
	}
	if _, err := Extents(strings.NewReader("nothing"), "bin"); err == nil {
		t.Error("what is no metadata has files")
	}
}
