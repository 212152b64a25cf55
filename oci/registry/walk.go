package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Manifests calls fn with every manifest of every repository, in lexical order,
// until fn fails, and returns fn's error. What is pushed or deleted meanwhile may or may not be among them.
func (s *Store) Manifests(fn func(repo string, d digest.Digest) error) error {
	repos, err := s.repositories()
	if err != nil {
		return fmt.Errorf("list the registry's repositories: %w", err)
	}
	for _, repo := range repos {
		err := s.eachFile(context.Background(), repository(repo, "_manifests"), func(d digest.Digest, _ string) error { return fn(repo, d) })
		if err != nil {
			return err
		}
	}
	return nil
}

// repositories returns the names of all repositories, in lexical order.
func (s *Store) repositories() ([]string, error) {
	var repos []string
	err := fs.WalkDir(s.root.FS(), "repositories", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // deleted meanwhile
			return nil
		case err != nil:
			return err
		case !entry.IsDir() || !strings.HasPrefix(entry.Name(), "_"):
			return nil
		}
		repo := strings.TrimPrefix(path.Dir(name), "repositories/")
		if len(repos) == 0 || repos[len(repos)-1] != repo { // its rooms follow each other
			repos = append(repos, repo)
		}
		return fs.SkipDir
	})
	return repos, err
}

// eachFile calls fn with the digest and the path of each file in a room of a
// repository, until fn fails or ctx ends.
func (s *Store) eachFile(ctx context.Context, room string, fn func(d digest.Digest, name string) error) error {
	algorithms, err := s.list(room)
	if err != nil {
		return fmt.Errorf("list %s: %w", room, err)
	}
	for _, a := range algorithms {
		entries, err := s.list(path.Join(room, a.Name()))
		if err != nil {
			return fmt.Errorf("list %s: %w", room, err)
		}
		for _, e := range entries {
			d := digest.NewDigestFromEncoded(digest.Algorithm(a.Name()), e.Name())
			if d.Validate() != nil {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := fn(d, path.Join(room, a.Name(), e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
