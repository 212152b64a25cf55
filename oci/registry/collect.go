package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// Collected is what a collection removed, or in a dry run would remove.
type Collected struct {
	Tags      int      `json:"tags"`      // by rules of retention
	Manifests int      `json:"manifests"` // in each repository that held them
	Blobs     int      `json:"blobs"`     // likewise
	Bytes     int64    `json:"bytes"`     // of blobs that no repository holds any more
	Left      []string `json:"left"`      // repositories whose blobs were left alone: a manifest of theirs is damaged
}

// A marking is what is needed of a repository while it is collected. It is
// guarded by Store.names: what is put meanwhile is marked too.
type marking struct {
	repo    string
	live    map[digest.Digest]bool // manifests and blobs
	damaged bool                   // a manifest that is needed cannot be read
}

// Collect removes what nothing in a repository leads to any more, beside pushes
// and pulls that go on. A tag leads to its manifest, an index to its entries, a
// manifest to its config and layers, and a subject to its referrers. So much is
// kept besides as keep says.
//
// What was acknowledged is never lost to it: each removal is decided under the
// lock that manifests are put under, with all that was put since the collection
// began. A blob that is removed between a client's look for it and the manifest
// is refused with that manifest, and pushed again. Killed at any moment, a
// collection is gone on with by the next one.
//
// One collection runs at a time; a second waits. It ends early when ctx does.
func (s *Store) Collect(ctx context.Context, keep Retention, dryRun bool) (Collected, error) {
	s.collecting.Lock()
	defer s.collecting.Unlock()
	c := collection{store: s, keep: keep, dry: dryRun, now: s.now(), Collected: Collected{Left: []string{}}}
	repos, err := s.repositories()
	for _, repo := range repos {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = c.collect(ctx, repo)
		}
	}
	if err != nil {
		return c.Collected, fmt.Errorf("collect the registry's garbage: %w", err)
	}
	return c.Collected, nil
}

// now returns the time by the clock at the store's opening, so that a clock that
// is set meanwhile makes nothing old.
func (s *Store) now() time.Time { return s.opened.Add(time.Since(s.opened)) }

// A collection is one run of Collect.
type collection struct {
	Collected
	store *Store
	keep  Retention
	dry   bool
	now   time.Time
}

func (c *collection) collect(ctx context.Context, repo string) error {
	expired, err := c.expireTags(repo)
	if err != nil {
		return err
	}
	m := c.store.mark(repo)
	defer c.store.unmark()
	if err := c.markRoots(ctx, m, expired); err != nil {
		return err
	}
	if err := c.sweepManifests(ctx, m); err != nil {
		return err
	}
	if m.damaged {
		c.Left = append(c.Left, repo)
		return nil
	}
	return c.sweepBlobs(ctx, m)
}

// mark begins a marking of repo.
func (s *Store) mark(repo string) *marking {
	s.names.Lock()
	defer s.names.Unlock()
	s.marking = &marking{repo: repo, live: map[digest.Digest]bool{}}
	return s.marking
}

func (s *Store) unmark() {
	s.names.Lock()
	defer s.names.Unlock()
	s.marking = nil
}

// needed marks what d leads to, if repo is being collected. The caller holds s.names.
func (s *Store) needed(repo string, d digest.Digest) {
	if s.marking != nil && s.marking.repo == repo {
		s.reach(s.marking, d)
	}
}

// reach marks d and all that it leads to. The caller holds s.names.
func (s *Store) reach(m *marking, d digest.Digest) {
	for todo := []digest.Digest{d}; len(todo) > 0; {
		d, todo = todo[len(todo)-1], todo[:len(todo)-1]
		if m.live[d] {
			continue
		}
		m.live[d] = true
		switch doc, err := s.Manifest(m.repo, d); {
		case err == nil:
			for _, b := range doc.Blobs {
				m.live[b.Digest] = true
			}
			for _, e := range doc.Manifests {
				todo = append(todo, e.Digest) // or a blob, which leads nowhere
			}
		case s.holds(m.repo, d) == nil:
			m.damaged = true
		}
		referrers, err := s.Referrers(m.repo, d)
		if err != nil {
			m.damaged = true // what refers to it is not known
		}
		todo = append(todo, referrers...)
	}
}

// markRoots marks what is kept for its own sake: what a tag names that stays, and
// manifests that were pushed lately. Manifests without a tag stay as long as the
// retention says; referrers of what is not here go when they are no longer new.
func (c *collection) markRoots(ctx context.Context, m *marking, expired map[string]bool) error {
	tags, err := c.store.list(repository(m.repo, "_tags"))
	if err != nil {
		return err
	}
	for _, t := range tags {
		if expired[t.Name()] {
			continue // in a dry run it is still there
		}
		if d, err := c.store.Resolve(m.repo, t.Name()); err == nil {
			c.reach(m, d)
		}
	}
	return c.store.eachFile(ctx, repository(m.repo, "_manifests"), func(d digest.Digest, name string) error {
		fi, err := c.store.root.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		age := c.now.Sub(fi.ModTime())
		stays := age < c.keep.Grace || c.keep.Untagged == 0 || age < c.keep.Untagged
		if doc, err := c.store.Manifest(m.repo, d); err == nil && doc.Subject != "" {
			stays = age < c.keep.Grace
		}
		if stays {
			c.reach(m, d)
		}
		return nil
	})
}

func (c *collection) reach(m *marking, d digest.Digest) {
	c.store.names.Lock()
	defer c.store.names.Unlock()
	c.store.reach(m, d)
}

func (c *collection) sweepManifests(ctx context.Context, m *marking) error {
	return c.store.eachFile(ctx, repository(m.repo, "_manifests"), func(d digest.Digest, _ string) error {
		c.store.names.Lock()
		defer c.store.names.Unlock()
		if m.live[d] {
			return nil
		}
		if !c.dry {
			if err := c.store.removeManifest(m.repo, d); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove manifest %s of %s: %w", d, m.repo, err)
			}
		}
		c.Manifests++
		return nil
	})
}

func (c *collection) sweepBlobs(ctx context.Context, m *marking) error {
	return c.store.eachFile(ctx, repository(m.repo, "_blobs"), func(d digest.Digest, name string) error {
		c.store.names.Lock()
		defer c.store.names.Unlock()
		if m.live[d] || m.damaged {
			return nil
		}
		fi, err := c.store.root.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if c.now.Sub(fi.ModTime()) < c.keep.Grace {
			return nil
		}
		c.Blobs++
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Nlink <= 2 { // here and in the pool
			c.Bytes += fi.Size()
		}
		if c.dry {
			return nil
		}
		if err := c.store.DeleteBlob(m.repo, d); err != nil && !errors.Is(err, ErrBlobUnknown) {
			return err
		}
		return nil
	})
}

// use notes at name, of a blob, that it was received, mounted or looked for now:
// the time of its file, which no write changes any more.
func (s *Store) use(name string) error {
	now := s.now()
	return s.root.Chtimes(name, now, now)
}

// lookedFor notes that a client asked whether repo has a blob, so that it stays
// while the client pushes what needs it. It writes at most once in half of grace.
func (s *Store) lookedFor(repo string, d digest.Digest, f *os.File, grace time.Duration) {
	if fi, err := f.Stat(); err == nil && s.now().Sub(fi.ModTime()) > grace/2 {
		// Should it fail, the client pushes the blob again at worst.
		_ = s.use(blobPath(repo, d))
	}
}
