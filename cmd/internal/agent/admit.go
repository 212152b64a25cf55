package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"time"

	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci/image"
	"github.com/spate-project/spate/oci/index"
	"github.com/spate-project/spate/oci/model"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/signing"
)

// An Admission is what an agent may show of a reference: files or layers whose
// every piece a trusted signature reaches.
type Admission struct {
	Trusted signing.Trusted
	Index   *index.Index
	Files   []model.File    // of a model
	Layers  []image.Indexed // of an image, lowest first

	repo *remote.Repository
}

// Admit checks a reference as far as an agent needs it before it fetches
// anything: the policy admits the manifest and an index of it, the index is
// about that manifest and proves every file or layer. Of an image index it
// admits the image for this machine's platform too, which then is the one that
// Trusted is about. Refusals are piece.ErrNotTrusted. The chain is never nil.
func Admit(ctx context.Context, policy *signing.Policy, opts remote.Options, reference string) (*Admission, *signing.Chain, error) {
	repo, err := remote.Open(reference, opts)
	if err != nil {
		return nil, &signing.Chain{Reference: reference, Steps: []*signing.Step{}}, err
	}
	return admit(ctx, policy, repo, repo, reference)
}

// admit is Admit with documents from elsewhere than repo, which the objects are read from.
func admit(ctx context.Context, policy *signing.Policy, documents signing.Repository, repo *remote.Repository, reference string) (*Admission, *signing.Chain, error) {
	trusted, chain, err := policy.Admit(ctx, documents, reference)
	if err == nil && image.IsIndex(trusted.Manifest().Descriptor.MediaType) {
		trusted, err = admitPlatform(ctx, policy, documents, repo.Reference, trusted, chain)
	}
	if err != nil {
		return nil, chain, err
	}
	a, err := readIndex(ctx, documents, trusted)
	if err != nil {
		return nil, chain, err
	}
	a.repo = repo
	return a, chain, nil
}

// errNotIndexed marks the refusal of what is trusted and has no trusted index.
var errNotIndexed = errors.New("not indexed")

type notIndexedError struct{ *signing.DeniedError }

func (notIndexedError) Is(target error) bool { return target == errNotIndexed }

// A source is where the documents come from that something is admitted by.
type source int

const (
	online    source = iota // the registry; the shelf where it is away and a digest says what is wanted
	fromShelf               // this node alone
)

// patience is how long a registry may take before what is kept here is looked at.
const patience = 10 * time.Second

// admit admits reference and keeps the documents that this took. Of what is
// named by its digest those kept here do where the registry cannot be asked
// (isAway), but its refusal counts.
func (a *Agent) admit(ctx context.Context, reference string, from source) (_ *Admission, err error) {
	ctx, ended := a.opts.Tracer.Start(ctx, "admit", slog.String("reference", reference))
	defer func() { ended(err) }()
	repo, err := a.repository(reference)
	if err != nil {
		return nil, err
	}
	if from == fromShelf {
		admission, _, err := admit(ctx, a.opts.Policy, a.shelf, repo, reference)
		return admission, err
	}
	ask := func(ctx context.Context) (*Admission, error) {
		documents := newKeeper(repo, a.shelf)
		admission, chain, err := admit(ctx, a.opts.Policy, documents, repo, reference)
		if err == nil {
			documents.keep(chain.Steps)
		}
		return admission, err
	}
	if _, err := a.shelf.Resolve(ctx, reference); err != nil {
		return ask(ctx)
	}
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	admission, err := ask(asking)
	if err == nil || ctx.Err() != nil || !isAway(err) {
		return admission, err
	}
	kept, _, keptErr := admit(ctx, a.opts.Policy, a.shelf, repo, reference)
	switch {
	case keptErr == nil:
		a.log.Warn("admitted by what is kept here: the registry cannot be asked", "reference", reference, "err", err)
		return kept, nil
	case asking.Err() != nil: // it may be slow and no more
		return ask(ctx)
	}
	return nil, err
}

// admitPlatform admits the image for this machine that list, an image index,
// has. Its steps come after that of list in chain.
func admitPlatform(ctx context.Context, policy *signing.Policy, repo signing.Repository, ref registry.Reference, list signing.Trusted, chain *signing.Chain) (signing.Trusted, error) {
	chain.Admitted = false
	images, err := image.Images(list.Manifest().Bytes)
	if err != nil {
		return signing.Trusted{}, fmt.Errorf("open %s: %w", list.Reference(), err)
	}
	desc, err := image.ForPlatform(images, runtime.GOOS, runtime.GOARCH)
	if err != nil {
		return signing.Trusted{}, fmt.Errorf("open %s: %w", list.Reference(), err)
	}
	ref.Reference = desc.Digest.String()
	trusted, below, err := policy.Admit(ctx, repo, ref.String())
	chain.Steps = append(chain.Steps[:1], below.Steps...) // an image index has no index of its own
	chain.Admitted = below.Admitted
	return trusted, err
}

// readIndex takes what is admitted apart.
func readIndex(ctx context.Context, repo content.Fetcher, trusted signing.Trusted) (*Admission, error) {
	if !trusted.Valid() {
		return nil, fmt.Errorf("read an index: %w", piece.ErrNotTrusted)
	}
	reference, manifest := trusted.Reference(), trusted.Manifest()
	isImage := image.Is(manifest.Bytes)
	next := "push it again with `spate push --sign-key`, or read it whole with `spate pull --direct`"
	if isImage {
		next = "attach one with `spate index --sign-key`"
	}
	denied := func(missing string) *signing.DeniedError {
		return &signing.DeniedError{
			Reference: reference, Digest: manifest.Descriptor.Digest,
			Rule:    "every piece must be proven by an index that a trusted key signed",
			Missing: missing,
			Next:    next,
		}
	}
	doc, ok := trusted.Index()
	if !ok {
		return nil, notIndexedError{denied("it has no such index")}
	}
	a := &Admission{Trusted: trusted}
	var (
		layers []image.Layer
		err    error
	)
	if isImage {
		layers, err = image.Layers(ctx, repo, manifest.Bytes)
	} else {
		a.Files, err = model.Files(manifest.Bytes)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", reference, err)
	}
	if a.Index, err = index.Load(ctx, repo, doc.Bytes); err != nil {
		return nil, fmt.Errorf("open %s: %w", reference, err)
	}
	if subject := a.Index.Subject().Digest; subject != manifest.Descriptor.Digest {
		return nil, denied("its index is about another manifest, " + subject.String())
	}
	if a.Layers, err = image.Find(layers, a.Index); err != nil {
		return nil, denied(err.Error())
	}
	for _, f := range a.Files {
		if f.Archive() {
			next = "push it again without --image-volume, or have containerd mount its tag as an image"
			return nil, denied(f.Path + " is an archive, and only files that are layers of their own can be proven piece by piece")
		}
		if _, err := treeOf(a.Index, f); err != nil {
			return nil, denied(fmt.Sprintf("%s: %v", f.Path, err))
		}
	}
	return a, nil
}

// treeOf returns the proof of a file's pieces.
func treeOf(idx *index.Index, f model.File) (*piece.Tree, error) {
	digest, err := piece.ParseDigest(f.Descriptor.Digest.String())
	if err != nil {
		return nil, err
	}
	tree, ok := idx.Tree(digest)
	if !ok {
		return nil, fmt.Errorf("the index does not list %s", digest)
	}
	return tree, nil
}
