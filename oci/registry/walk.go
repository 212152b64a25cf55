package registry

import (
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
	var fnErr error
	err := fs.WalkDir(s.root.FS(), "repositories", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // deleted meanwhile
			return nil
		case err != nil:
			return err
		case entry.IsDir() && strings.HasPrefix(entry.Name(), "_") && entry.Name() != "_manifests":
			return fs.SkipDir
		case entry.IsDir():
			return nil
		}
		dir, encoded := path.Split(name)
		room, algorithm := path.Split(path.Clean(dir))
		repo, _ := strings.CutPrefix(path.Dir(path.Clean(room)), "repositories/")
		d := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), encoded)
		if path.Base(room) != "_manifests" || d.Validate() != nil {
			return nil
		}
		fnErr = fn(repo, d)
		return fnErr
	})
	if err != nil && fnErr == nil {
		return fmt.Errorf("list the registry's manifests: %w", err)
	}
	return fnErr
}
