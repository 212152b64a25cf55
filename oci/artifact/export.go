package artifact

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/errdef"
)

// An Export is an image layout in the making: a Target. It is beside its place, under a
// name of its own, until Commit moves it there: nobody sees a part. Tags become
// org.opencontainers.image.ref.name annotations.
type Export struct {
	Target
	name, temp string
	finish     func() error // writes what comes last
	close      func() error
}

// NewExport begins the layout name: a tar where name ends in .tar, which then is replaced, else a
// directory, which must not be there. The caller calls Close.
func NewExport(name string) (*Export, error) {
	e, err := newExport(filepath.Clean(name))
	if err != nil {
		return nil, fmt.Errorf("begin the image layout %s: %w", name, err)
	}
	return e, nil
}

func newExport(name string) (*Export, error) {
	dir, base := filepath.Split(name)
	if dir == "" {
		dir = "."
	}
	fi, err := os.Stat(name)
	switch {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, errors.Unwrap(err)
	case err == nil && (!strings.HasSuffix(name, ".tar") || !fi.Mode().IsRegular()):
		return nil, os.ErrExist
	case slices.Contains([]string{".gz", ".tgz", ".zst", ".xz", ".bz2"}, filepath.Ext(base)):
		return nil, errors.New("a compressed tar is not written: blobs are compressed already")
	}
	if strings.HasSuffix(name, ".tar") {
		f, err := os.CreateTemp(dir, "."+base+".*")
		if err != nil {
			return nil, err
		}
		t := &tarTarget{w: tar.NewWriter(f), held: map[digest.Digest]bool{}, tags: map[string]ocispec.Descriptor{}}
		finish := func() error { return errors.Join(t.finish(), f.Chmod(0o644), f.Sync()) }
		return &Export{t, name, f.Name(), finish, f.Close}, nil
	}
	temp, err := os.MkdirTemp(dir, "."+base+".*")
	if err != nil {
		return nil, err
	}
	store, err := oci.New(temp)
	if err != nil {
		os.RemoveAll(temp)
		return nil, err
	}
	store.AutoSaveIndex = false
	finish := func() error { return errors.Join(store.SaveIndex(), os.Chmod(temp, 0o755)) }
	return &Export{store, name, temp, finish, func() error { return nil }}, nil
}

// Commit ends the layout and puts it in its place.
func (e *Export) Commit() error {
	err := e.finish()
	if err == nil {
		err = os.Rename(e.temp, e.name)
	}
	if err != nil {
		return fmt.Errorf("end the image layout %s: %w", e.name, err)
	}
	return nil
}

// Close lets go of the files, and removes them where Commit did not put them in their place.
func (e *Export) Close() error {
	return errors.Join(e.close(), os.RemoveAll(e.temp))
}

// A tarTarget writes a layout as a tar while it comes, one blob after another.
type tarTarget struct {
	mu     sync.Mutex
	w      *tar.Writer
	held   map[digest.Digest]bool
	tags   map[string]ocispec.Descriptor
	listed []ocispec.Descriptor // manifests, in the order they came
	broken error                // why the tar cannot go on
}

// Push writes a blob. One that fails in its middle is the end of the tar.
func (t *tarTarget) Push(ctx context.Context, d ocispec.Descriptor, body io.Reader) error {
	if err := d.Digest.Validate(); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.broken != nil:
		return t.broken
	case ctx.Err() != nil:
		return ctx.Err()
	case t.held[d.Digest]:
		return errdef.ErrAlreadyExists
	}
	name := fmt.Sprintf("%s/%s/%s", ocispec.ImageBlobsDir, d.Digest.Algorithm(), d.Digest.Encoded())
	if t.broken = t.write(name, d.Size, content.NewVerifyReader(body, d)); t.broken != nil {
		t.broken = fmt.Errorf("write %s: %w", d.Digest, t.broken)
		return t.broken
	}
	t.held[d.Digest] = true
	if isManifest(d) {
		t.listed = append(t.listed, d)
	}
	return nil
}

// write writes one file. GNU's format has any size in the header itself, which all readers know.
func (t *tarTarget) write(name string, size int64, body io.Reader) error {
	if err := t.w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Format: tar.FormatGNU}); err != nil {
		return err
	}
	if _, err := io.Copy(t.w, body); err != nil {
		return err
	}
	if v, ok := body.(*content.VerifyReader); ok {
		return v.Verify()
	}
	return nil
}

func (t *tarTarget) Exists(_ context.Context, d ocispec.Descriptor) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.held[d.Digest], nil
}

// Fetch fails: what is written to a tar is not read again.
func (t *tarTarget) Fetch(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
	return nil, errdef.ErrUnsupported
}

func (t *tarTarget) Tag(_ context.Context, d ocispec.Descriptor, tag string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.held[d.Digest] {
		return fmt.Errorf("tag %s: %w", d.Digest, errdef.ErrNotFound)
	}
	t.tags[tag] = d
	return nil
}

func (t *tarTarget) Resolve(_ context.Context, tag string) (ocispec.Descriptor, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d, ok := t.tags[tag]
	if !ok {
		return d, errdef.ErrNotFound
	}
	return d, nil
}

// finish writes what names the blobs.
func (t *tarTarget) finish() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.broken != nil {
		return t.broken
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	named := map[digest.Digest]bool{}
	for _, tag := range slices.Sorted(maps.Keys(t.tags)) {
		d := t.tags[tag]
		d.Annotations = maps.Clone(d.Annotations)
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations[ocispec.AnnotationRefName] = tag
		named[d.Digest] = true
		index.Manifests = append(index.Manifests, d)
	}
	for _, d := range t.listed {
		if !named[d.Digest] {
			index.Manifests = append(index.Manifests, d)
		}
	}
	for _, file := range []struct {
		name string
		v    any
	}{
		{ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}},
		{ocispec.ImageIndexFile, index},
	} {
		b, err := json.Marshal(file.v)
		if err != nil {
			return err
		}
		if err := t.write(file.name, int64(len(b)), strings.NewReader(string(b))); err != nil {
			return err
		}
	}
	return t.w.Close()
}
