package registry

import (
	"errors"
	"fmt"
	"sync/atomic"
)

// ErrFull says that a store has as many bytes of blobs as it may have.
var ErrFull = errors.New("the registry has as many bytes as its quota allows; delete images and let it collect, or raise the quota")

// A quota bounds the bytes of a store's blobs, each counted once. Each upload is
// held against it by itself: several at a time exceed it together by less than
// what they bring, until the first is finished. The zero value is no bound.
type quota struct {
	limit int64
	used  atomic.Int64
}

// limit sets the quota in bytes; 0 is none. It looks at every blob's file.
func (s *Store) limit(bytes int64) error {
	if bytes == 0 {
		return nil
	}
	u, err := s.Usage()
	if err != nil {
		return fmt.Errorf("hold the registry's store to its quota: %w", err)
	}
	s.quota.limit = bytes
	s.quota.used.Store(u.Bytes)
	return nil
}

// room returns ErrFull where n more bytes do not fit.
func (q *quota) room(n int64) error {
	if q.limit > 0 && q.used.Load()+n > q.limit {
		return ErrFull
	}
	return nil
}
