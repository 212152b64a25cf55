package prefetch

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spate-project/spate/cache/piece"
)

// near is how many of the latest ranges a read is joined to where it touches
// one: a kernel sends what one reader reads in parts, a little out of order and
// mixed with others'.
const near = 16

// A Recorder notes what is read in the first while after the first read, up to
// MaxReads ranges, which take 3 MiB. It is safe for concurrent use.
type Recorder struct {
	lasting time.Duration
	ended   atomic.Bool

	mu    sync.Mutex
	begin time.Time // of the first read
	reads Plan
	full  bool
}

// NewRecorder returns a Recorder of the reads in that time after the first one.
func NewRecorder(lasting time.Duration) *Recorder { return &Recorder{lasting: lasting} }

// Read notes a read of the n bytes at off of object d.
func (r *Recorder) Read(d piece.Digest, off, n int64) {
	if r.ended.Load() || n <= 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if r.begin.IsZero() {
		r.begin = now
	}
	if now.Sub(r.begin) >= r.lasting {
		r.ended.Store(true)
		return
	}
	for i := len(r.reads) - 1; i >= max(0, len(r.reads)-near); i-- {
		if r.reads[i].join(d, off, n) {
			return
		}
	}
	if len(r.reads) == MaxReads {
		r.full = true
		r.ended.Store(true)
		return
	}
	r.reads = append(r.reads, Range{d, off, n})
}

// Reads returns what was read so far, in order; full says that there was more
// than a trace holds. The plan is the caller's.
func (r *Recorder) Reads() (reads Plan, full bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.reads), r.full
}

// join adds n bytes at off of object d to r where they overlap or touch it.
func (r *Range) join(d piece.Digest, off, n int64) bool {
	end := r.Offset + r.Length
	if d != r.Object || off > end || off+n < r.Offset {
		return false
	}
	begin := min(off, r.Offset)
	r.Offset, r.Length = begin, max(end, off+n)-begin
	return true
}
