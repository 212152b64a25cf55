package signing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

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
// a nil one, admits nothing. A Policy is safe for concurrent use.
type Policy struct {
	// Verifiers are the accepted identities: the signature of one of them is
	// enough. Not to be changed once the policy is in use.
	Verifiers []Verifier
}

// Admit decides whether reference, a tag, a digest or a full name as
// repo.Resolve takes it, may be used. It fetches the manifest and looks for a
// signature over its digest by an accepted identity; then it looks for the
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
	chain := &Chain{Reference: reference, Steps: []*Step{}}
	if p == nil || len(p.Verifiers) == 0 {
		return Trusted{}, chain, &DeniedError{
			Reference: reference,
			Rule:      "the policy accepts no identity",
			Missing:   "there is no public key to check a signature with",
			Next:      "name the signer's public key: --key cosign.pub",
		}
	}
	manifest, err := p.manifest(ctx, repo, chain)
	if err != nil {
		return Trusted{}, chain, err
	}
	index, err := p.index(ctx, repo, chain, manifest.Descriptor)
	if err != nil {
		return Trusted{}, chain, fmt.Errorf("admit %s: look for its index: %w", reference, err)
	}
	chain.Admitted = true
	return Trusted{reference: reference, manifest: manifest, index: index}, chain, nil
}

// manifest resolves the chain's reference and returns the manifest when it is signed.
func (p *Policy) manifest(ctx context.Context, repo Repository, chain *Chain) (Document, error) {
	reference := chain.Reference
	resolved, err := repo.Resolve(ctx, reference)
	switch {
	case errors.Is(err, errdef.ErrNotFound):
		return Document{}, fmt.Errorf("admit %s: the registry has no such manifest: %w", reference, err)
	case err != nil:
		return Document{}, fmt.Errorf("admit %s: resolve it: %w", reference, err)
	}
	desc := ocispec.Descriptor{MediaType: resolved.MediaType, Digest: resolved.Digest, Size: resolved.Size}
	step := chain.add("manifest", desc.Digest)
	deny := func(err error, hint string) error {
		step.refuse(err)
		var r refusal
		if !errors.As(err, &r) {
			return fmt.Errorf("admit %s (%s): %w", reference, desc.Digest, err)
		}
		return &DeniedError{Reference: reference, Digest: desc.Digest, Rule: p.rule(), Missing: step.Why, Next: hint}
	}
	doc, err := fetchManifest(ctx, repo, reference, desc)
	if err != nil {
		return Document{}, deny(err, "check the registry, and how the reference was pushed")
	}
	if err := p.signed(ctx, repo, desc, step); err != nil {
		return Document{}, deny(err, fmt.Sprintf("sign it with `cosign sign --key cosign.key REPOSITORY@%s`, "+
			"or name the signer's public key: --key cosign.pub", desc.Digest))
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

// signed returns nil when a referrer of subject is an accepted signature over
// it, and a refusal when none is. Each one tried is a step below step.
func (p *Policy) signed(ctx context.Context, repo Repository, subject ocispec.Descriptor, step *Step) error {
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
		bundle, err := fetchBundle(ctx, repo, desc, subject)
		if err != nil {
			s.refuse(err)
			if failed == nil && !isRefusal(err) {
				failed = err
			}
			continue
		}
		if s.SignedBy, err = p.verify(ctx, bundle, signedDigest); err == nil {
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

// verify returns the first accepted identity that signed subject with bundle.
func (p *Policy) verify(ctx context.Context, bundle []byte, subject piece.Digest) (string, error) {
	var why []string
	for _, v := range p.Verifiers {
		err := v.Verify(ctx, bundle, subject)
		switch {
		case err == nil:
			return v.Identity(), nil
		case len(p.Verifiers) == 1:
			why = append(why, err.Error())
		default:
			why = append(why, fmt.Sprintf("not by %s: %v", v.Identity(), err))
		}
	}
	return "", refusalf("%s", strings.Join(why, "; "))
}

// index returns the newest index of manifest that the policy trusts. It is the
// zero Document when there is none; an error means that this is not known.
func (p *Policy) index(ctx context.Context, repo Repository, chain *Chain, manifest ocispec.Descriptor) (Document, error) {
	found, more, err := newest(ctx, repo, manifest, oci.ArtifactTypeIndex, maxIndexes)
	if err != nil {
		return Document{}, err
	}
	if len(found) == 0 {
		chain.add("index", "").refuse(errors.New("none is attached"))
	}
	for _, desc := range found {
		step := chain.add("index", desc.Digest)
		b, _, err := fetchReferrer(ctx, repo, desc, manifest, oci.ArtifactTypeIndex, maxManifest)
		if err == nil {
			err = p.signed(ctx, repo, desc, step)
		}
		if err == nil {
			return Document{Descriptor: desc, Bytes: b}, nil
		}
		step.refuse(err)
		if !isRefusal(err) {
			return Document{}, err
		}
	}
	if more {
		chain.add("index", "").refuse(errors.New("others were not tried"))
	}
	return Document{}, nil
}

func (p *Policy) rule() string {
	names := make([]string, len(p.Verifiers))
	for i, v := range p.Verifiers {
		names[i] = v.Identity()
	}
	if len(names) == 1 {
		return "the policy asks for a signature by " + names[0]
	}
	return "the policy asks for a signature by one of: " + strings.Join(names, ", ")
}
