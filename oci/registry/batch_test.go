package registry

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A batchWorld is an image, and an index-like referrer of it with a referrer of its own.
type batchWorld struct {
	config, layer, blob []byte
	image, about, seal  *Manifest
}

func newBatchWorld(t *testing.T) batchWorld {
	t.Helper()
	w := batchWorld{config: []byte(`{}`), layer: noise(1, 1000), blob: noise(2, 300_000)}
	parse := func(m ocispec.Manifest, subject *Manifest) *Manifest {
		if subject != nil {
			m.Subject = &ocispec.Descriptor{MediaType: subject.Descriptor.MediaType, Digest: subject.Descriptor.Digest, Size: subject.Descriptor.Size}
		}
		parsed, err := ParseManifest(marshal(t, m), digest.Canonical)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	w.image = parse(image(w.config, w.layer), nil)
	w.about = parse(image(w.config, w.blob), w.image)
	w.seal = parse(image(w.config), w.about)
	return w
}

// push makes the image, as a client does.
func (w batchWorld) push(t *testing.T, s *Store) {
	t.Helper()
	for _, b := range [][]byte{w.config, w.layer} {
		putBlob(t, s, "r", b)
	}
	if err := s.PutManifest("r", w.image); err != nil {
		t.Fatal(err)
	}
}

func putBlob(t *testing.T, s *Store, repo string, data []byte) {
	t.Helper()
	u, err := s.CreateUpload(repo, digest.Canonical)
	if err == nil {
		_, err = u.Append(bytes.NewReader(data))
	}
	if err == nil {
		err = u.Finish(digest.FromBytes(data))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// add makes a batch of what is about the image. The caller closes it.
func (w batchWorld) add(t *testing.T, s *Store) *Batch {
	t.Helper()
	b := s.NewBatch("r")
	if err := b.PutBlob(digest.FromBytes(w.blob), bytes.NewReader(w.blob)); err != nil {
		t.Fatal(err)
	}
	b.PutManifest(w.about)
	b.PutManifest(w.seal)
	return b
}

func openStore(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := OpenStore(dir, discard())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// has reports whether the store has what the batch adds.
func (w batchWorld) has(s *Store) (blob, about, seal bool) {
	_, blobErr := s.BlobSize("r", digest.FromBytes(w.blob))
	_, aboutErr := s.Manifest("r", w.about.Descriptor.Digest)
	_, sealErr := s.Manifest("r", w.seal.Descriptor.Digest)
	return blobErr == nil, aboutErr == nil, sealErr == nil
}

func checkTemp(t *testing.T, s *Store) {
	t.Helper()
	if left, err := os.ReadDir(s.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("%v is left in the store's temporary directory, %v", left, err)
	}
}

func TestBatch(t *testing.T) {
	w, s := newBatchWorld(t), openStore(t, t.TempDir())
	w.push(t, s)
	b := w.add(t, s)
	defer b.Close()
	if blob, about, seal := w.has(s); blob || about || seal {
		t.Errorf("before Commit there are %v, %v, %v", blob, about, seal)
	}
	if size, err := b.BlobSize(digest.FromBytes(w.blob)); err != nil || size != int64(len(w.blob)) {
		t.Errorf("the batch has a blob of %d bytes, %v", size, err)
	}
	if size, err := b.BlobSize(digest.FromBytes(w.layer)); err != nil || size != int64(len(w.layer)) {
		t.Errorf("the repository has a blob of %d bytes, %v", size, err)
	}
	if _, err := b.BlobSize(digest.FromString("none")); !errors.Is(err, ErrBlobUnknown) {
		t.Errorf("the size of an unknown blob: %v", err)
	}
	var puts sync.WaitGroup // several layers may have the same metadata
	for range 4 {
		puts.Go(func() {
			if err := b.PutBlob(digest.FromBytes(w.blob), bytes.NewReader(w.blob)); err != nil {
				t.Error(err)
			}
		})
	}
	puts.Wait()
	var wrong *DigestError
	if err := b.PutBlob(digest.FromString("other"), bytes.NewReader(w.blob)); !errors.As(err, &wrong) {
		t.Errorf("a blob under another's digest: %v", err)
	}
	if err := b.Commit(w.image.Descriptor.Digest); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if blob, about, seal := w.has(s); !blob || !about || !seal {
		t.Errorf("after Commit there are %v, %v, %v", blob, about, seal)
	}
	if found, err := s.Referrers("r", w.image.Descriptor.Digest); err != nil || !slices.Equal(found, []digest.Digest{w.about.Descriptor.Digest}) {
		t.Errorf("the image's referrers are %v, %v", found, err)
	}
	checkTemp(t, s)

	// A batch that is given up leaves nothing.
	other := noise(3, 1000)
	given := s.NewBatch("r")
	if err := given.PutBlob(digest.FromBytes(other), bytes.NewReader(other)); err != nil {
		t.Fatal(err)
	}
	given.Close()
	checkTemp(t, s)
	if _, err := s.BlobSize("r", digest.FromBytes(other)); !errors.Is(err, ErrBlobUnknown) {
		t.Errorf("a blob that was given up: %v", err)
	}
}

// A blob that another repository has takes no room a second time.
func TestBatchShares(t *testing.T) {
	w, s := newBatchWorld(t), openStore(t, t.TempDir())
	w.push(t, s)
	putBlob(t, s, "other", w.blob)
	b := w.add(t, s)
	defer b.Close()
	if err := b.Commit(w.image.Descriptor.Digest); err != nil {
		t.Fatal(err)
	}
	b.Close()
	checkTemp(t, s)
	d := digest.FromBytes(w.blob)
	one, err := s.root.Stat(blobPath("other", d))
	if err != nil {
		t.Fatal(err)
	}
	two, err := s.root.Stat(blobPath("r", d))
	if err != nil || !os.SameFile(one, two) {
		t.Errorf("two repositories have two files, %v", err)
	}
}

// What is beside the batch is deleted before Commit, or while it is under way.
func TestBatchBesideDeleted(t *testing.T) {
	for _, when := range []string{"before", "during"} {
		t.Run(when, func(t *testing.T) {
			w, s := newBatchWorld(t), openStore(t, t.TempDir())
			w.push(t, s)
			b := w.add(t, s)
			defer b.Close()
			remove := func() {
				s.beforeChange = nil
				if err := s.DeleteManifest("r", w.image.Descriptor.Digest); err != nil {
					t.Error(err)
				}
			}
			if when == "before" {
				remove()
			} else {
				s.beforeChange = remove // its first change is of a blob's name
			}
			if err := b.Commit(w.image.Descriptor.Digest); !errors.Is(err, ErrManifestUnknown) {
				t.Fatalf("Commit: %v", err)
			}
			b.Close()
			if blob, about, seal := w.has(s); blob || about || seal {
				t.Errorf("there are %v, %v, %v", blob, about, seal)
			}
			checkTemp(t, s)
			if _, err := s.root.Stat(poolPath(digest.FromBytes(w.blob))); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the blob is still shared: %v", err)
			}
		})
	}
}

// The process ends before each change that Commit makes on disk. What is found
// is whole, and the same batch made again adds the rest.
func TestBatchKilled(t *testing.T) {
	w := newBatchWorld(t)
	for n := 1; ; n++ {
		dir := t.TempDir()
		s, err := OpenStore(dir, discard())
		if err != nil {
			t.Fatal(err)
		}
		w.push(t, s)
		b := w.add(t, s)
		changes := 0
		s.beforeChange = func() {
			if changes++; changes == n {
				panic("killed")
			}
		}
		killed := func() (killed bool) {
			defer func() { killed = recover() != nil }()
			if err := b.Commit(w.image.Descriptor.Digest); err != nil {
				t.Error(err)
			}
			return false
		}()
		s.Close()

		s = openStore(t, dir)
		checkTemp(t, s)
		if blob, about, seal := w.has(s); about && !(blob && seal) || seal && !blob {
			t.Errorf("killed before change %d: there are %v, %v, %v", n, blob, about, seal)
		}
		b = w.add(t, s)
		if err := b.Commit(w.image.Descriptor.Digest); err != nil {
			t.Errorf("killed before change %d: %v", n, err)
		}
		b.Close()
		checkTemp(t, s)
		if blob, about, seal := w.has(s); !blob || !about || !seal {
			t.Errorf("killed before change %d, made again: there are %v, %v, %v", n, blob, about, seal)
		}
		if !killed {
			if n < 6 {
				t.Errorf("only %d changes seen", n-1)
			}
			return
		}
	}
}

// Manifests lists those of every repository, whatever its name, and Pushed is told of each.
func TestManifests(t *testing.T) {
	var pushed []string
	c, reg, _ := serve(t, t.TempDir(), Options{Pushed: func(repo string, m *Manifest) {
		pushed = append(pushed, repo+"@"+m.Descriptor.Digest.String())
	}})
	var want []string
	for _, repo := range []string{"a", "a/b", "a/b/c", "manifests/tags"} {
		config, layer := []byte(`{}`), noise(7, 100)
		c.pushBlob(repo, config)
		c.pushBlob(repo, layer)
		want = append(want, repo+"@"+c.pushManifest(repo, "v1", image(config, layer)).String())
	}
	c.want(400, "PUT", "/v2/a/manifests/v2", marshal(t, image([]byte("missing"))))
	if !slices.Equal(pushed, want) {
		t.Errorf("Pushed was told of %v, want %v", pushed, want)
	}
	var found []string
	if err := reg.Store().Manifests(func(repo string, d digest.Digest) error {
		found = append(found, repo+"@"+d.String())
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(found)
	if slices.Sort(want); !slices.Equal(found, want) {
		t.Errorf("found %v, want %v", found, want)
	}
	enough := errors.New("enough")
	calls := 0
	if err := reg.Store().Manifests(func(string, digest.Digest) error { calls++; return enough }); err != enough || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
}
