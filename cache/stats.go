package cache

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/spate-project/spate/cache/piece"
)

// Stats are counts since the Store was opened, of pieces unless said otherwise.
type Stats struct {
	Hits        int64 `json:"hits"`        // wanted by a read, and here
	Misses      int64 `json:"misses"`      // wanted by a read, and had to be waited for
	Fetched     int64 `json:"fetched"`     // recorded through Put or Commit
	BadClaims   int64 `json:"badClaims"`   // recorded by an earlier process, and broken; a broken record counts as one
	WrongBytes  int64 `json:"wrongBytes"`  // committed, and not matching
	Audited     int64 `json:"audited"`     // objects that matched their digest
	Quarantined int64 `json:"quarantined"` // objects that did not

	Stalls       int64   `json:"stalls"`       // reads that had to wait for pieces, those that wait now included
	StallSeconds float64 `json:"stallSeconds"` // for how long, all that wait no more together
	Waiting      int64   `json:"waiting"`      // reads that wait now

	Objects int   `json:"objects"` // open now
	Bytes   int64 `json:"bytes"`   // of their present pieces

	Quota        int64 `json:"quotaBytes"`     // 0 is none
	Used         int64 `json:"usedBytes"`      // what counts against the quota, open or not
	Pinned       int64 `json:"pinnedBytes"`    // of these, what is pinned, in use or on its way
	Evicted      int64 `json:"evictedObjects"` // to make room
	EvictedBytes int64 `json:"evictedBytes"`
}

type counters struct {
	hits, misses, fetched, badClaims, wrongBytes, audited, quarantined atomic.Int64

	stalls, stalled, waiting atomic.Int64 // stalled in nanoseconds
}

// Stats returns the counts so far.
func (s *Store) Stats() Stats {
	c := &s.stats
	st := Stats{
		Hits: c.hits.Load(), Misses: c.misses.Load(), Fetched: c.fetched.Load(),
		BadClaims: c.badClaims.Load(), WrongBytes: c.wrongBytes.Load(),
		Audited: c.audited.Load(), Quarantined: c.quarantined.Load(),
		Stalls: c.stalls.Load(), Waiting: c.waiting.Load(),
		StallSeconds: time.Duration(c.stalled.Load()).Seconds(),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Pinned = s.pinned(s.list())
	s.account.mu.Lock()
	st.Quota, st.Used, st.Evicted, st.EvictedBytes = s.account.quota, s.account.used, s.account.evicted, s.account.evictedBytes
	s.account.mu.Unlock()
	st.Objects = len(s.objects)
	for _, o := range s.objects {
		st.Bytes += o.presentBytes()
	}
	return st
}

// presentBytes returns how many bytes the present pieces have. The last piece may be shorter than the others.
func (o *Object) presentBytes() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return min(o.object.Size, int64(o.counts[present])*o.object.PieceLength)
}

// A StallFunc is told of a read that begins to wait for pieces of object d. It
// returns the context to wait with, which the Source gets the values of, and
// what is called once when the wait is over, with how long it was and its error.
type StallFunc func(ctx context.Context, d piece.Digest, pieces int) (context.Context, func(time.Duration, error))

// stall counts a read that waits from now on until the returned function is called.
func (s *Store) stall(ctx context.Context, d piece.Digest, pieces int) (context.Context, func(error)) {
	ended := func(time.Duration, error) {}
	if s.opts.OnStall != nil {
		ctx, ended = s.opts.OnStall(ctx, d, pieces)
	}
	begin := time.Now()
	s.stats.stalls.Add(1)
	s.stats.waiting.Add(1)
	return ctx, func(err error) {
		took := time.Since(begin)
		s.stats.stalled.Add(int64(took))
		s.stats.waiting.Add(-1)
		ended(took, err)
	}
}
