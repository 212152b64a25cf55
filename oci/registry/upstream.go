package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"
	"oras.land/oras-go/v2/errdef"
)

// An Upstream is a registry that this one follows: what a repository below
// Prefix lacks here is taken from there, kept, and served from then on.
type Upstream struct {
	Prefix string // of repository names here, such as "hub/"; empty is all of them

	// Open returns the repository there; name is that here without Prefix. It sends nothing.
	Open func(name string) (UpstreamRepository, error)
}

// An UpstreamRepository is what is read of a repository that is followed; a
// *remote.Repository is one. What it lacks is errdef.ErrNotFound. Readers of
// FetchReference fail at the end of wrong bytes; those of Range need not.
type UpstreamRepository interface {
	Resolve(ctx context.Context, tag string) (ocispec.Descriptor, error)
	FetchReference(ctx context.Context, reference string) (ocispec.Descriptor, io.ReadCloser, error)
	Referrers(ctx context.Context, subject ocispec.Descriptor, artifactType string, fn func([]ocispec.Descriptor) error) error
	ResolveBlob(ctx context.Context, d digest.Digest) (ocispec.Descriptor, error)
	Range(ctx context.Context, blob ocispec.Descriptor, off, n int64) (io.ReadCloser, error)
}

const (
	upstreamTimeout = 30 * time.Second // what a client waits for manifests and lists of an upstream, at most
	upstreamHurry   = 5 * time.Second  // the same where there is an answer here already
	upstreamRest    = 30 * time.Second // how long one that failed is not asked for what there is an answer to here
	upstreamFills   = 8                // blobs taken from upstreams at once; more wait for their turn
	upstreamLists   = 4096             // lists of referrers of which it is known when they were asked for
)

// A source is an upstream and how it did lately.
type source struct {
	Upstream

	mu     sync.Mutex
	failed time.Time            // zero while it answers
	lists  map[string]time.Time // when referrers were asked for, by repository and digest
}

// did notes how an upstream answered, and returns err.
func (s *source) did(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil || errors.Is(err, errdef.ErrNotFound):
		s.failed = time.Time{}
	case !errors.Is(err, context.Canceled):
		s.failed = time.Now()
	}
	return err
}

func (s *source) rests() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.failed) < upstreamRest
}

// listed returns when referrers were asked for; zero is never, as far as it is known.
func (s *source) listed(key string) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lists[key]
}

func (s *source) list(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lists) >= upstreamLists {
		clear(s.lists)
	}
	s.lists[key] = time.Now()
}

// A follower brings what is missing here. What it does outlives the request
// that asked for it and ends with close. A nil follower follows nothing.
type follower struct {
	store     *Store
	opts      Options
	upstreams []*source // the longest prefix first

	ctx    context.Context
	cancel context.CancelFunc
	once   singleflight.Group // manifests and lists by what they are
	slots  chan struct{}
	busy   sync.WaitGroup

	mu    sync.Mutex
	fills map[string]*blobFill // by repository and digest
}

func newFollower(store *Store, opts Options) *follower {
	if len(opts.Upstreams) == 0 {
		return nil
	}
	f := &follower{store: store, opts: opts, slots: make(chan struct{}, upstreamFills), fills: map[string]*blobFill{}}
	for _, u := range opts.Upstreams {
		f.upstreams = append(f.upstreams, &source{Upstream: u, lists: map[string]time.Time{}})
	}
	slices.SortStableFunc(f.upstreams, func(a, b *source) int { return len(b.Prefix) - len(a.Prefix) })
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// close ends what is under way and waits for it.
func (f *follower) close() {
	if f == nil {
		return
	}
	f.cancel()
	f.busy.Wait()
}

// repository returns where repo is followed, nil when it is not.
func (f *follower) repository(repo string) (UpstreamRepository, *source, error) {
	if f == nil {
		return nil, nil, nil
	}
	for _, u := range f.upstreams {
		if name, ok := strings.CutPrefix(repo, u.Prefix); ok && name != "" {
			from, err := u.Open(name)
			return from, u, err
		}
	}
	return nil, nil, nil
}

// do runs fn once for all that ask for the same key meanwhile, and waits for it
// as long as ctx. What the upstream lacks is no error: the store then answers.
func (f *follower) do(ctx context.Context, key string, timeout time.Duration, fn func(context.Context) error) error {
	done := make(chan error, 1)
	f.busy.Go(func() {
		_, err, _ := f.once.Do(key, func() (any, error) {
			ctx, cancel := context.WithTimeout(f.ctx, timeout)
			defer cancel()
			return nil, fn(ctx)
		})
		done <- err
	})
	select {
	case err := <-done:
		if err == nil || errors.Is(err, errdef.ErrNotFound) {
			return nil
		}
		return upstreamFailed(err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func upstreamFailed(err error) error {
	return fail(http.StatusBadGateway, codeUnknown, fmt.Errorf("follow the upstream registry: %w", err))
}

// manifest sees to it that the manifest rt names is here, if the upstream has
// it. A digest that is here needs no upstream.
func (f *follower) manifest(ctx context.Context, rt route) error {
	from, u, err := f.repository(rt.name)
	if from == nil {
		return err
	}
	if rt.tag != "" {
		return f.tag(ctx, from, u, rt.name, rt.tag)
	}
	if f.store.holds(rt.name, rt.digest) == nil {
		return nil
	}
	return f.do(ctx, rt.name+"@"+rt.digest.String(), upstreamTimeout, func(ctx context.Context) error {
		return u.did(f.admit(ctx, from, rt.name, rt.digest))
	})
}

// tag asks the upstream what a tag names, when that was not asked within
// UpstreamFresh. While the upstream fails, what it said last counts for
// UpstreamStale. A tag that was pushed here is not the upstream's and stays.
func (f *follower) tag(ctx context.Context, from UpstreamRepository, u *source, repo, tag string) error {
	here, err := f.store.Resolve(repo, tag)
	if err != nil && !errors.Is(err, ErrManifestUnknown) {
		return err
	}
	followed, age := f.store.followed(repo, tag)
	if here != "" && (here != followed || age < f.opts.UpstreamFresh) {
		return nil
	}
	counts, timeout := here != "" && age < f.opts.UpstreamStale, upstreamTimeout
	if counts {
		if u.rests() {
			return nil
		}
		timeout = upstreamHurry
	}
	err = f.do(ctx, repo+":"+tag, timeout, func(ctx context.Context) error {
		desc, err := from.Resolve(ctx, tag)
		if u.did(err); errors.Is(err, errdef.ErrNotFound) && here != "" {
			return f.store.DeleteTag(repo, tag)
		}
		if err != nil {
			return err
		}
		if err := u.did(f.admit(ctx, from, repo, desc.Digest)); err != nil {
			return err
		}
		return f.store.follow(repo, tag, desc.Digest)
	})
	if err != nil && counts && ctx.Err() == nil {
		f.opts.Logger.Warn("the upstream registry fails; the tag is served as it was", "repository", repo, "tag", tag, "age", age, "error", err)
		return nil
	}
	return err
}

// admit takes the manifest d, unless it is here.
func (f *follower) admit(ctx context.Context, from UpstreamRepository, repo string, d digest.Digest) error {
	if f.store.holds(repo, d) == nil {
		return nil
	}
	_, body, err := from.FetchReference(ctx, d.String())
	if err != nil {
		return err
	}
	defer body.Close()
	raw, err := io.ReadAll(io.LimitReader(body, f.opts.MaxManifestBytes+1))
	if err != nil {
		return err
	}
	if int64(len(raw)) > f.opts.MaxManifestBytes {
		return fmt.Errorf("take manifest %s of %s: it has more than %d bytes, which is the limit here", d, repo, f.opts.MaxManifestBytes)
	}
	m, err := ParseManifest(raw, d.Algorithm())
	if err == nil && m.Descriptor.Digest != d {
		err = &DigestError{Want: d, Got: m.Descriptor.Digest}
	}
	if err != nil {
		return fmt.Errorf("take manifest %s of %s: %w", d, repo, err)
	}
	return f.store.admitManifest(repo, m)
}

// referrers brings the upstream's referrers of rt's digest beside those that
// are here, unless it was asked for them within UpstreamFresh. While the upstream
// fails, the ones here are all there are.
func (f *follower) referrers(ctx context.Context, rt route) error {
	from, u, err := f.repository(rt.name)
	if from == nil {
		return err
	}
	key := rt.name + "<" + rt.digest.String()
	asked, timeout := u.listed(key), upstreamTimeout
	if u.rests() || time.Since(asked) < f.opts.UpstreamFresh {
		return nil
	}
	if !asked.IsZero() {
		timeout = upstreamHurry
	}
	err = f.do(ctx, key, timeout, func(ctx context.Context) error {
		subject := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: rt.digest}
		err := u.did(from.Referrers(ctx, subject, "", func(page []ocispec.Descriptor) error {
			for _, d := range page {
				if err := f.admit(ctx, from, rt.name, d.Digest); err != nil {
					return err
				}
			}
			return nil
		}))
		if err == nil {
			u.list(key)
		}
		return err
	})
	if err != nil && ctx.Err() == nil {
		f.opts.Logger.Warn("the upstream registry fails; the referrers here are served alone", "repository", rt.name, "digest", rt.digest, "error", err)
	}
	return nil
}

func followedPath(repo, tag string) string { return path.Join(repository(repo, "_followed"), tag) }

// followed returns what an upstream last said that a tag names, and how long ago; nothing when it never did.
func (s *Store) followed(repo, tag string) (digest.Digest, time.Duration) {
	b, err := s.root.ReadFile(followedPath(repo, tag))
	if err != nil {
		return "", 0
	}
	fi, err := s.root.Stat(followedPath(repo, tag))
	if err != nil {
		return "", 0
	}
	return digest.Digest(b), time.Since(fi.ModTime())
}

// follow lets a tag name what an upstream says. The tag is taken away first where
// it named something else, so that, killed between two steps, it is asked for
// again and never taken for one that was pushed here.
func (s *Store) follow(repo, tag string, d digest.Digest) error {
	s.names.Lock()
	defer s.names.Unlock()
	here, err := s.Resolve(repo, tag)
	if err == nil && here != d {
		err = s.remove(tagPath(repo, tag))
	}
	if err == nil || errors.Is(err, ErrManifestUnknown) {
		err = s.write(followedPath(repo, tag), []byte(d))
	}
	if err == nil && here != d {
		err = s.write(tagPath(repo, tag), []byte(d))
	}
	if err != nil {
		return fmt.Errorf("follow tag %s of %s: %w", tag, repo, err)
	}
	s.needed(repo, d)
	return nil
}

// admitManifest is PutManifest for what an upstream has: its blobs may come later.
func (s *Store) admitManifest(repo string, m *Manifest) error {
	s.names.Lock()
	defer s.names.Unlock()
	if err := s.record(repo, m); err != nil {
		return fmt.Errorf("store manifest %s in %s: %w", m.Descriptor.Digest, repo, err)
	}
	return nil
}
