package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/cache"
	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/model"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/prefetch"
)

// readAhead is how far a reader of what is fetched lazily is kept ahead of, in
// bytes, once it reads on and on.
const readAhead = 8 << 20

// An artifact is an admitted reference whose objects are open in the cache and in the mesh.
type artifact struct {
	reference string
	digest    string // of the manifest
	files     []file
	users     int  // mounts, pulls, orders; guarded by Agent.mu
	fills     int  // of them, those that want all of it; guarded by Agent.mu
	planned   bool // what was planned of it has come, and is kept; guarded by Agent.mu
	lingers   bool // its objects do, as nobody uses it; guarded by Agent.mu

	recorder *prefetch.Recorder // of reads through mounts
	open     context.Context    // ends when the objects are closed
	shut     context.CancelFunc
	replays  bool // its trace is looked for, or was; guarded by Agent.mu
}

// A need is what an artifact is used for. The zero need is to read it.
type need struct {
	all      bool // all of it is fetched in the background
	priority int  // of that, as p2p.JoinOptions has it
	plan     bool // nobody reads it, what is planned is fetched by other means
}

// A file is one file of an artifact.
type file struct {
	model.File
	object  *cache.Object
	evicted bool // the cache has closed object; guarded by Agent.mu
}

// gone reports whether the cache has evicted f's object.
func (f file) gone() bool { return errors.Is(f.object.Err(), cache.ErrEvicted) }

// whole returns when every piece of f is here.
func (f file) whole(ctx context.Context) error {
	for i := range f.object.Tree().Object().Pieces() {
		if err := f.object.Wait(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// open admits reference and brings its objects into the mesh. Each open is matched by one release.
func (a *Agent) open(ctx context.Context, reference string, n need) (*artifact, error) {
	admission, err := a.admit(ctx, reference, online)
	if err != nil {
		return nil, err
	}
	if len(admission.Layers) > 0 {
		return nil, ui.WithHint(fmt.Errorf("open %s: it is a container image, which has layers and no files", reference),
			"have containerd pull it, with the agent as its snapshotter")
	}
	return a.use(admission, n)
}

// use brings the objects of what was admitted into the mesh. Each use is matched by one release with the same need.
func (a *Agent) use(admission *Admission, n need) (_ *artifact, err error) {
	reference := admission.Trusted.Reference()
	a.mu.Lock()
	defer a.mu.Unlock()
	key := admission.Trusted.Manifest().Descriptor.Digest.String()
	art := a.artifacts[key]
	if art != nil && art.users == 0 && !art.resume() {
		// Opened anew it is fetched again, or right once its quarantine was cleared away.
		a.drop(art)
		art = nil
	}
	if art == nil {
		if art, err = a.openAll(admission); err != nil {
			return nil, fmt.Errorf("open %s: %w", reference, err)
		}
		a.artifacts[key] = art
	}
	art.users++
	if n.all {
		art.fills++
	}
	if err = art.err(); err == nil && !a.spawn(func(ctx context.Context) { a.fetch(ctx, art, n) }) {
		err = errEnding
	}
	// Where all of it comes anyway a trace has nothing to say.
	if err == nil && !n.all && !n.plan && !art.replays {
		art.replays = a.spawn(func(ctx context.Context) { a.replay(ctx, art, admission) })
	}
	if err != nil {
		a.unuse(art, n)
		return nil, fmt.Errorf("open %s: %w", reference, err)
	}
	return art, nil
}

// openAll opens the objects of all files. The caller holds a.mu.
func (a *Agent) openAll(admission *Admission) (*artifact, error) {
	art := &artifact{
		reference: admission.Trusted.Reference(),
		digest:    admission.Trusted.Manifest().Descriptor.Digest.String(),
		recorder:  prefetch.NewRecorder(tracing),
	}
	art.open, art.shut = context.WithCancel(context.Background())
	for _, f := range admission.objects() {
		o, err := a.openObject(admission, f)
		if err != nil {
			a.close(art)
			return nil, fmt.Errorf("%s: %w", f.Path, err)
		}
		art.files = append(art.files, file{File: f, object: o})
	}
	return art, nil
}

// objects returns the files of a model, or the objects of an image's layers as
// files, each once, named by their digests.
func (a *Admission) objects() []model.File {
	files, seen := slices.Clip(a.Files), make(map[piece.Digest]bool)
	for _, l := range a.Layers {
		if !seen[l.DiffID] {
			files = append(files, model.File{Path: l.DiffID.Hex(), Mode: 0o444, Descriptor: l.Object})
		}
		seen[l.DiffID] = true
	}
	return files
}

// pieces returns the objects of what was admitted, each of a file or a layer.
func (a *Admission) pieces() ([]piece.Object, error) {
	var objects []piece.Object
	for _, f := range a.objects() {
		tree, err := treeOf(a.Index, f)
		if err != nil {
			return nil, fmt.Errorf("open %s: %s: %w", a.Trusted.Reference(), f.Path, err)
		}
		objects = append(objects, tree.Object())
	}
	return objects, nil
}

func digestsOf(objects []piece.Object) []piece.Digest {
	digests := make([]piece.Digest, len(objects))
	for i, o := range objects {
		digests[i] = o.Digest
	}
	return digests
}

// object returns the object of that digest, which art has.
func (art *artifact) object(d piece.Digest) *cache.Object {
	for _, f := range art.files {
		if f.object.Tree().Object().Digest == d {
			return f.object
		}
	}
	return nil
}

// fetch hashes again what an earlier process left of the artifact, so that it
// is shared and not fetched anew, and has the rest fetched where it is needed, file after file.
func (a *Agent) fetch(ctx context.Context, art *artifact, n need) {
	for _, f := range art.files {
		if err := f.object.Recheck(ctx); err != nil {
			if ctx.Err() == nil && !errors.Is(err, fs.ErrClosed) {
				a.log.Error("check what the cache holds", "object", f.object.Tree().Object().Digest, "err", err)
			}
			return
		}
		if err := a.join(art, f.object, n); err != nil {
			a.log.Error("share and fill", "reference", art.reference, "file", f.Path, "err", err)
		}
	}
}

// join has the mesh share an object, and fetch it while it is needed, unless it
// was closed meanwhile and has left.
func (a *Agent) join(art *artifact, o *cache.Object, n need) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if o.Err() != nil {
		return nil
	}
	fill := n.all && art.fills > 0
	if fill {
		o.ReadAhead(0) // all of it comes
	}
	return a.mesh.Join(o, p2p.JoinOptions{Fill: fill, Priority: n.priority})
}

// release ends one use of art. Once nobody needs all of it, it is no longer
// fetched. Once nobody uses it, what is complete, or has what was planned of it,
// stays open and is shared until the cache needs its room; other is closed.
func (a *Agent) release(art *artifact, n need) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.unuse(art, n)
}

// unuse is release. The caller holds a.mu.
func (a *Agent) unuse(art *artifact, n need) {
	if n.all {
		if art.fills--; art.fills == 0 {
			a.unfill(art)
		}
	}
	if art.users--; art.users > 0 {
		return
	}
	if !art.complete() && !art.planned {
		a.drop(art)
		return
	}
	art.lingers = true
	for _, f := range art.files {
		f.object.Linger()
	}
}

// unfill ends the fetching of art's objects but for what is read, where no other
// artifact that has them needs all of them. The caller holds a.mu.
func (a *Agent) unfill(art *artifact) {
	for _, f := range art.files {
		if d := f.object.Tree().Object().Digest; !a.filled(d) {
			a.mesh.Unfill(d)
			f.object.ReadAhead(readAhead)
		}
	}
}

// filled reports whether an artifact that has the object needs all of it. The caller holds a.mu.
func (a *Agent) filled(d piece.Digest) bool {
	for _, art := range a.artifacts {
		if art.fills > 0 && art.object(d) != nil {
			return true
		}
	}
	return false
}

// keepAhead has readers of what is fetched lazily kept ahead of by limit bytes.
func (a *Agent) keepAhead(art *artifact, limit int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range art.files {
		if !a.filled(f.object.Tree().Object().Digest) {
			f.object.ReadAhead(limit)
		}
	}
}

// resume begins a use of each object of an artifact that nobody uses, and
// reports whether all of them can be read. The caller holds Agent.mu.
func (art *artifact) resume() bool {
	if art.lingers {
		art.lingers = false
		for i, f := range art.files {
			art.files[i].evicted = !f.object.Reopen()
		}
	}
	return art.err() == nil
}

// dropEvicted drops what the cache has evicted objects of. The caller holds a.mu.
func (a *Agent) dropEvicted() {
	for _, art := range a.artifacts {
		if art.users == 0 && slices.ContainsFunc(art.files, file.gone) {
			a.drop(art)
		}
	}
	for _, b := range a.hints.blobs {
		if b.users == 0 && errors.Is(b.object.Err(), cache.ErrEvicted) {
			a.hints.leave(b)
		}
	}
}

// sweep takes what was evicted out of the mesh, until ctx ends. It returns nil.
func (a *Agent) sweep(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.evicted:
			a.mu.Lock()
			a.dropEvicted()
			a.mu.Unlock()
		}
	}
}

// discard removes an artifact that nobody uses any more, and what the cache has
// of its objects but those that are pinned.
func (a *Agent) discard(art *artifact) (err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if art.users > 0 {
		return nil
	}
	if a.artifacts[art.digest] == art {
		a.drop(art)
	}
	for _, f := range art.files {
		if d := f.object.Tree().Object().Digest; a.objects[d] == 0 && len(a.store.Pins(d)) == 0 {
			err = errors.Join(err, a.store.Remove(d))
		}
	}
	return err
}

// drop forgets art and closes its objects. The caller holds a.mu.
func (a *Agent) drop(art *artifact) {
	delete(a.artifacts, art.digest)
	art.resume()
	a.close(art)
}

// close closes art's objects. The caller holds a.mu.
func (a *Agent) close(art *artifact) {
	art.shut()
	for _, f := range art.files {
		a.closeObject(f.object, !f.evicted)
	}
}

// closeObject ends one of the uses of an object that a.objects counts; with the
// last one it leaves the mesh. open is false when the cache has closed it itself.
// The caller holds a.mu.
func (a *Agent) closeObject(o *cache.Object, open bool) {
	d := o.Tree().Object().Digest
	if a.objects[d]--; a.objects[d] == 0 {
		delete(a.objects, d)
		a.mesh.Leave(d)
	}
	if open {
		o.Close()
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

// err returns why one of art's objects refuses to be read.
func (art *artifact) err() error {
	for _, f := range art.files {
		if err := f.object.Err(); err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return nil
}

// openObject opens the object of one file and joins its swarm, without
// fetching anything yet. The caller holds a.mu.
func (a *Agent) openObject(admission *Admission, f model.File) (*cache.Object, error) {
	tree, err := treeOf(admission.Index, f)
	if err != nil {
		return nil, err
	}
	a.hints.yield(tree)
	o, err := a.store.Open(tree, a.mesh)
	if err != nil {
		return nil, err
	}
	a.dropEvicted() // this object, as it was before, must not be in the mesh
	if err := a.mesh.Join(o, p2p.JoinOptions{Origin: origin(admission.repo, f.Descriptor)}); err != nil {
		o.Close()
		return nil, err
	}
	o.ReadAhead(readAhead)
	a.objects[tree.Object().Digest]++
	return o, nil
}

// origin reads ranges of a blob from the registry.
func origin(repo *remote.Repository, blob ocispec.Descriptor) p2p.OriginFunc {
	return func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		return repo.Range(ctx, blob, off, n)
	}
}
