package warm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/signing"
)

const (
	// changeTries is how often a change is tried where others change the set too,
	// and changePause how long it is waited in between at most.
	changeTries = 10
	changePause = 200 * time.Millisecond
)

// A Target is where Change reads and writes sets. *remote.Repository is one.
type Target interface {
	signing.Repository
	signing.Target
	Tag(ctx context.Context, desc ocispec.Descriptor, reference string) error
}

// Change replaces the warm set of a pool by what edit makes of it, signed by
// signer, and returns that one. The set that is there has to be one that policy
// admits: what somebody else put there is not signed anew. Where edit leaves the
// entries as they are, nothing is written. Edit is called again, with the set of
// then, where another writer was faster; its error ends the change.
//
// The distribution-spec has no conditional write of a tag, so Change looks at the
// tag before it writes it and again afterwards: of writers at the same time the
// last one's set stays, and the others make their change once more on top of it.
// What no look excludes is a writer that waits between its look and its write
// while another one writes and looks: that one's change is lost, and no version
// names it.
func Change(ctx context.Context, target Target, policy *signing.Policy, signer signing.Signer, reference, pool string, edit func(*Set) error) (Signed, error) {
	if err := CheckPool(pool); err != nil {
		return Signed{}, err
	}
	for range changeTries {
		before, err := Read(ctx, policy, target, reference, pool)
		if errors.Is(err, errdef.ErrNotFound) {
			before, err = Signed{Set: Set{Pool: pool}}, nil
		}
		if err != nil {
			return Signed{}, err
		}
		after := before.Set
		if err := edit(&after); err != nil {
			return Signed{}, err
		}
		if slices.Equal(after.Entries, before.Entries) {
			return before, nil
		}
		after.Version++
		if err := replace(ctx, target, signer, before.Digest, after); err != nil {
			return Signed{}, fmt.Errorf("change the warm set of pool %s: %w", pool, err)
		}
		// What is there now has the change, or lost it to another writer's.
		select {
		case <-ctx.Done():
			return Signed{}, ctx.Err()
		case <-time.After(rand.N(changePause)):
		}
	}
	return Signed{}, fmt.Errorf("change the warm set of pool %s: others have changed it %d times meanwhile; try again", pool, changeTries)
}

// replace stores and signs set, and tags it if the tag still names before.
func replace(ctx context.Context, target Target, signer signing.Signer, before digest.Digest, set Set) error {
	desc, err := push(ctx, target, set, before)
	if err != nil {
		return err
	}
	if _, err := signing.Sign(ctx, target, signer, desc); err != nil {
		return err
	}
	now, err := target.Resolve(ctx, set.Pool)
	if err != nil && !errors.Is(err, errdef.ErrNotFound) {
		return err
	}
	if now.Digest != before {
		return nil
	}
	return target.Tag(ctx, desc, set.Pool)
}
