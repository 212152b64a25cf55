package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/opencontainers/go-digest"
)

func manifestPath(repo string, d digest.Digest) string {
	return repository(repo, "_manifests", digestPath(d))
}

func tagPath(repo, tag string) string { return repository(repo, "_tags", tag) }

func referrerPath(repo string, subject, referrer digest.Digest) string {
	return repository(repo, "_referrers", digestPath(subject), strings.Replace(string(referrer), ":", "-", 1))
}

// Manifest returns a manifest of repo. ErrManifestUnknown when repo does not
// hold it, or when its bytes on disk no longer match d: then it can be pushed again.
func (s *Store) Manifest(repo string, d digest.Digest) (*Manifest, error) {
	raw, err := s.root.ReadFile(manifestPath(repo, d))
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrManifestUnknown
	}
	if err != nil {
		return nil, fmt.Errorf("read manifest %s of %s: %w", d, repo, err)
	}
	m, err := ParseManifest(raw, d.Algorithm())
	if err != nil || m.Descriptor.Digest != d {
		s.log.Error("manifest is damaged on disk and is treated as missing; push it again", "repository", repo, "digest", d)
		return nil, fmt.Errorf("read manifest %s of %s: %w", d, repo, ErrManifestUnknown)
	}
	return m, nil
}

// holds returns ErrManifestUnknown when repo does not hold the manifest d.
func (s *Store) holds(repo string, d digest.Digest) error {
	_, err := s.root.Stat(manifestPath(repo, d))
	if errors.Is(err, fs.ErrNotExist) {
		return ErrManifestUnknown
	}
	return err
}

// PutManifest stores m in repo and lets tags name it. *MissingError when repo
// lacks a blob or manifest that m refers to, except its subject; *ManifestError
// when m gives a blob another size than it has.
//
// The steps are: the entry under its subject, the manifest, the tags. So,
// killed between two of them, no tag names a manifest that is not there, and a
// manifest that is there is found as a referrer; an entry without a manifest is passed over.
func (s *Store) PutManifest(repo string, m *Manifest, tags ...string) error {
	s.names.Lock()
	defer s.names.Unlock()
	if err := s.putManifest(repo, m, tags); err != nil {
		return fmt.Errorf("store manifest %s in %s: %w", m.Descriptor.Digest, repo, err)
	}
	return nil
}

func (s *Store) putManifest(repo string, m *Manifest, tags []string) error {
	if err := s.complete(repo, m); err != nil {
		return err
	}
	return s.record(repo, m, tags...)
}

// record takes the steps of PutManifest. The caller holds s.names.
func (s *Store) record(repo string, m *Manifest, tags ...string) error {
	d := m.Descriptor.Digest
	if m.Subject != "" {
		if err := s.write(referrerPath(repo, m.Subject, d), nil); err != nil {
			return err
		}
	}
	if err := s.write(manifestPath(repo, d), m.Bytes); err != nil {
		return err
	}
	for _, tag := range tags {
		if err := s.write(tagPath(repo, tag), []byte(d)); err != nil {
			return err
		}
	}
	s.needed(repo, d)
	return nil
}

// complete checks that repo holds what m refers to.
func (s *Store) complete(repo string, m *Manifest) error {
	var missing []digest.Digest
	for _, b := range m.Blobs {
		size, err := s.BlobSize(repo, b.Digest)
		switch {
		case errors.Is(err, ErrBlobUnknown):
			missing = append(missing, b.Digest)
		case err != nil:
			return err
		case size != b.Size:
			return invalid("it says that %s has %d bytes; the repository holds %d", b.Digest, b.Size, size)
		}
	}
	for _, e := range m.Manifests {
		_, err := s.root.Stat(manifestPath(repo, e.Digest))
		if errors.Is(err, fs.ErrNotExist) {
			// Some builders list blobs in an index, their cache for one.
			_, err = s.root.Stat(blobPath(repo, e.Digest))
		}
		if errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, e.Digest)
		} else if err != nil {
			return err
		}
	}
	if missing != nil {
		return &MissingError{Digests: missing}
	}
	return nil
}

// DeleteManifest removes a manifest and the tags that name it. ErrManifestUnknown when repo does not hold it.
//
// The steps are those of PutManifest backwards, so the same holds between two of them.
func (s *Store) DeleteManifest(repo string, d digest.Digest) error {
	if err := s.deleteManifest(repo, d); err != nil {
		return fmt.Errorf("delete manifest %s of %s: %w", d, repo, err)
	}
	return nil
}

func (s *Store) deleteManifest(repo string, d digest.Digest) error {
	s.names.Lock()
	defer s.names.Unlock()
	if err := s.holds(repo, d); err != nil {
		return err
	}
	tags, err := s.list(repository(repo, "_tags"))
	if err != nil {
		return err
	}
	for _, t := range tags {
		if named, err := s.root.ReadFile(tagPath(repo, t.Name())); err != nil || string(named) != string(d) {
			continue
		}
		if err := s.remove(tagPath(repo, t.Name())); err != nil {
			return err
		}
	}
	return s.removeManifest(repo, d)
}

// removeManifest removes a manifest that no tag names. The caller holds s.names.
func (s *Store) removeManifest(repo string, d digest.Digest) error {
	// A damaged manifest no longer tells its subject; the entry is passed over from now on.
	m, _ := s.Manifest(repo, d)
	if err := s.remove(manifestPath(repo, d)); err != nil {
		return err
	}
	if m != nil && m.Subject != "" {
		if err := s.remove(referrerPath(repo, m.Subject, d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Resolve returns what a tag names. ErrManifestUnknown when there is no such tag.
func (s *Store) Resolve(repo, tag string) (digest.Digest, error) {
	b, err := s.root.ReadFile(tagPath(repo, tag))
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrManifestUnknown
	}
	if err != nil {
		return "", fmt.Errorf("resolve tag %s of %s: %w", tag, repo, err)
	}
	d, err := digest.Parse(string(b))
	if err != nil {
		s.log.Error("tag is damaged on disk and is treated as missing; push it again", "repository", repo, "tag", tag)
		return "", fmt.Errorf("resolve tag %s of %s: %w", tag, repo, ErrManifestUnknown)
	}
	return d, nil
}

// DeleteTag removes a tag; the manifest stays. ErrManifestUnknown when there is no such tag.
func (s *Store) DeleteTag(repo, tag string) error {
	s.names.Lock()
	defer s.names.Unlock()
	err := s.remove(tagPath(repo, tag))
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrManifestUnknown
	}
	if err != nil {
		return fmt.Errorf("delete tag %s of %s: %w", tag, repo, err)
	}
	return nil
}

// Tags returns repo's tags in lexical order. ErrNameUnknown when nothing was ever pushed to repo.
func (s *Store) Tags(repo string) ([]string, error) {
	entries, err := s.list(repository(repo, "_tags"))
	if err == nil && len(entries) == 0 {
		err = s.known(repo)
	}
	if err != nil {
		return nil, fmt.Errorf("list the tags of %s: %w", repo, err)
	}
	tags := make([]string, len(entries))
	for i, e := range entries {
		tags[i] = e.Name()
	}
	return tags, nil
}

// Referrers returns the digests of the manifests of repo whose subject is
// subject, in lexical order; none when there are none. One of them may be gone
// when Manifest is asked for it.
func (s *Store) Referrers(repo string, subject digest.Digest) ([]digest.Digest, error) {
	entries, err := s.list(repository(repo, "_referrers", digestPath(subject)))
	if err != nil {
		return nil, fmt.Errorf("list the referrers of %s in %s: %w", subject, repo, err)
	}
	var found []digest.Digest
	for _, e := range entries {
		if d, err := digest.Parse(strings.Replace(e.Name(), "-", ":", 1)); err == nil {
			found = append(found, d)
		}
	}
	return found, nil
}
