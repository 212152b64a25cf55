// Package layer opens the layers of an artifact: it turns the bytes that a
// registry stores into the bytes that a node reads, the object.
package layer

import (
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/oci"
)

// MaxWindow is how far back a zstd layer may refer, in bytes: what the zstd
// command needs up to its level 21. It bounds the memory of a decoder.
const MaxWindow = 64 << 20

// A Compression is how a layer's blob was made from its object.
type Compression int

const (
	None Compression = iota // the blob is the object
	Gzip                    // RFC 1952, of one or more members
	Zstd                    // RFC 8878, of one or more frames
)

// CompressionOf tells the compression from the media type of a layer: ModelPack
// in all its packings, OCI image layers and Docker's. The error for any other
// type matches errdef.ErrUnsupported.
func CompressionOf(mediaType string) (Compression, error) {
	switch packing(mediaType) {
	case oci.PackingRaw, oci.PackingTar:
		return None, nil
	case oci.PackingTarGzip, ".tar.gzip":
		return Gzip, nil
	case oci.PackingTarZstd, ".tar.zstd":
		return Zstd, nil
	}
	return None, fmt.Errorf("open layer of media type %q: %w: known are ModelPack, OCI and Docker layers, plain, gzip or zstd",
		mediaType, errdef.ErrUnsupported)
}

// packing returns what follows the family's name in a media type.
func packing(mediaType string) string {
	if _, packing, ok := oci.SplitModelLayer(mediaType); ok {
		return packing
	}
	for _, family := range []string{
		"application/vnd.oci.image.layer.v1",
		"application/vnd.oci.image.layer.nondistributable.v1",
		"application/vnd.docker.image.rootfs.diff",
		"application/vnd.docker.image.rootfs.foreign.diff",
	} {
		if rest, ok := strings.CutPrefix(mediaType, family); ok {
			return rest
		}
	}
	return ""
}

// Expand returns the object in the blob r, a layer of the given media type. The
// result reads r to its end before it reports io.EOF, so that a reader which
// checks the blob's digest there gets to do so. Bytes after the compressed data
// that are not compressed data themselves are an error.
//
// Memory is bounded by MaxWindow. Closing the result frees the decoder and
// leaves r open. It is not safe for concurrent use.
func Expand(mediaType string, r io.Reader) (io.ReadCloser, error) {
	compression, err := CompressionOf(mediaType)
	if err != nil {
		return nil, err
	}
	switch compression {
	case Gzip:
		z, err := gzip.NewReader(r)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, fmt.Errorf("open layer of media type %q: %w", mediaType, err)
		}
		return z, nil
	case Zstd:
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(MaxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("open layer of media type %q: %w", mediaType, err)
		}
		return z.IOReadCloser(), nil
	default:
		return io.NopCloser(r), nil
	}
}
