package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func metadataOf(object []byte) ([]byte, error) {
	var image seekBuffer
	err := Metadata(&image, bytes.NewReader(object))
	return image.b, err
}

func TestMetadataIsTheSame(t *testing.T) {
	object, err := os.ReadFile(made(t, func(w *tar.Writer) { putOdd(t, w) }))
	if err != nil {
		t.Fatal(err)
	}
	first, err := metadataOf(object)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if again, err := metadataOf(object); err != nil || !bytes.Equal(again, first) {
			t.Fatalf("not the same image, error %v", err)
		}
	}
}

// The bytes behind the end of an archive belong to the object, and so do their errors.
func TestMetadataReadsToTheEnd(t *testing.T) {
	object, err := os.ReadFile(made(t, func(w *tar.Writer) { putOdd(t, w) }))
	if err != nil {
		t.Fatal(err)
	}
	r := &endReader{Reader: bytes.NewReader(append(object, make([]byte, 200*512)...))}
	if err := Metadata(new(seekBuffer), r); err != nil || !r.ended {
		t.Errorf("Metadata: %v, read to the end: %v", err, r.ended)
	}
	wrong := errors.New("wrong digest")
	if err := Metadata(new(seekBuffer), io.MultiReader(bytes.NewReader(object), failReader{wrong})); !errors.Is(err, wrong) {
		t.Errorf("Metadata: %v, want %v", err, wrong)
	}
}

// A file of more than 4 GiB, and one that begins beyond as many. On disk the tar is sparse.
func TestMetadataOfLargeFiles(t *testing.T) {
	const size, padded = 4<<30 + 7, 4<<30 + 512
	var head, tail bytes.Buffer
	if err := tar.NewWriter(&head).WriteHeader(&tar.Header{Name: "large", Size: size, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(&tail)
	put(t, w, &tar.Header{Name: "behind", Mode: 0o644}, []byte("beyond 4 GiB"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "layer.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for at, b := range map[int64][]byte{0: head.Bytes(), 512 + size - 3: []byte("end"), 512 + padded: tail.Bytes()} {
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	dir := mountObject(t, f.Name(), io.MultiReader(&head, io.LimitReader(zeros{}, padded), &tail))
	large, err := os.Open(filepath.Join(dir, "large"))
	if err != nil {
		t.Fatal(err)
	}
	defer large.Close()
	end := make([]byte, 5)
	if n, err := large.ReadAt(end, size-5); n != 5 || string(end) != "\x00\x00end" {
		t.Errorf("the end of the large file: %q, %v", end[:n], err)
	}
	if info, err := large.Stat(); err != nil || info.Size() != size {
		t.Errorf("the large file is %v, %v", info, err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "behind")); string(got) != "beyond 4 GiB" {
		t.Errorf("the file behind it: %q, %v", got, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestMetadataMarks(t *testing.T) {
	overlay, layers := mountLayers(t, made(t, func(w *tar.Writer) {
		put(t, w, &tar.Header{Name: "a/.wh.gone"}, nil)
		put(t, w, &tar.Header{Name: "a/.wh..wh.plnk"}, nil)
		put(t, w, &tar.Header{Name: "o/.wh..wh..opq"}, nil)
		put(t, w, &tar.Header{Name: "both/x"}, nil)
		put(t, w, &tar.Header{Name: ".wh.both"}, nil)
		put(t, w, &tar.Header{Name: ".wh.again"}, nil)
		put(t, w, &tar.Header{Typeflag: tar.TypeDir, Name: "again"}, nil)
		put(t, w, &tar.Header{Name: ".wh.implied"}, nil)
		put(t, w, &tar.Header{Name: "implied/x"}, nil)
		put(t, w, &tar.Header{Name: "later/x"}, nil)
		put(t, w, &tar.Header{Typeflag: tar.TypeDir, Name: "later"}, nil)
	}))
	dir := layers[0]
	var st unix.Stat_t
	if err := unix.Lstat(dir+"/a/gone", &st); err != nil || st.Mode != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("the whiteout has mode %o, device %d, %v", st.Mode, st.Rdev, err)
	}
	if list, err := os.ReadDir(dir + "/a"); err != nil || len(list) != 1 {
		t.Errorf("a holds %v, %v; want the whiteout alone", list, err)
	}
	for name, want := range map[string][2]bool{ // opaque, implied
		"a": {false, true}, "o": {true, true}, "both": {true, true}, "again": {true, false}, "implied": {true, true}, "later": {false, false},
	} {
		for n, attr := range []string{opaqueAttr, impliedAttr} {
			value := make([]byte, 10)
			size, err := unix.Lgetxattr(filepath.Join(dir, name), attr, value)
			if got := err == nil && string(value[:size]) == "y"; got != want[n] {
				t.Errorf("%s of %s is %v (%v), want %v", attr, name, got, err, want[n])
			}
			if _, err := unix.Lgetxattr(filepath.Join(overlay, name), attr, value); err == nil {
				t.Errorf("overlayfs shows %s of %s", attr, name)
			}
		}
	}
}

func TestMetadataRefuses(t *testing.T) {
	of := func(hdrs ...*tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, hdr := range hdrs {
			put(t, w, hdr, nil)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	link := func(name, target string) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}
	}
	dir := &tar.Header{Typeflag: tar.TypeDir, Name: "dir"}
	loop := &tar.Header{Typeflag: tar.TypeSymlink, Name: "loop", Linkname: "loop"}
	whole := of(dir, &tar.Header{Name: "x"})
	for _, tt := range []struct {
		name   string
		object []byte
		want   error  // nil: any
		text   string // part of the message
	}{
		{"a hard link to another layer", of(link("x", "lower")), errors.ErrUnsupported, `entry "x"`},
		{"a hard link to itself", of(&tar.Header{Name: "x"}, link("x", "x")), errors.ErrUnsupported, `entry "x"`},
		{"a hard link to a whiteout", of(&tar.Header{Name: ".wh.w"}, link("x", "w")), errors.ErrUnsupported, `entry "x"`},
		{"a hard link to a directory", of(dir, link("x", "dir")), nil, "directory"},
		{"a hard link to the root", of(link("x", "..")), nil, "directory"},
		{"an opaque root", of(&tar.Header{Name: ".wh..wh..opq"}), errors.ErrUnsupported, "hides all layers"},
		{"a whiteout of nothing", of(&tar.Header{Name: "dir/.wh."}), nil, "whiteout"},
		{"a whiteout of its directory", of(&tar.Header{Name: "dir/.wh.."}), nil, "whiteout"},
		{"a whiteout of its parent", of(&tar.Header{Name: "dir/.wh..."}), nil, "whiteout"},
		{"a file as directory", of(&tar.Header{Name: "x"}, &tar.Header{Name: "x/y"}), syscall.ENOTDIR, `entry "x/y"`},
		{"a circle of links", of(loop, &tar.Header{Name: "loop/y"}), syscall.ELOOP, `entry "loop/y"`},
		{"a name too long", of(&tar.Header{Name: strings.Repeat("n", 256)}), syscall.ENAMETOOLONG, "entry"},
		{"a path too long", of(&tar.Header{Name: strings.Repeat("p/", 2049)}), syscall.ENAMETOOLONG, "entry"},
		{"a target too long", of(&tar.Header{Typeflag: tar.TypeSymlink, Name: "x", Linkname: strings.Repeat("p", 4096)}), syscall.ENAMETOOLONG, "entry"},
		{"a link to nothing", of(&tar.Header{Typeflag: tar.TypeSymlink, Name: "x"}), nil, "nothing"},
		{"an unknown type", of(&tar.Header{Typeflag: 'Q', Name: "x"}), nil, "unknown type 'Q'"},
		{"a device out of range", of(&tar.Header{Typeflag: tar.TypeChar, Name: "x", Devmajor: 1 << 40, Format: tar.FormatGNU}), nil, "out of range"},
		{"an attribute too large", of(&tar.Header{Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.x": strings.Repeat("v", 1<<16)}}),
			errors.ErrUnsupported, "extended attributes"},
		{"an attribute's name too long", of(&tar.Header{Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user." + strings.Repeat("n", 255): "y"}}),
			syscall.ERANGE, "extended attribute"},
		{"a device that is a whiteout", of(&tar.Header{Typeflag: tar.TypeChar, Name: "x"}), errors.ErrUnsupported, "whiteout"},
		{"a device that mknod makes one", of(&tar.Header{Typeflag: tar.TypeChar, Name: "x", Devmajor: 4096}), errors.ErrUnsupported, "whiteout"},
		{"a tar that ends within a block", append(bytes.Clone(whole), 1, 2, 3), errors.ErrUnsupported, "ends within a block"},
		{"no tar", []byte(strings.Repeat("no tar", 1000)), tar.ErrHeader, "read the tar of a layer"},
		{"a tar cut within a header", whole[:700], io.ErrUnexpectedEOF, "read the tar of a layer"},
	} {
		_, err := metadataOf(tt.object)
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: error %v, want %v with %q", tt.name, err, tt.want, tt.text)
		}
		if tt.want == nil && errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: error %v says that it is fine but unsupported", tt.name, err)
		}
	}
}

// Holes that EROFS cannot map, and tars that want too much of the memory.
func TestMetadataBounds(t *testing.T) {
	sparse := func(size, at, length int64) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		hdr := &tar.Header{Typeflag: tar.TypeReg, Name: "s", Mode: 0o644, Size: length, ModTime: time.Unix(1, 0)}
		put(t, w, hdr, bytes.Repeat([]byte("x"), int(length)))
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return oldSparse(b.Bytes(), size, at, length)
	}
	if _, err := metadataOf(sparse(1<<20, 8192, 4096)); err != nil {
		t.Errorf("holes of whole blocks: %v", err)
	}
	if _, err := metadataOf(sparse(1<<20, 512, 1024)); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("holes of other sizes: %v", err)
	}
	if _, err := metadataOf(sparse(1<<40, 8192, 4096)); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a hole of a TiB: %v", err)
	}
	dir := &tar.Header{Typeflag: tar.TypeDir, Name: "again-and-again"}
	full := newTree()
	full.entries = maxEntries - 1
	if err := full.apply(dir, data{}); err != nil {
		t.Errorf("the last entry: %v", err)
	}
	if err := full.apply(dir, data{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("an entry beyond the bound: %v", err)
	}
	full = newTree()
	full.entries = maxEntries - 2
	if err := full.apply(&tar.Header{Typeflag: tar.TypeDir, Name: "a/b/c"}, data{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("directories without an entry beyond the bound: %v", err)
	}
	full = newTree()
	full.text = maxText
	if err := full.apply(dir, data{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("text beyond the bound: %v", err)
	}
}

// oldSparse makes the first entry of a tar one of the old GNU sparse format (GNU
// tar manual, "Standard"): of the size, with all its data at one place.
func oldSparse(object []byte, size, at, length int64) []byte {
	number := func(field []byte, n int64) { // base 256
		field[0] = 0x80
		for i := range 8 {
			field[len(field)-1-i] = byte(n >> (8 * i))
		}
	}
	hdr := object[:512]
	hdr[156] = tar.TypeGNUSparse
	copy(hdr[257:], "ustar  \x00")
	clear(hdr[329:512])
	number(hdr[386:398], at)
	number(hdr[398:410], length)
	number(hdr[483:495], size)
	checksum(hdr)
	return object
}

// checksum sets the checksum of a tar's header.
func checksum(hdr []byte) {
	copy(hdr[148:156], "        ")
	total := 0
	for _, c := range hdr {
		total += int(c)
	}
	copy(hdr[148:156], fmt.Sprintf("%06o\x00 ", total))
}

// FuzzMetadata requires that what Metadata makes of a foreign tar can be read again.
func FuzzMetadata(f *testing.F) {
	object, err := os.ReadFile(made(f, func(w *tar.Writer) { putOdd(f, w) }))
	if err != nil {
		f.Fatal(err)
	}
	// Few entries at once are easier to change than the whole.
	for at := 0; at+2048 <= len(object); at += 1024 {
		f.Add(object[at : at+2048])
	}
	f.Add(object[:10240])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, object []byte) {
		object = bytes.Clone(object)
		for block := range slices.Chunk(object, 512) {
			if len(block) == 512 && string(block[257:262]) == "ustar" {
				checksum(block) // or nearly all changes end here
			}
		}
		image, err := metadataOf(object)
		if err != nil {
			return
		}
		fsys, err := openMetadata(bytes.NewReader(image), bytes.NewReader(object))
		if err != nil {
			t.Fatalf("open the metadata: %v", err)
		}
		err = fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				info, err := d.Info()
				if err != nil || info.Size() > 1<<20 {
					return err
				}
				_, err = fs.ReadFile(fsys, path)
				return err
			}
			return err
		})
		if err != nil {
			t.Fatalf("read the metadata: %v", err)
		}
	})
}

func BenchmarkMetadata(b *testing.B) {
	for name, size := range map[string]int{"small files": 4 << 10, "large files": 4 << 20} {
		b.Run(name, func(b *testing.B) {
			object, err := os.ReadFile(made(b, func(w *tar.Writer) {
				for n := range (64 << 20) / size {
					put(b, w, &tar.Header{Name: filepath.Join("dir", string(rune('a'+n%26)), time.Duration(n).String()), Mode: 0o644}, make([]byte, size))
				}
			}))
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(object)))
			b.ReportAllocs()
			var image []byte
			for b.Loop() {
				if image, err = metadataOf(object); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(100*float64(len(image))/float64(len(object)), "%metadata")
		})
	}
}

// A seekBuffer is a file in memory.
type seekBuffer struct {
	b  []byte
	at int64
}

func (s *seekBuffer) Write(p []byte) (int, error) {
	if short := s.at + int64(len(p)) - int64(len(s.b)); short > 0 {
		s.b = append(s.b, make([]byte, short)...)
	}
	s.at += int64(copy(s.b[s.at:], p))
	return len(p), nil
}

func (s *seekBuffer) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += s.at
	case io.SeekEnd:
		offset += int64(len(s.b))
	}
	s.at = offset
	return offset, nil
}
