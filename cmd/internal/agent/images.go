package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry"

	"github.com/spate-project/spate/cache/mount"
	"github.com/spate-project/spate/cache/mount/holder"
	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci/image"
	"github.com/spate-project/spate/oci/mirror"
	"github.com/spate-project/spate/oci/snapshot"
)

// images shows the objects of images' layers as files, from which the
// snapshotter mounts what it shows containers. The mounts outlive the agent, so
// that containers do: a holder keeps their descriptors for the next agent.
type images struct {
	agent *Agent
	dir   string // images/DIGEST is where an image's objects are shown, erofs/DIGEST is metadata

	// askRegistry has Restore ask the registry too, once what is here was not enough.
	askRegistry atomic.Bool

	mu     sync.Mutex
	open   map[digest.Digest]*shown // by manifest
	holder holder.Store             // nil when there is none
	left   bool                     // all mounts are the next agent's
	again  *time.Timer              // of a sweep that has left something
}

const (
	// opening bounds what a registry may take to tell of an image.
	opening = time.Minute

	// unfinishedName is of metadata that are being fetched.
	unfinishedName = "new-*"

	// sweeping is after what time unused images that are in use are looked at again.
	sweeping = 10 * time.Second
)

var _ snapshot.Layers = (*images)(nil)

// A shown image is mounted, or about to be.
type shown struct {
	from  source
	ready chan struct{} // closed when err, or the rest, is known
	err   error

	admitted atomic.Uint64 // the policy's generation that did it
	artifact *artifact
	layers   map[digest.Digest]image.Indexed // by blob
	fs       *mount.FS
	dir      string
	done     chan struct{} // closed when fs is served no more

	users   int  // layers that are open, or about to be; guarded by images.mu
	leaving bool // it is unmounted, and done soon; guarded by images.mu
}

func newImages(a *Agent, dir string) (*images, error) {
	for _, sub := range []string{"images", "erofs"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("make the directory of images: %w", err)
		}
	}
	unfinished, _ := filepath.Glob(filepath.Join(dir, "erofs", unfinishedName))
	for _, path := range unfinished {
		os.Remove(path)
	}
	s := &images{agent: a, dir: dir, open: make(map[digest.Digest]*shown)}
	if len(a.opts.Holder) == 0 {
		return s, nil
	}
	return s, s.openHolder()
}

// openImages opens what shows and mirrors images.
func (a *Agent) openImages() (err error) {
	if a.shelf, err = openShelf(filepath.Join(a.opts.Data, "admitted"), a.log); err != nil {
		return err
	}
	opts := mirror.Options{
		Policy: a.opts.Policy, Blobs: mirrored{a}, Local: a.opts.Registries, Transport: a.transport, Logger: a.log,
	}
	if len(a.opts.Registries) > 0 {
		opts.Default = a.opts.Registries[0]
	}
	if a.opts.Remote.PlainHTTP {
		opts.PlainHTTP = a.opts.Registries
	}
	if a.mirror, err = mirror.New(opts); err != nil {
		return err
	}
	if a.opts.Snapshotter == "" {
		return nil
	}
	if a.images, err = newImages(a, a.opts.Data); err != nil {
		return err
	}
	a.snapshotter, err = snapshot.New(filepath.Join(a.opts.Data, "snapshotter"), a.images, snapshot.Options{Logger: a.log})
	if err != nil {
		return err
	}
	if a.containerd, err = snapshot.Listen(a.opts.Snapshotter); err != nil {
		a.snapshotter.Close()
	}
	return err
}

// serveImages serves containerd until ctx ends, and meanwhile opens again what
// an earlier agent had open. Then it leaves the mounts to the next one.
func (a *Agent) serveImages(ctx context.Context) error {
	if a.snapshotter == nil {
		<-ctx.Done()
		return nil
	}
	var beside sync.WaitGroup
	beside.Go(func() { a.images.keep(ctx) })
	beside.Go(func() { a.restoreImages(ctx) })
	err := snapshot.Serve(ctx, a.containerd, a.snapshotter)
	beside.Wait()
	a.images.leave()
	return err
}

// restoreImages opens again what an earlier agent had open: by what is kept
// here, and what cannot be opened so by asking the registry, again and again.
// What is mounted or held and of no image is taken away.
func (a *Agent) restoreImages(ctx context.Context) {
	if err := a.snapshotter.Cleanup(ctx); err != nil && ctx.Err() == nil {
		a.log.Error("free what removed images held", "err", err)
	}
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		open, all, err := a.snapshotter.Restore(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			a.log.Error("open again what was open", "err", err)
		case open == all:
			a.images.clear()
			return
		}
		a.images.askRegistry.Store(true)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (a *Agent) closeImages() error {
	if a.snapshotter == nil {
		return nil
	}
	return a.snapshotter.Close()
}

// Open implements snapshot.Layers.
func (s *images) Open(ctx context.Context, r snapshot.Request) (*snapshot.Layer, error) {
	return s.layer(ctx, r, online)
}

// Restore implements snapshot.Layers.
func (s *images) Restore(ctx context.Context, r snapshot.Request) (*snapshot.Layer, error) {
	if s.askRegistry.Load() {
		return s.layer(ctx, r, online)
	}
	return s.layer(ctx, r, fromShelf)
}

func (s *images) layer(ctx context.Context, r snapshot.Request, from source) (*snapshot.Layer, error) {
	reference, err := registry.ParseReference(r.Image)
	if err != nil {
		return nil, fmt.Errorf("open a layer of %s: %w", r.Image, err)
	}
	reference.Reference = r.Manifest.String()
	im, err := s.use(ctx, reference.String(), r.Manifest, from)
	if err != nil {
		return nil, err
	}
	if err = s.admitAgain(ctx, im, reference.String(), from); err != nil {
		s.release(im)
		return nil, err
	}
	l, err := s.layerOf(im, r, reference.String())
	if err != nil {
		s.release(im)
		return nil, err
	}
	return l, nil
}

// admitAgain returns nil when the policy is the one that admitted an image which is
// open, or admits it too.
func (s *images) admitAgain(ctx context.Context, im *shown, reference string, from source) error {
	now := s.agent.opts.Policy.Generation()
	if im.admitted.Load() == now {
		return nil
	}
	_, err := s.agent.admit(ctx, reference, from)
	switch {
	case errors.Is(err, piece.ErrNotTrusted):
		return fmt.Errorf("%w: %w", snapshot.ErrRefused, err)
	case err != nil:
		return err
	}
	im.admitted.Store(now)
	return nil
}

// layerOf returns a layer of im, which is in use for it.
func (s *images) layerOf(im *shown, r snapshot.Request, reference string) (*snapshot.Layer, error) {
	l, ok := im.layers[r.Layer]
	if !ok {
		return nil, fmt.Errorf("open a layer of %s: the manifest lists no layer %s", reference, r.Layer)
	}
	if l.EROFS == nil {
		return nil, fmt.Errorf("layer %s of %s has no EROFS metadata: %w", r.Layer, reference, snapshot.ErrNotIndexed)
	}
	metadata := s.metadata(*l.EROFS)
	if err := checkFile(metadata, *l.EROFS); err != nil {
		return nil, fmt.Errorf("layer %s of %s: look at its EROFS metadata: %w", r.Layer, reference, err)
	}
	object := im.artifact.object(l.DiffID)
	var once sync.Once
	return &snapshot.Layer{
		Object:   digest.Digest(l.DiffID.String()),
		Metadata: metadata,
		Device:   filepath.Join(im.dir, l.DiffID.Hex()),
		Held:     func() int64 { return presentBytes(object) },
		Close: func() error {
			once.Do(func() { s.release(im) })
			return nil
		},
	}, nil
}

// use returns the image of the manifest, mounted, and counts one use more. The
// first use opens it, beyond the end of its context: the next one may need it.
func (s *images) use(ctx context.Context, reference string, manifest digest.Digest, from source) (*shown, error) {
	for {
		im, err := s.take(ctx, reference, manifest, from)
		if err != nil {
			return nil, err
		}
		select {
		case <-im.ready:
			if im.err != nil && im.from == fromShelf && from == online {
				continue // the registry may know better
			}
			return im, im.err
		case <-ctx.Done():
			s.release(im)
			return nil, ctx.Err()
		}
	}
}

// take counts one use more of an image that may be on its way still.
func (s *images) take(ctx context.Context, reference string, manifest digest.Digest, from source) (*shown, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		im := s.open[manifest]
		if im == nil {
			break
		}
		if !im.leaving {
			im.users++
			return im, nil
		}
		s.mu.Unlock()
		select {
		case <-im.done:
		case <-time.After(lingering): // a copy of the mount is somewhere else
			s.forget(manifest, im)
		case <-ctx.Done():
		}
		s.mu.Lock()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	im := &shown{from: from, ready: make(chan struct{}), done: make(chan struct{}), users: 1}
	s.agent.mu.Lock()
	defer s.agent.mu.Unlock()
	if s.left || !s.agent.spawn(func(ctx context.Context) {
		if im.err = s.show(ctx, im, reference, manifest, from); im.err != nil {
			s.forget(manifest, im)
		}
		close(im.ready)
		s.sweep() // nobody may want it by now
	}) {
		return nil, fmt.Errorf("open %s: %w", reference, errEnding)
	}
	s.open[manifest] = im
	return im, nil
}

func (s *images) forget(manifest digest.Digest, im *shown) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[manifest] == im {
		delete(s.open, manifest)
	}
}

// release ends one use.
func (s *images) release(im *shown) {
	s.mu.Lock()
	im.users--
	s.mu.Unlock()
	s.sweep()
}

// sweep unmounts the images that nobody uses. One from which something is still
// mounted stays until the next time.
func (s *images) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, im := range s.open {
		select {
		case <-im.ready:
		default:
			continue
		}
		if s.left || im.users > 0 || im.leaving || im.err != nil {
			continue
		}
		if err := im.fs.Unmount(); err != nil {
			s.agent.log.Warn("an image that nobody uses is in use", "reference", im.artifact.reference, "err", err)
			if s.again == nil {
				s.again = time.AfterFunc(sweeping, s.sweep)
			}
			s.again.Reset(sweeping)
			continue
		}
		im.leaving = true
	}
}

// show admits an image, opens its objects and mounts them.
func (s *images) show(ctx context.Context, im *shown, reference string, manifest digest.Digest, from source) error {
	ctx, cancel := context.WithTimeout(ctx, opening)
	defer cancel()
	im.admitted.Store(s.agent.opts.Policy.Generation())
	admission, err := s.agent.admit(ctx, reference, from)
	switch {
	case errors.Is(err, errNotIndexed):
		return fmt.Errorf("%w: %w", snapshot.ErrNotIndexed, err)
	case errors.Is(err, piece.ErrNotTrusted):
		return fmt.Errorf("%w: %w", snapshot.ErrRefused, err)
	case err != nil:
		return err
	}
	if len(admission.Layers) == 0 {
		return fmt.Errorf("%s is no image: %w", reference, snapshot.ErrNotIndexed)
	}
	im.layers = make(map[digest.Digest]image.Indexed, len(admission.Layers))
	for _, l := range admission.Layers {
		im.layers[l.Blob.Digest] = l
		if l.EROFS == nil {
			continue
		}
		if err := s.fetchMetadata(ctx, admission.repo, *l.EROFS, from); err != nil {
			return fmt.Errorf("open %s: EROFS metadata of layer %s: %w", reference, l.Blob.Digest, err)
		}
	}
	if im.artifact, err = s.agent.use(admission, need{}); err != nil {
		return err
	}
	if err := s.mount(im, manifest); err != nil {
		s.agent.release(im.artifact, need{})
		return fmt.Errorf("open %s: %w", reference, err)
	}
	return nil
}

// metadata returns where the blob lies.
func (s *images) metadata(blob ocispec.Descriptor) string {
	return filepath.Join(s.dir, "erofs", blob.Digest.Encoded())
}

// fetchMetadata brings EROFS metadata here. What lies here already is hashed first.
func (s *images) fetchMetadata(ctx context.Context, fetcher content.Fetcher, blob ocispec.Descriptor, from source) error {
	path := s.metadata(blob)
	err := checkFile(path, blob)
	if err == nil || from == fromShelf {
		return err
	}
	body, err := fetcher.Fetch(ctx, blob)
	if err != nil {
		return err
	}
	defer body.Close()
	tmp, err := os.CreateTemp(filepath.Dir(path), unfinishedName)
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	// The reader fails at its end unless the bytes are the blob's.
	if _, err := io.Copy(tmp, body); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// checkFile reports whether the file at path holds the blob.
func checkFile(path string, blob ocispec.Descriptor) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, sum); got != blob.Digest {
		return fmt.Errorf("%s holds %s, not %s", path, got, blob.Digest)
	}
	return nil
}

// free gives back the disk of an image that containerd has removed, but for what others have open.
func (s *images) free(im *shown) {
	if err := errors.Join(s.agent.discard(im.artifact), s.discardMetadata(im)); err != nil {
		s.agent.log.Warn("free what an image took", "reference", im.artifact.reference, "err", err)
	}
}

// discardMetadata removes the EROFS metadata that no other image has.
func (s *images) discardMetadata(im *shown) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	needed := make(map[digest.Digest]bool)
	for _, other := range s.open {
		select {
		case <-other.ready:
		default:
			return nil // who knows what that one needs
		}
		for _, l := range other.layers {
			if l.EROFS != nil {
				needed[l.EROFS.Digest] = true
			}
		}
	}
	for _, l := range im.layers {
		if l.EROFS != nil && !needed[l.EROFS.Digest] {
			needed[l.EROFS.Digest] = true // once
			err = errors.Join(err, os.Remove(s.metadata(*l.EROFS)))
		}
	}
	return err
}
