package cache

import "sync/atomic"

// Stats are counts since the Store was opened, of pieces unless said otherwise.
type Stats struct {
	Hits        int64 // wanted by a read, and here
	Misses      int64 // wanted by a read, and had to be waited for
	Fetched     int64 // recorded through Put or Commit
	BadClaims   int64 // recorded by an earlier process, and broken; a broken record counts as one
	WrongBytes  int64 // committed, and not matching
	Audited     int64 // objects that matched their digest
	Quarantined int64 // objects that did not
}

type counters struct {
	hits, misses, fetched, badClaims, wrongBytes, audited, quarantined atomic.Int64
}

// Stats returns the counts so far.
func (s *Store) Stats() Stats {
	c := &s.stats
	return Stats{
		Hits: c.hits.Load(), Misses: c.misses.Load(), Fetched: c.fetched.Load(),
		BadClaims: c.badClaims.Load(), WrongBytes: c.wrongBytes.Load(),
		Audited: c.audited.Load(), Quarantined: c.quarantined.Load(),
	}
}
