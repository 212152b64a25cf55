package layer

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/oci"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCompressionOf(t *testing.T) {
	for mediaType, want := range map[string]Compression{
		"application/vnd.oci.image.layer.v1.tar":                       None,
		"application/vnd.oci.image.layer.v1.tar+gzip":                  Gzip,
		"application/vnd.oci.image.layer.v1.tar+zstd":                  Zstd,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": Gzip,
		"application/vnd.docker.image.rootfs.diff.tar":                 None,
		"application/vnd.docker.image.rootfs.diff.tar.gzip":            Gzip,
		"application/vnd.docker.image.rootfs.diff.tar.zstd":            Zstd,
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":    Gzip,
		oci.LayerWeight + oci.PackingRaw:                               None,
		oci.LayerWeightConfig + oci.PackingTar:                         None,
		oci.LayerDoc + oci.PackingTarGzip:                              Gzip,
		oci.LayerCode + oci.PackingTarZstd:                             Zstd,
		"application/vnd.cnai.model.weight.config.v1.tar+gzip":         Gzip,
	} {
		if got, err := CompressionOf(mediaType); err != nil || got != want {
			t.Errorf("CompressionOf(%q) = %v, %v; want %v", mediaType, got, err, want)
		}
	}
	for _, mediaType := range []string{
		"", "+", ".raw", "tar+gzip", "application/octet-stream", "application/vnd.oci.image.layer.v1",
		"application/vnd.oci.image.layer.v1.tar+lz4", "application/vnd.oci.image.layer.v1+gzip",
		"application/vnd.cncf.model.weight.v1.raw+gzip", "application/vnd.cncf.model.thing.v1.raw",
	} {
		if got, err := CompressionOf(mediaType); !errors.Is(err, errdef.ErrUnsupported) {
			t.Errorf("CompressionOf(%q) = %v, %v; want an error", mediaType, got, err)
		}
	}
}

const (
	tarType  = "application/vnd.oci.image.layer.v1.tar"
	gzipType = tarType + "+gzip"
	zstdType = tarType + "+zstd"
)

func TestExpand(t *testing.T) {
	object := []byte(strings.Repeat("all the bytes of an object, and again ", 20_000))
	half := len(object) / 2
	skippable := []byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'x', 'y', 'z'}

	for _, tt := range []struct {
		name, mediaType string
		blob            []byte
	}{
		{"plain", tarType, object},
		{"gzip", gzipType, gzipped(t, object)},
		{"gzip of two members", gzipType, join(gzipped(t, object[:half]), gzipped(t, object[half:]))},
		{"gzip with an empty member", gzipType, join(gzipped(t, object), gzipped(t, nil))},
		{"zstd", zstdType, zstded(t, object)},
		{"zstd of two frames", zstdType, join(zstded(t, object[:half]), zstded(t, object[half:]))},
		{"zstd with a skippable frame", zstdType, join(zstded(t, object), skippable)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			blob := &endReader{Reader: bytes.NewReader(tt.blob)}
			got, err := expand(tt.mediaType, blob)
			if err != nil || !bytes.Equal(got, object) {
				t.Fatalf("Expand: %d bytes, error %v; want %d bytes", len(got), err, len(object))
			}
			if !blob.ended {
				t.Error("Expand ended before the blob did, so nobody could check the blob's digest")
			}
		})
	}
}

func TestExpandRefuses(t *testing.T) {
	object := []byte(strings.Repeat("an object ", 10_000))
	gz, zs := gzipped(t, object), zstded(t, object)
	flip := func(b []byte, i int) []byte {
		b = bytes.Clone(b)
		b[i] ^= 1
		return b
	}
	for _, tt := range []struct {
		name, mediaType string
		blob            []byte
		want            error
	}{
		{"gzip of nothing", gzipType, nil, io.ErrUnexpectedEOF},
		{"gzip that is plain", gzipType, object, gzip.ErrHeader},
		{"gzip cut short", gzipType, gz[:len(gz)-1], io.ErrUnexpectedEOF},
		{"gzip with another checksum", gzipType, flip(gz, len(gz)-8), gzip.ErrChecksum},
		{"gzip with something behind it", gzipType, join(gz, []byte("0123456789")), gzip.ErrHeader},
		{"zstd that is plain", zstdType, object, zstd.ErrMagicMismatch},
		{"zstd cut short", zstdType, zs[:len(zs)-1], io.ErrUnexpectedEOF},
		{"zstd with another checksum", zstdType, flip(zs, len(zs)-1), zstd.ErrCRCMismatch},
		{"zstd with something behind it", zstdType, join(zs, []byte("0123456789")), zstd.ErrMagicMismatch},
		// Magic number, a frame header without content size, and a window descriptor of 128 MiB.
		{"zstd with too large a window", zstdType, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 17 << 3, 1, 0, 0}, zstd.ErrWindowSizeExceeded},
		{"a type that nobody knows", "text/plain", object, errdef.ErrUnsupported},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := expand(tt.mediaType, bytes.NewReader(tt.blob)); !errors.Is(err, tt.want) {
				t.Fatalf("Expand: %d bytes, error %v; want %v", len(got), err, tt.want)
			}
		})
	}
}

// A blob whose reader fails at its very end, as one does that checks a digest, must not expand.
func TestExpandPassesErrors(t *testing.T) {
	object := []byte(strings.Repeat("an object ", 10_000))
	wrong := errors.New("wrong digest")
	for mediaType, blob := range map[string][]byte{tarType: object, gzipType: gzipped(t, object), zstdType: zstded(t, object)} {
		r := io.MultiReader(bytes.NewReader(blob), failReader{wrong})
		if _, err := expand(mediaType, r); !errors.Is(err, wrong) {
			t.Errorf("%s: error %v, want %v", mediaType, err, wrong)
		}
	}
}

func FuzzExpand(f *testing.F) {
	f.Add(gzipType, gzipped(f, []byte("seed")))
	f.Add(zstdType, zstded(f, []byte("seed")))
	f.Fuzz(func(t *testing.T, mediaType string, blob []byte) {
		z, err := Expand(mediaType, bytes.NewReader(blob))
		if err != nil {
			return
		}
		defer z.Close()
		io.Copy(io.Discard, io.LimitReader(z, 16<<20))
	})
}

func BenchmarkExpand(b *testing.B) {
	random := rand.New(rand.NewPCG(1, 2))
	object := make([]byte, 32<<20)
	for i := range object {
		object[i] = byte(random.ExpFloat64() * 8)
	}
	for mediaType, blob := range map[string][]byte{gzipType: gzipped(b, object), zstdType: zstded(b, object)} {
		b.Run(mediaType[strings.LastIndexByte(mediaType, '+')+1:], func(b *testing.B) {
			b.SetBytes(int64(len(object)))
			for b.Loop() {
				if _, err := expand(mediaType, bytes.NewReader(blob)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func expand(mediaType string, blob io.Reader) ([]byte, error) {
	z, err := Expand(mediaType, blob)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return io.ReadAll(z)
}

func gzipped(t testing.TB, object []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	compress(t, w, object)
	return buf.Bytes()
}

func zstded(t testing.TB, object []byte) []byte {
	var buf bytes.Buffer
	w, err := zstd.NewWriter(&buf)
	if err != nil {
		t.Fatal(err)
	}
	compress(t, w, object)
	return buf.Bytes()
}

func compress(t testing.TB, w io.WriteCloser, object []byte) {
	t.Helper()
	if _, err := w.Write(object); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// An endReader notes that its end was read.
type endReader struct {
	io.Reader
	ended bool
}

func (r *endReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.ended = r.ended || err == io.EOF
	return n, err
}

type failReader struct{ err error }

func (r failReader) Read([]byte) (int, error) { return 0, r.err }
