package model

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/spate-project/spate/oci"
)

// tarball makes an archive of entries.
func tarball(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, entry := range entries {
		text := "the text of " + entry.Name
		if entry.Typeflag == tar.TypeReg {
			entry.Size = int64(len(text))
		} else {
			text = ""
		}
		if err := w.WriteHeader(&entry); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func regular(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600}
}

func compressed(t testing.TB, packing string, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	var w io.WriteCloser
	switch packing {
	case oci.PackingTarGzip:
		w = gzip.NewWriter(&buf)
	case oci.PackingTarZstd:
		z, err := zstd.NewWriter(&buf)
		if err != nil {
			t.Fatal(err)
		}
		w = z
	default:
		return data
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestUnpackArchives(t *testing.T) {
	for _, packing := range []string{oci.PackingTar, oci.PackingTarGzip, oci.PackingTarZstd} {
		t.Run(packing, func(t *testing.T) {
			source := blobs{}
			archive := tarball(t,
				tar.Header{Typeflag: tar.TypeDir, Name: "./sub/", Mode: 0o700},
				regular("./sub/a"), regular("deep/er/b"),
				tar.Header{Typeflag: tar.TypeReg, Name: "run.sh", Mode: 0o4711},
			)
			files := []File{
				source.add("plain", oci.PackingRaw, []byte("plain")),
				source.add("docs", packing, compressed(t, packing, archive)),
				source.add("more", packing, compressed(t, packing, tarball(t, regular("sub/c")))),
			}
			dir := writeFiles(t, map[string]string{"sub/kept": "kept", "sub/a": "old"})
			events := &events{t: t}
			if err := Unpack(t.Context(), source, files, dir, Options{Progress: events.add}); err != nil {
				t.Fatal(err)
			}
			checkFiles(t, dir, map[string]string{"plain": "plain", "sub/a": "the text of ./sub/a", "deep/er/b": "the text of deep/er/b",
				"run.sh": "the text of run.sh", "sub/c": "the text of sub/c", "sub/kept": "kept"})
			for name, mode := range map[string]os.FileMode{"run.sh": 0o755, "sub/a": 0o644} {
				if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != mode {
					t.Errorf("%s: %v, %v, want mode %v", name, info.Mode(), err, mode)
				}
			}
			for _, f := range files {
				if last := events.last[f.Path]; last.Step != Finished || last.Done != f.Size {
					t.Errorf("the last event of %s is %+v", f.Path, last)
				}
			}
		})
	}
}

func TestUnpackArchiveRefuses(t *testing.T) {
	good := tarball(t, regular("a/b"), regular("c"))
	for name, tt := range map[string]struct {
		archive []byte
		change  func(blob []byte) []byte // what the source really has
		want    string
	}{
		"a path out":         {tarball(t, regular("good"), regular("../x")), nil, "not a clean relative"},
		"an absolute path":   {tarball(t, regular("/etc/x")), nil, "not a clean relative"},
		"a link":             {tarball(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "x", Linkname: "/etc"}), nil, `"x" is of type '2'`},
		"a hard link":        {tarball(t, tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "/etc/passwd"}), nil, `"x" is of type '1'`},
		"a device":           {tarball(t, tar.Header{Typeflag: tar.TypeChar, Name: "x"}), nil, `"x" is of type '3'`},
		"a pipe":             {tarball(t, tar.Header{Typeflag: tar.TypeFifo, Name: "x"}), nil, `"x" is of type '6'`},
		"a path twice":       {tarball(t, regular("x"), regular("./x")), nil, "twice"},
		"a file and a dir":   {tarball(t, regular("x"), regular("x/y")), nil, "a file and a directory"},
		"another layer's":    {tarball(t, regular("plain")), nil, "twice"},
		"below another file": {tarball(t, regular("plain/x")), nil, "a file and a directory"},
		"no archive":         {[]byte(strings.Repeat("no archive at all ", 100)), nil, "read the archive"},
		"cut in a file":      {good[:520], nil, "unexpected EOF"},
		"wrong bytes in it":  {good, func(b []byte) []byte { b = bytes.Clone(b); b[600] ^= 1; return b }, "does not match its digest"},
		"wrong bytes behind": {good, func(b []byte) []byte { b = bytes.Clone(b); b[len(b)-1] ^= 1; return b }, "does not match its digest"},
		"more bytes":         {good, func(b []byte) []byte { return append(bytes.Clone(b), 0) }, "does not match its digest"},
		"fewer bytes":        {good, func(b []byte) []byte { return b[:len(b)-1] }, "unexpected EOF"},
	} {
		for _, packing := range []string{oci.PackingTar, oci.PackingTarGzip} {
			t.Run(name+packing, func(t *testing.T) {
				if tt.change != nil && packing != oci.PackingTar {
					t.Skip("the change is to the archive")
				}
				source := blobs{}
				raw := source.add("plain", oci.PackingRaw, []byte("plain"))
				f := source.add("docs", packing, compressed(t, packing, tt.archive))
				if tt.change != nil {
					source[f.Descriptor.Digest] = tt.change(source[f.Descriptor.Digest])
				}
				dir := t.TempDir()
				err := Unpack(t.Context(), source, []File{raw, f}, dir, Options{Concurrency: 1})
				checkError(t, err, "unpack into "+dir+": docs: ", tt.want)
				checkFiles(t, dir, map[string]string{"plain": "plain"})
				for file := range readFiles(t, dir) {
					if file != "plain" {
						t.Errorf("%s was left behind", file)
					}
				}
			})
		}
	}
}
