package agent

import (
	"context"
	"fmt"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci/index"
	"github.com/spate-project/spate/oci/model"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/signing"
)

// An Admission is what an agent may show of a reference: files whose every
// piece a trusted signature reaches.
type Admission struct {
	Trusted signing.Trusted
	Index   *index.Index
	Files   []model.File

	repo *remote.Repository
}

// Admit checks a reference as far as an agent needs it before it fetches
// anything: the policy admits the manifest and an index of it, the index is
// about that manifest and proves every file. Refusals are piece.ErrNotTrusted.
// The chain is never nil.
func Admit(ctx context.Context, policy *signing.Policy, opts remote.Options, reference string) (*Admission, *signing.Chain, error) {
	repo, err := remote.Open(reference, opts)
	if err != nil {
		return nil, &signing.Chain{Reference: reference, Steps: []*signing.Step{}}, err
	}
	trusted, chain, err := policy.Admit(ctx, repo, reference)
	if err != nil {
		return nil, chain, err
	}
	a, err := readIndex(ctx, repo, trusted)
	return a, chain, err
}

// readIndex takes what is admitted apart.
func readIndex(ctx context.Context, repo *remote.Repository, trusted signing.Trusted) (*Admission, error) {
	if !trusted.Valid() {
		return nil, fmt.Errorf("read an index: %w", piece.ErrNotTrusted)
	}
	reference, manifest := trusted.Reference(), trusted.Manifest()
	denied := func(missing string) error {
		return &signing.DeniedError{
			Reference: reference, Digest: manifest.Descriptor.Digest,
			Rule:    "every piece must be proven by an index that a trusted key signed",
			Missing: missing,
			Next:    "push it again with `spate push --sign-key`, or read it whole with `spate pull --direct`",
		}
	}
	doc, ok := trusted.Index()
	if !ok {
		return nil, denied("it has no such index")
	}
	files, err := model.Files(manifest.Bytes)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", reference, err)
	}
	idx, err := index.Load(ctx, repo, doc.Bytes)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", reference, err)
	}
	if subject := idx.Subject().Digest; subject != manifest.Descriptor.Digest {
		return nil, denied("its index is about another manifest, " + subject.String())
	}
	for _, f := range files {
		if f.Archive() {
			return nil, denied(f.Path + " is an archive, and only files that are layers of their own can be proven piece by piece")
		}
		if _, err := treeOf(idx, f); err != nil {
			return nil, denied(fmt.Sprintf("%s: %v", f.Path, err))
		}
	}
	return &Admission{Trusted: trusted, Index: idx, Files: files, repo: repo}, nil
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
