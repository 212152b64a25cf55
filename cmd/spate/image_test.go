package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/oci/remote"
)

// image REF LAYER... pushes an image with a layer of each kind that is named:
// gzip, zstd or plain; link, which has a hard link to a file of another layer;
// wrong, whose diffID is another's; foreign, which is to be had elsewhere. It sets
// LAYER to the hex digest of the last layer's blob.
func makeImage(ts *testscript.TestScript, neg bool, args []string) {
	repo, err := remote.Open(args[0], remote.Options{})
	ts.Check(err)
	config := ocispec.Image{RootFS: ocispec.RootFS{Type: "layers"}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for i, kind := range args[1:] {
		object := layerTar(ts, strings.Repeat(string(rune('a'+i)), 300_000), kind == "link")
		mediaType, blob := ocispec.MediaTypeImageLayerGzip, compress(ts, object, func(w io.Writer) (io.WriteCloser, error) {
			return gzip.NewWriter(w), nil
		})
		diffID := digest.FromBytes(object)
		switch kind {
		case "zstd":
			mediaType, blob = ocispec.MediaTypeImageLayerZstd, compress(ts, object, func(w io.Writer) (io.WriteCloser, error) {
				return zstd.NewWriter(w)
			})
		case "plain":
			mediaType, blob = ocispec.MediaTypeImageLayer, object
		case "wrong":
			diffID = digest.FromString(kind)
		case "foreign":
			mediaType = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
		m.Layers = append(m.Layers, pushBytes(ts, repo, mediaType, blob))
		ts.Setenv("LAYER", digest.FromBytes(blob).Encoded())
	}
	text, err := json.Marshal(config)
	ts.Check(err)
	m.Config = pushBytes(ts, repo, ocispec.MediaTypeImageConfig, text)
	pushTagged(ts, repo, m.MediaType, m)
}

// platforms REF OS/ARCH=TAG... pushes an image index of images that are tagged in REF's repository.
func makePlatforms(ts *testscript.TestScript, neg bool, args []string) {
	repo, err := remote.Open(args[0], remote.Options{})
	ts.Check(err)
	x := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, arg := range args[1:] {
		platform, tag, _ := strings.Cut(arg, "=")
		os, arch, _ := strings.Cut(platform, "/")
		desc, err := repo.Resolve(context.Background(), tag)
		ts.Check(err)
		desc.Platform = &ocispec.Platform{OS: os, Architecture: arch}
		x.Manifests = append(x.Manifests, desc)
	}
	pushTagged(ts, repo, x.MediaType, x)
}

// referrers REF N fails unless a manifest has N referrers, of whatever kind.
func countReferrers(ts *testscript.TestScript, neg bool, args []string) {
	repo, err := remote.Open(args[0], remote.Options{})
	ts.Check(err)
	desc, err := repo.Resolve(context.Background(), args[0])
	ts.Check(err)
	var found []ocispec.Descriptor
	ts.Check(repo.Referrers(context.Background(), desc, "", func(page []ocispec.Descriptor) error {
		found = append(found, page...)
		return nil
	}))
	if strconv.Itoa(len(found)) != args[1] {
		ts.Fatalf("%s has the referrers %v, want %s", args[0], found, args[1])
	}
}

func layerTar(ts *testscript.TestScript, text string, link bool) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	ts.Check(w.WriteHeader(&tar.Header{Name: "file-" + text[:1], Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}))
	_, err := io.WriteString(w, text)
	ts.Check(err)
	if link {
		ts.Check(w.WriteHeader(&tar.Header{Name: "link", Linkname: "of/another/layer", Typeflag: tar.TypeLink}))
	}
	ts.Check(w.Close())
	return b.Bytes()
}

func compress(ts *testscript.TestScript, b []byte, open func(io.Writer) (io.WriteCloser, error)) []byte {
	var buf bytes.Buffer
	w, err := open(&buf)
	ts.Check(err)
	_, err = w.Write(b)
	ts.Check(err)
	ts.Check(w.Close())
	return buf.Bytes()
}

func pushBytes(ts *testscript.TestScript, repo *remote.Repository, mediaType string, b []byte) ocispec.Descriptor {
	desc := content.NewDescriptorFromBytes(mediaType, b)
	if err := repo.Push(context.Background(), desc, bytes.NewReader(b)); !errors.Is(err, errdef.ErrAlreadyExists) {
		ts.Check(err)
	}
	return desc
}

// pushTagged pushes a manifest under the tag of repo's reference.
func pushTagged(ts *testscript.TestScript, repo *remote.Repository, mediaType string, manifest any) {
	text, err := json.Marshal(manifest)
	ts.Check(err)
	ts.Check(repo.PushReference(context.Background(), content.NewDescriptorFromBytes(mediaType, text), bytes.NewReader(text), repo.Reference.Reference))
}
