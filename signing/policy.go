package signing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
)

const (
	// maxManifest bounds every image, model and index manifest that Admit reads, in bytes.
	maxManifest = 4 << 20

	// maxBundle bounds a signature's manifest and its bundle, in bytes each.
	maxBundle = 256 << 10

	// Anyone who may push to a repository may attach junk: no more than the
	// newest of these are tried, and an admission takes at most
	// maxSignatures*2 + maxIndexes*(1+maxSignatures*2) fetches of referrers.
	maxSignatures = 32
	maxIndexes    = 8
)

// A Policy says whose signature makes a manifest trusted. The zero Policy, and
// a nil one, admits nothing. A Policy is safe for concurrent use, and not to be
// changed once it is in use; Replace does that.
type Policy struct {
	// Verifiers are the accepted identities, whatever the reference: the signature
	// of one of them is enough.
	Verifiers []Verifier

	// Rules are for some repositories each, in place of Verifiers: of those that
	// name a reference's repository the first one counts, and where none does the
	// reference is refused. A policy that has both admits nothing.
	Rules []Rule

	// Decided, when not nil, is told of each decision of Admit, by its goroutine: err
	// is nil, or a *DeniedError. The chain is not to be changed or kept. That of a
	// policy that is replaced stays.
	Decided func(ctx context.Context, chain *Chain, err error)

	in                atomic.Pointer[Policy] // what is in its place
	generation        atomic.Uint64
	admitted, refused atomic.Int64
}

// Decisions returns how often Admit has admitted something, and refused it.
func (p *Policy) Decisions() (admitted, refused int64) { return p.admitted.Load(), p.refused.Load() }

// Replace puts another policy in the place of p: what p is asked from now on that
// one answers. It is safe beside Admit.
func (p *Policy) Replace(by *Policy) {
	p.in.Store(by)
	p.generation.Add(1)
}

// Generation tells how often p was replaced. What was admitted in an earlier
// generation is not known to be admitted now.
func (p *Policy) Generation() uint64 {
	if p == nil {
		return 0
	}
	return p.generation.Load()
}

// Admit decides whether reference, a tag, a digest or a full name as
// repo.Resolve takes it, may be used; a policy with rules takes full names only. It
// fetches the manifest and looks for a signature over its digest by an accepted
// identity, and for the attestations that its rule asks for; then it looks for the
// newest index of the manifest that is signed in the same way. Without such
// an index the reference is admitted all the same, and Trusted.Index says so.
//
// The Chain records each step. It is never nil and holds the steps so far
// when Admit fails; it is the caller's.
//
// Errors:
//   - a *DeniedError, which is piece.ErrNotTrusted: the policy refuses
//   - errdef.ErrNotFound: the registry does not know the reference
//   - a *piece.WrongBytesError: the registry sent another manifest than it named
//   - the context's error, when ctx ends
//   - anything else: the registry failed, and whether the reference can be
//     trusted is not known
//
// Everything that the registry says is checked in bytes that a digest names;
// how much is read, and how many signatures and indexes are tried, is bounded.
func (p *Policy) Admit(ctx context.Context, repo Repository, reference string) (Trusted, *Chain, error) {
	trusted, chain, err := p.admit(ctx, repo, reference)
	_, refused := errors.AsType[*DeniedError](err)
	switch {
	case p == nil || err != nil && !refused:
		return trusted, chain, err
	case refused:
		p.refused.Add(1)
	default:
		p.admitted.Add(1)
	}
	if p.Decided != nil {
		p.Decided(ctx, chain, err)
	}
	return trusted, chain, err
}

func (p *Policy) admit(ctx context.Context, repo Repository, reference string) (Trusted, *Chain, error) {
	chain := &Chain{Reference: reference, Steps: []*Step{}}
	rule, err := p.ruleOf(reference)
	if err != nil {
		return Trusted{}, chain, err
	}
	chain.Rule = rule.Name
	desc, err := resolve(ctx, repo, reference)
	if err != nil {
		return Trusted{}, chain, err
	}
	// A start storm's first seconds are requests that wait for one another
	// behind the registry's busy link, so what can be asked at once is.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		looking  sync.WaitGroup
		index    Document
		indexes  []*Step
		indexErr error
	)
	looking.Go(func() { index, indexes, indexErr = rule.newestTrusted(ctx, repo, desc, oci.ArtifactTypeIndex, "index") })
	manifest, err := rule.manifest(ctx, repo, chain, desc)
	if err != nil {
		cancel()
		looking.Wait()
		return Trusted{}, chain, err
	}
	looking.Wait()
	chain.Steps = append(chain.Steps, indexes...)
	if indexErr != nil {
		return Trusted{}, chain, fmt.Errorf("admit %s: look for its index: %w", reference, indexErr)
	}
	chain.Admitted = true
	return Trusted{reference: reference, manifest: manifest, index: index}, chain, nil
}

func resolve(ctx context.Context, repo Repository, reference string) (ocispec.Descriptor, error) {
	d, err := repo.Resolve(ctx, reference)
	switch {
	case errors.Is(err, errdef.ErrNotFound):
		return d, fmt.Errorf("admit %s: the registry has no such manifest: %w", reference, err)
	case err != nil:
		return d, fmt.Errorf("admit %s: resolve it: %w", reference, err)
	}
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, nil
}

// manifest returns the manifest that desc describes, when it is signed.
func (r *Rule) manifest(ctx context.Context, repo Repository, chain *Chain, desc ocispec.Descriptor) (Document, error) {
	reference := chain.Reference
	step := &Step{What: "manifest", Digest: desc.Digest}
	chain.Steps = append(chain.Steps, step)
	deny := func(err error, hint string) error {
		step.refuse(err)
		var refused refusal
		if !errors.As(err, &refused) {
			return fmt.Errorf("admit %s (%s): %w", reference, desc.Digest, err)
		}
		return &DeniedError{Reference: reference, Digest: desc.Digest, Rule: r.asks(), Missing: step.Why, Next: hint}
	}
	var (
		looking sync.WaitGroup
		signErr error
	)
	looking.Go(func() { signErr = signed(ctx, repo, desc, r.Signers, step) })
	doc, err := fetchManifest(ctx, repo, reference, desc)
	looking.Wait()
	if err != nil {
		return Document{}, deny(err, "check the registry, and how the reference was pushed")
	}
	if err := signErr; err != nil {
		return Document{}, deny(err, fmt.Sprintf("sign it with `cosign sign --key cosign.key REPOSITORY@%s`, "+
			"or name the signer's public key: --key cosign.pub", desc.Digest))
	}
	if err := r.attested(ctx, repo, desc, step); err != nil {
		return Document{}, deny(err, fmt.Sprintf("attach it with `cosign attest --key cosign.key --predicate FILE --type TYPE REPOSITORY@%s`, or `spate attest`", desc.Digest))
	}
	return doc, nil
}

// fetchManifest fetches what reference was resolved to and checks that it is
// that, and that no two readers can take it for two things.
func fetchManifest(ctx context.Context, repo Repository, reference string, desc ocispec.Descriptor) (Document, error) {
	if want := reference[strings.LastIndex(reference, "@")+1:]; digest.Digest(want).Validate() == nil && want != desc.Digest.String() {
		return Document{}, refusalf("the registry resolves this digest to another, %s", desc.Digest)
	}
	b, err := fetch(ctx, repo, desc, maxManifest)
	if err != nil {
		return Document{}, fmt.Errorf("fetch the manifest: %w", err)
	}
	var m struct {
		MediaType string          `json:"mediaType"`
		Config    json.RawMessage `json:"config"`
		Layers    json.RawMessage `json:"layers"`
		Manifests json.RawMessage `json:"manifests"`
	}
	switch err := json.Unmarshal(b, &m); {
	case err != nil:
		return Document{}, refusalf("the manifest is not one: %v", err)
	case m.MediaType != "" && m.MediaType != desc.MediaType:
		return Document{}, refusalf("the registry calls the manifest %q, itself says %q", desc.MediaType, m.MediaType)
	case m.Manifests != nil && (m.Config != nil || m.Layers != nil):
		return Document{}, refusalf("the manifest is an image and a list of images at once")
	}
	return Document{Descriptor: desc, Bytes: b}, nil
}

// signed returns nil when a referrer of subject is the signature of one of who over
// it, and a refusal when none is. Each one tried is a step below step.
func signed(ctx context.Context, repo Repository, subject ocispec.Descriptor, who []Verifier, step *Step) error {
	signedDigest, err := piece.ParseDigest(subject.Digest.String())
	if err != nil {
		return refusalf("%v", err)
	}
	found, more, err := newest(ctx, repo, subject, oci.ArtifactTypeBundle, maxSignatures)
	if err != nil {
		return fmt.Errorf("list signatures: %w", err)
	}
	var failed error // the first failure that says nothing about the signature
	for _, desc := range found {
		s := step.add("signature", desc.Digest)
		bundle, err := fetchBundle(ctx, repo, desc, subject, maxBundle)
		if err != nil {
			s.refuse(err)
			if failed == nil && !isRefusal(err) {
				failed = err
			}
			continue
		}
		if s.SignedBy, err = verify(ctx, who, bundle, signedDigest); err == nil {
			s.OK, step.OK = true, true
			return nil
		}
		s.refuse(err)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case failed != nil:
		return failed
	case len(found) == 0 && more:
		return refusalf("no signature is among the first %d of its referrers, and others were not looked at", maxListed)
	case len(found) == 0:
		return refusalf("no signature is attached to it")
	case more:
		return refusalf("none of the newest %d signatures attached to it is accepted, and others were not tried: %s", len(found), step.Steps[0].Why)
	case len(found) == 1:
		return refusalf("the one signature attached to it is not accepted: %s", step.Steps[0].Why)
	}
	return refusalf("none of the %d signatures attached to it is accepted: %s", len(found), step.Steps[0].Why)
}

// verify returns the first of who that signed subject with bundle.
func verify(ctx context.Context, who []Verifier, bundle []byte, subject piece.Digest) (string, error) {
	var why []string
	for _, v := range who {
		err := v.Verify(ctx, bundle, subject)
		switch {
		case err == nil:
			return v.Identity(), nil
		case len(who) == 1:
			why = append(why, err.Error())
		default:
			why = append(why, fmt.Sprintf("not by %s: %v", v.Identity(), err))
		}
	}
	return "", refusalf("%s", strings.Join(why, "; "))
}

// Trace returns the manifest of the newest trace of an admitted manifest that
// the policy trusts as it does an index, and the steps to it, of which those
// that have a digest and are not OK are traces that do not count. It is the zero
// Document when there is none; an error means that this is not known.
func (p *Policy) Trace(ctx context.Context, repo Repository, subject Trusted) (Document, []*Step, error) {
	if !subject.Valid() {
		return Document{}, nil, fmt.Errorf("look for a trace: %w", piece.ErrNotTrusted)
	}
	rule, err := p.ruleOf(subject.reference)
	if err != nil {
		return Document{}, nil, err
	}
	return rule.newestTrusted(ctx, repo, subject.manifest.Descriptor, oci.ArtifactTypeTrace, "trace")
}

// newestTrusted returns the newest referrer of subject of that type that the rule
// trusts, and the steps to it. It is the zero Document when there is none; an
// error means that this is not known.
func (r *Rule) newestTrusted(ctx context.Context, repo Repository, subject ocispec.Descriptor, artifactType, what string) (_ Document, steps []*Step, _ error) {
	found, more, err := newest(ctx, repo, subject, artifactType, maxIndexes)
	if err != nil {
		return Document{}, nil, err
	}
	none := func(why string) {
		s := &Step{What: what}
		s.refuse(errors.New(why))
		steps = append(steps, s)
	}
	if len(found) == 0 {
		none("none is attached")
	}
	for _, desc := range found {
		step := &Step{What: what, Digest: desc.Digest}
		steps = append(steps, step)
		var (
			looking sync.WaitGroup
			signErr error
		)
		looking.Go(func() { signErr = signed(ctx, repo, desc, r.indexers(), step) })
		b, _, err := fetchReferrer(ctx, repo, desc, subject, artifactType, maxManifest)
		looking.Wait()
		if err == nil {
			err = signErr
		}
		if err == nil {
			return Document{Descriptor: desc, Bytes: b}, steps, nil
		}
		step.refuse(err)
		if !isRefusal(err) {
			return Document{}, steps, err
		}
	}
	if more {
		none("others were not tried")
	}
	return Document{}, steps, nil
}
