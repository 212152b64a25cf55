package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/cache"
	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci/index"
	"github.com/spate-project/spate/oci/model"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/p2p"
)

// An artifact is an admitted reference whose objects are open in the cache and in the mesh.
type artifact struct {
	reference string
	digest    string // of the manifest
	files     []file
	users     int // mounts and pulls; guarded by Agent.mu
}

// A file is one file of an artifact.
type file struct {
	model.File
	object *cache.Object
}

// open admits reference and brings its objects into the mesh; with fill they
// are fetched whole in the background. Each open is matched by one release.
func (a *Agent) open(ctx context.Context, reference string, fill bool) (*artifact, error) {
	repo, err := remote.Open(reference, a.opts.Remote)
	if err != nil {
		return nil, err
	}
	trusted, _, err := a.opts.Policy.Admit(ctx, repo, reference)
	if err != nil {
		return nil, err
	}
	manifest := trusted.Manifest()
	doc, ok := trusted.Index()
	if !ok {
		return nil, fmt.Errorf("open %s: it has no index signed by a trusted key, so its pieces cannot be checked one by one: "+
			"push it again with `spate push --sign-key`, or read it whole with `spate pull --direct`", reference)
	}
	files, err := model.Files(manifest.Bytes)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", reference, err)
	}

	idx, err := index.Load(ctx, repo, doc.Bytes)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", reference, err)
	}
	if idx.Subject().Digest != manifest.Descriptor.Digest {
		return nil, fmt.Errorf("open %s: its index describes another manifest, %s: %w",
			reference, idx.Subject().Digest, piece.ErrNotTrusted)
	}

	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tasks == nil {
		return nil, fmt.Errorf("open %s: the agent is not running", reference)
	}
	key := manifest.Descriptor.Digest.String()
	art := a.artifacts[key]
	if art == nil {
		art = &artifact{reference: reference, digest: key}
		for _, f := range files {
			o, err := a.openObject(repo, idx, f)
			if err != nil {
				a.close(art)
				return nil, fmt.Errorf("open %s: %s: %w", reference, f.Path, err)
			}
			art.files = append(art.files, file{f, o})
		}
		a.artifacts[key] = art
	}
	art.users++
	a.tasks(func(ctx context.Context) { a.fetch(ctx, art, fill) })
	return art, nil
}

// fetch hashes again what an earlier process left of the artifact, so that it
// is shared and not fetched anew, and with fill has the rest fetched, file after file.
func (a *Agent) fetch(ctx context.Context, art *artifact, fill bool) {
	for _, f := range art.files {
		if err := f.object.Recheck(ctx); err != nil {
			if ctx.Err() == nil && !errors.Is(err, fs.ErrClosed) {
				a.log.Error("check what the cache holds", "object", f.object.Tree().Object().Digest, "err", err)
			}
			return
		}
		if err := a.mesh.Join(f.object, p2p.JoinOptions{Fill: fill}); err != nil {
			a.log.Error("share and fill", "reference", art.reference, "file", f.Path, "err", err)
		}
	}
}

// release ends one use of art. What is complete stays open and is shared for
// as long as the agent runs; what is not is closed and no longer fetched.
func (a *Agent) release(art *artifact) {
	a.mu.Lock()
	defer a.mu.Unlock()
	art.users--
	if art.users > 0 || art.complete() {
		return
	}
	delete(a.artifacts, art.digest)
	a.close(art)
}

// close closes art's objects; one that no other artifact has leaves the mesh. The caller holds a.mu.
func (a *Agent) close(art *artifact) {
	for _, f := range art.files {
		d := f.object.Tree().Object().Digest
		if a.objects[d]--; a.objects[d] == 0 {
			delete(a.objects, d)
			a.mesh.Leave(d)
		}
		f.object.Close()
	}
}

func (art *artifact) complete() bool {
	for _, f := range art.files {
		if !f.object.Complete() {
			return false
		}
	}
	return true
}

// openObject opens the object of one file and joins its swarm, without
// fetching anything yet. The caller holds a.mu.
func (a *Agent) openObject(repo *remote.Repository, idx *index.Index, f model.File) (*cache.Object, error) {
	digest, err := piece.ParseDigest(f.Descriptor.Digest.String())
	if err != nil {
		return nil, err
	}
	tree, ok := idx.Tree(digest)
	if !ok || f.Archive() {
		return nil, fmt.Errorf("layer %s is an archive or not in the index; only files that are layers of their own can be read lazily", digest)
	}
	o, err := a.store.Open(tree, a.mesh)
	if err != nil {
		return nil, err
	}
	if err := a.mesh.Join(o, p2p.JoinOptions{Origin: origin(repo, f.Descriptor)}); err != nil {
		o.Close()
		return nil, err
	}
	a.objects[digest]++
	return o, nil
}

// origin reads ranges of a blob from the registry.
func origin(repo *remote.Repository, blob ocispec.Descriptor) p2p.OriginFunc {
	return func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		return repo.Range(ctx, blob, off, n)
	}
}
