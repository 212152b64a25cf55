package model

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
)

// blobs is a source of whole blobs that may lie.
type blobs map[digest.Digest][]byte

func (b blobs) Fetch(_ context.Context, target ocispec.Descriptor) (io.ReadCloser, error) {
	data, ok := b[target.Digest]
	if !ok {
		return nil, errors.New("not found")
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// add adds a blob and returns the layer that it is.
func (b blobs) add(path, packing string, data []byte) File {
	desc := content.NewDescriptorFromBytes(oci.LayerWeight+packing, data)
	b[desc.Digest] = data
	return File{Path: path, Mode: 0o644, Size: desc.Size, Packing: packing, Descriptor: desc}
}

// A file of several parts, from everything that has it.
func TestUnpackLargeFile(t *testing.T) {
	files := map[string]string{"model.gguf": string(bytesOf(1, 2*partSize+5)), "sub/b.gguf": string(bytesOf(2, partSize)), "empty": ""}
	src := writeFiles(t, files)
	places(t, func(t *testing.T, p place) {
		packed, err := Pack(t.Context(), src, p, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, streams := range []int{0, 1, 3} {
			to := t.TempDir()
			if err := Unpack(t.Context(), p, packed.Files, to, Options{Concurrency: streams}); err != nil {
				t.Fatal(err)
			}
			checkFiles(t, to, files)
		}
	})
}

func TestUnpackOverFiles(t *testing.T) {
	source := blobs{}
	files := []File{
		source.add("same", oci.PackingRaw, []byte("same bytes")),
		source.add("other", oci.PackingRaw, []byte("good bytes")),
		source.add("shorter", oci.PackingRaw, []byte("good bytes")),
		source.add("link", oci.PackingRaw, []byte("not through the link")),
		source.add("sub/new", oci.PackingRaw, []byte("new")),
	}
	files[0].Mode = 0o755
	outside := filepath.Join(t.TempDir(), "outside")
	writeFile(t, outside, "kept as it is, 20 b.")
	dir := writeFiles(t, map[string]string{"same": "same bytes", "other": "evil bytes", "shorter": "good byte", "unrelated": "kept"})
	link(t, outside, filepath.Join(dir, "link"))
	before, err := os.Stat(filepath.Join(dir, "same"))
	if err != nil {
		t.Fatal(err)
	}
	delete(source, files[0].Descriptor.Digest) // nobody may ask for it
	if err := Unpack(t.Context(), source, files, dir, Options{}); err != nil {
		t.Fatal(err)
	}
	checkFiles(t, dir, map[string]string{"same": "same bytes", "other": "good bytes", "shorter": "good bytes",
		"link": "not through the link", "sub/new": "new", "unrelated": "kept"})
	if b, err := os.ReadFile(outside); err != nil || string(b) != "kept as it is, 20 b." {
		t.Errorf("the file behind the link is now %q, %v", b, err)
	}
	after, err := os.Stat(filepath.Join(dir, "same"))
	if err != nil || !os.SameFile(before, after) || after.Mode().Perm() != 0o755 {
		t.Errorf("a file with the right bytes was written anew, or has mode %v (%v)", after.Mode(), err)
	}
}

// What cannot be unpacked leaves completed files and nothing else.
func TestUnpackRefuses(t *testing.T) {
	good := []byte("good bytes")
	for name, tt := range map[string]struct {
		prepare func(t *testing.T, source blobs, dir string) []File
		want    string
		wrong   bool // a WrongBytesError
		kept    map[string]string
	}{
		"wrong bytes": {func(t *testing.T, source blobs, dir string) []File {
			f := source.add("a/b/x", oci.PackingRaw, good)
			source[f.Descriptor.Digest] = []byte("evil bytes")
			return []File{f}
		}, "a/b/x: ", true, nil},
		"short bytes": {func(t *testing.T, source blobs, dir string) []File {
			f := source.add("x", oci.PackingRaw, good)
			source[f.Descriptor.Digest] = good[:5]
			return []File{f}
		}, "x: unexpected EOF", false, nil},
		"no bytes": {func(t *testing.T, source blobs, dir string) []File {
			f := source.add("x", oci.PackingRaw, good)
			delete(source, f.Descriptor.Digest)
			return []File{f}
		}, "x: not found", false, nil},
		"a directory in the place": {func(t *testing.T, source blobs, dir string) []File {
			writeFile(t, filepath.Join(dir, "x", "y"), "kept")
			return []File{source.add("x", oci.PackingRaw, good)}
		}, "x: ", false, map[string]string{"x/y": "kept"}},
		"a file in a directory's place": {func(t *testing.T, source blobs, dir string) []File {
			writeFile(t, filepath.Join(dir, "x"), "kept")
			return []File{source.add("x/y", oci.PackingRaw, good)}
		}, "x/y: ", false, map[string]string{"x": "kept"}},
		"a link out of the directory": {func(t *testing.T, source blobs, dir string) []File {
			link(t, t.TempDir(), filepath.Join(dir, "out"))
			return []File{source.add("out/x", oci.PackingRaw, good)}
		}, "out/x: ", false, nil},
		"a path out of the directory": {func(t *testing.T, source blobs, dir string) []File {
			return []File{source.add("../x", oci.PackingRaw, good)}
		}, "../x: ", false, nil},
		"two files of one path": {func(t *testing.T, source blobs, dir string) []File {
			return []File{source.add("x", oci.PackingRaw, good), source.add("x", oci.PackingRaw, []byte("more"))}
		}, "twice", false, nil},
		"the second file": {func(t *testing.T, source blobs, dir string) []File {
			f := source.add("b/y", oci.PackingRaw, []byte("bad"))
			delete(source, f.Descriptor.Digest)
			return []File{source.add("a/x", oci.PackingRaw, good), f}
		}, "b/y: not found", false, map[string]string{"a/x": string(good)}},
	} {
		t.Run(name, func(t *testing.T) {
			dir, source := t.TempDir(), blobs{}
			files := tt.prepare(t, source, dir)
			err := Unpack(t.Context(), source, files, dir, Options{Concurrency: 1})
			checkError(t, err, "unpack into "+dir+": ", tt.want)
			if wrong := errors.As(err, new(*piece.WrongBytesError)); wrong != tt.wrong {
				t.Errorf("error %v", err)
			}
			os.Remove(filepath.Join(dir, "out"))
			checkFiles(t, dir, tt.kept)
			for file := range readFiles(t, dir) {
				if _, ok := tt.kept[file]; !ok && !strings.HasPrefix(strings.Join(keys(tt.kept), "\n"), file) {
					t.Errorf("%s was left behind", file)
				}
			}
		})
	}
}

func keys(m map[string]string) (keys []string) {
	for key := range maps.Keys(m) {
		keys = append(keys, key)
	}
	return keys
}

func TestUnpackRemovesItsDirectory(t *testing.T) {
	source := blobs{}
	f := source.add("a/x", oci.PackingRaw, []byte("x"))
	delete(source, f.Descriptor.Digest)
	dir := filepath.Join(t.TempDir(), "new")
	if err := Unpack(t.Context(), source, []File{f}, dir, Options{}); err == nil {
		t.Fatal("no error")
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory was left behind (%v)", err)
	}
}

func TestUnpackDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	source := blobs{}
	small, large := source.add("a", oci.PackingRaw, bytesOf(1, 1<<20)), source.add("b", oci.PackingRaw, bytesOf(2, 8<<20))
	// One after the other, or the large one takes the small one's room.
	err := Unpack(t.Context(), source, []File{small, large}, dir, Options{Concurrency: 1})
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("error %v, want %v", err, syscall.ENOSPC)
	}
	checkError(t, err, "b: write to disk: ")
	for file := range readFiles(t, dir) {
		if file != "a" {
			t.Errorf("%s was left behind", file)
		}
	}
}
