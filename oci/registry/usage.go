package registry

import (
	"errors"
	"fmt"
	"io/fs"
)

// A Usage is what a store holds.
type Usage struct {
	Blobs int   // each once, whoever holds it
	Bytes int64 // of them
}

// Usage looks at every blob's file and returns what there is. A blob that could
// not be shared between its repositories is not counted, nor are manifests and unfinished uploads.
func (s *Store) Usage() (Usage, error) {
	var u Usage
	err := fs.WalkDir(s.root.FS(), "blobs", func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) { // deleted meanwhile
			return nil
		}
		if err != nil {
			return err
		}
		u.Blobs++
		u.Bytes += info.Size()
		return nil
	})
	if err != nil {
		return Usage{}, fmt.Errorf("count the registry's blobs: %w", err)
	}
	return u, nil
}
