package artifact

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
)

const layoutFile = `{"imageLayoutVersion":"1.0.0"}`

// TestHostileTar: what others made is refused with a reason.
func TestHostileTar(t *testing.T) {
	entry := func(h tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	big := strings.Repeat(" ", maxManifest+1)
	d := content.NewDescriptorFromBytes(ocispec.MediaTypeImageManifest, []byte(big))
	index, err := json.Marshal(ocispec.Index{Manifests: []ocispec.Descriptor{d}})
	if err != nil {
		t.Fatal(err)
	}
	whole := makeTar(t, "oci-layout", layoutFile, "index.json", `{}`, "blobs/sha256/x", strings.Repeat("x", 4000))
	for name, c := range map[string]struct {
		tar   []byte
		wrong string
	}{
		"empty":         {nil, "not a tar"},
		"compressed":    {append([]byte{0x1f, 0x8b}, bytes.Repeat([]byte("z"), 2000)...), "not a tar"},
		"out":           {makeTar(t, "../escape", "x"), "leads out of it"},
		"out later":     {makeTar(t, "a/../../escape", "x"), "leads out of it"},
		"absolute":      {makeTar(t, "/etc/passwd", "x"), "leads out of it"},
		"link":          {entry(tar.Header{Typeflag: tar.TypeSymlink, Name: "index.json", Linkname: "/etc/passwd"}), "neither a file nor a directory"},
		"hard link":     {entry(tar.Header{Typeflag: tar.TypeLink, Name: "index.json", Linkname: "oci-layout"}), "neither a file nor a directory"},
		"device":        {entry(tar.Header{Typeflag: tar.TypeChar, Name: "index.json"}), "neither a file nor a directory"},
		"huge":          {entry(tar.Header{Typeflag: tar.TypeReg, Name: "blobs/sha256/x", Size: 1 << 60, Format: tar.FormatGNU}), "ends early"},
		"truncated":     {whole[:len(whole)-5000], "ends early"},
		"no layout":     {makeTar(t, "x", "y"), "oci-layout"},
		"no index":      {makeTar(t, "oci-layout", layoutFile), "index.json"},
		"other version": {makeTar(t, "oci-layout", `{"imageLayoutVersion":"9"}`, "index.json", `{}`), "Layout"},
		"big index":     {makeTar(t, "oci-layout", layoutFile, "index.json", big), "limit"},
		"big manifest":  {makeTar(t, "oci-layout", layoutFile, "index.json", string(index), "blobs/sha256/"+d.Digest.Encoded(), big), "limit"},
		"bad digest":    {makeTar(t, "oci-layout", layoutFile, "index.json", `{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:../../../etc/passwd","size":3}]}`), "digest"},
	} {
		path := filepath.Join(t.TempDir(), "a.tar")
		if err := os.WriteFile(path, c.tar, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := OpenLayout(t.Context(), path)
		if err == nil {
			l.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.wrong) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: error %v, want one of %q", name, err, c.wrong)
		}
	}
}

// TestLeadingOut: a directory's links do not lead out of it.
func TestLeadingOut(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(t.TempDir(), "secret")
	for path, text := range map[string]string{filepath.Join(dir, "oci-layout"): layoutFile, secret: `{"manifests":[]}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(secret, filepath.Join(dir, "index.json")); err != nil {
		t.Fatal(err)
	}
	if l, err := OpenLayout(t.Context(), dir); err == nil {
		l.Close()
		t.Error("a link led out of the layout")
	}
}

// TestHugeFile: a file of more than 8 GiB, whose size is not in the header itself, is read where it is.
func TestHugeFile(t *testing.T) {
	const size = 9 << 30
	for _, format := range []tar.Format{tar.FormatPAX, tar.FormatGNU} {
		f, err := os.Create(filepath.Join(t.TempDir(), "a.tar"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := tar.NewWriter(f).WriteHeader(&tar.Header{Name: "blobs/sha256/x", Size: size, Format: format}); err != nil {
			t.Fatal(err)
		}
		start, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("end"), start+size-3); err != nil {
			t.Fatal(err)
		}
		total := start + size + 1024
		if err := f.Truncate(total); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		files, err := readTar(f, total)
		if err != nil {
			t.Fatal(err)
		}
		file, err := files.Open("blobs/sha256/x")
		if err != nil {
			t.Fatal(err)
		}
		end := make([]byte, 3)
		if _, err := file.(io.ReaderAt).ReadAt(end, size-3); err != nil || string(end) != "end" {
			t.Errorf("format %v: %q, %v", format, end, err)
		}
	}
}

// FuzzReadTar: whatever a tar says, its files are within it.
func FuzzReadTar(f *testing.F) {
	f.Add(makeTar(f, "oci-layout", layoutFile, "index.json", "{}"))
	f.Add(makeTar(f, "../x", "y"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		files, err := readTar(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for name := range files {
			if !fs.ValidPath(name) {
				t.Errorf("the name %q", name)
			}
			got, err := fs.ReadFile(files, name)
			if err != nil || int64(len(got)) != files[name].info.Size() {
				t.Error(fmt.Errorf("%q: %d bytes of %d: %w", name, len(got), files[name].info.Size(), err))
			}
		}
	})
}
