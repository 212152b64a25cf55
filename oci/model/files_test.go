package model

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/oci"
)

// foreign makes a manifest as text from the descriptors of its layers.
func foreign(t testing.TB, layers ...ocispec.Descriptor) []byte {
	t.Helper()
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: oci.ArtifactTypeModel, Layers: layers}
	m.SchemaVersion = 2
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func plain(annotations ...string) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: oci.LayerWeight + oci.PackingRaw, Digest: digest.FromString(strings.Join(annotations, " ")), Size: 5}
	for i := 0; i < len(annotations); i += 2 {
		if d.Annotations == nil {
			d.Annotations = make(map[string]string)
		}
		d.Annotations[annotations[i]] = annotations[i+1]
	}
	return d
}

func packedAs(mediaType string, d ocispec.Descriptor) ocispec.Descriptor {
	d.MediaType = mediaType
	return d
}

func TestFiles(t *testing.T) {
	for name, tt := range map[string]struct {
		layer ocispec.Descriptor
		want  File
	}{
		"ours": {plain(oci.AnnotationFilepath, "a/b.bin", ocispec.AnnotationTitle, "other"),
			File{Path: "a/b.bin", Mode: 0o644, Packing: oci.PackingRaw}},
		"title only":  {plain(ocispec.AnnotationTitle, "b.bin"), File{Path: "b.bin", Mode: 0o644, Packing: oci.PackingRaw}},
		"legacy path": {plain(legacyFilepath, "c.bin"), File{Path: "c.bin", Mode: 0o644, Packing: oci.PackingRaw}},
		"modctl": {plain(oci.AnnotationFilepath, "run.sh", oci.AnnotationFileMetadata,
			`{"name":"run.sh","mode":33261,"uid":1000,"gid":1000,"size":5,"mtime":"2026-01-02T03:04:05Z","typeflag":48}`),
			File{Path: "run.sh", Mode: 0o755, Packing: oci.PackingRaw}},
		"set-user-ID": {plain(oci.AnnotationFilepath, "x", oci.AnnotationFileMetadata, `{"mode":2541}`), File{Path: "x", Mode: 0o755, Packing: oci.PackingRaw}},
		"unreadable":  {plain(oci.AnnotationFilepath, "x", oci.AnnotationFileMetadata, `{"mode":0}`), File{Path: "x", Mode: 0o644, Packing: oci.PackingRaw}},
		"legacy type": {packedAs("application/vnd.cnai.model.weight.config.v1.raw", plain(oci.AnnotationFilepath, "x")),
			File{Path: "x", Mode: 0o644, Packing: oci.PackingRaw}},
		"archive": {packedAs(oci.LayerDoc+oci.PackingTarGzip, plain(oci.AnnotationFilepath, "docs")),
			File{Path: "docs", Mode: 0o644, Packing: oci.PackingTarGzip}},
		"archive without a name": {packedAs(oci.LayerDoc+oci.PackingTar, plain()),
			File{Path: digest.FromString("").Encoded(), Mode: 0o644, Packing: oci.PackingTar}},
		"odd but good": {plain(oci.AnnotationFilepath, "ein Größer…/..x/ y .bin"), File{Path: "ein Größer…/..x/ y .bin", Mode: 0o644, Packing: oci.PackingRaw}},
	} {
		t.Run(name, func(t *testing.T) {
			files, err := Files(foreign(t, tt.layer))
			if err != nil {
				t.Fatal(err)
			}
			got := files[0]
			if got.Path != tt.want.Path || got.Mode != tt.want.Mode || got.Packing != tt.want.Packing || got.Size != 5 || got.Descriptor.Digest != tt.layer.Digest {
				t.Errorf("Files: %+v, want %+v", got, tt.want)
			}
			if got.Archive() != (tt.want.Packing != oci.PackingRaw) {
				t.Errorf("Archive() = %v", got.Archive())
			}
		})
	}
}

func TestFilesRefuses(t *testing.T) {
	at := func(path string) ocispec.Descriptor { return plain(oci.AnnotationFilepath, path) }
	for name, manifest := range map[string][]byte{
		"no JSON":              []byte("x"),
		"an image index":       []byte(strings.Replace(string(foreign(t, at("x"))), ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, 1)),
		"an image":             []byte(strings.Replace(string(foreign(t, at("x"))), oci.ArtifactTypeModel, "", 1)),
		"no files":             foreign(t),
		"no name":              foreign(t, plain()),
		"an absolute path":     foreign(t, at("/etc/passwd")),
		"a path out":           foreign(t, at("../x")),
		"a path out and in":    foreign(t, at("a/../../x")),
		"a path not clean":     foreign(t, at("a/./x")),
		"a slash at the end":   foreign(t, at("a/")),
		"two slashes":          foreign(t, at("a//x")),
		"dot":                  foreign(t, at(".")),
		"a backslash":          foreign(t, at(`a\x`)),
		"a NUL":                foreign(t, at("a\x00x")),
		"a line end":           foreign(t, at("a\nx")),
		"a long path":          foreign(t, at(strings.Repeat("a/", 600)+"x")),
		"a long name":          foreign(t, at(strings.Repeat("a", 256))),
		"a path twice":         foreign(t, at("a/x"), at("y"), at("a/x")),
		"a file and directory": foreign(t, at("a"), at("a/x")),
		"a directory and file": foreign(t, at("a/b/x"), at("a/b")),
		"an unknown type":      foreign(t, packedAs("application/octet-stream", at("x"))),
		"an unknown packing":   foreign(t, packedAs(oci.LayerWeight+".raw+gzip", at("x"))),
		"broken metadata":      foreign(t, plain(oci.AnnotationFilepath, "x", oci.AnnotationFileMetadata, "{")),
		"a size below 0":       foreign(t, func() ocispec.Descriptor { d := at("x"); d.Size = -1; return d }()),
		"a broken digest":      foreign(t, func() ocispec.Descriptor { d := at("x"); d.Digest = "sha256:../../x"; return d }()),
		"too many files": foreign(t, func() (d []ocispec.Descriptor) {
			for i := range MaxFiles + 1 {
				d = append(d, at(fmt.Sprint(i)))
			}
			return d
		}()...),
		"too much": []byte(strings.Repeat(" ", MaxManifest+1)),
	} {
		t.Run(name, func(t *testing.T) {
			if files, err := Files(manifest); err == nil {
				t.Fatalf("Files: %v", files)
			} else if !strings.HasPrefix(err.Error(), "read model manifest: ") {
				t.Errorf("error %q does not say what was being done", err)
			}
		})
	}
	if err := checkPath("a\xffx"); err == nil { // JSON cannot carry it
		t.Error("a path that is no UTF-8 was accepted")
	}
}

func FuzzFiles(f *testing.F) {
	f.Add(foreign(f, plain(oci.AnnotationFilepath, "a/b"), plain(ocispec.AnnotationTitle, "a/c"), packedAs(oci.LayerDoc+oci.PackingTarZstd, plain())))
	f.Add(foreign(f, plain(oci.AnnotationFilepath, "x", oci.AnnotationFileMetadata, `{"mode":33261}`)))
	f.Fuzz(func(t *testing.T, manifest []byte) {
		files, err := Files(manifest)
		if err != nil {
			return
		}
		seen := make(map[string]bool)
		for _, file := range files {
			if !fs.ValidPath(file.Path) || strings.ContainsAny(file.Path, "\\\x00") || file.Size < 0 || file.Mode&^0o755 != 0 {
				t.Fatalf("file %+v", file)
			}
			if !file.Archive() && seen[file.Path] {
				t.Fatalf("file %q twice", file.Path)
			}
			seen[file.Path] = seen[file.Path] || !file.Archive()
		}
	})
}
