package link

import (
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// chunk is how much of a read or write takes its tokens at once. It is small
// against a second of any link worth limiting, so that connections take turns.
const chunk = 32 << 10

// A bucket holds the tokens of one direction, one a byte.
type bucket struct{ limit atomic.Pointer[limit] }

// A limit holds until another takes its place. What was reserved of it is void then.
type limit struct {
	tokens *rate.Limiter
	over   chan struct{} // closed when it holds no more
}

// set makes bytesPerSecond the limit; 0 or less is none.
func (b *bucket) set(bytesPerSecond int64) {
	old := b.limit.Load()
	bytesPerSecond = max(0, bytesPerSecond)
	if b.rate() == bytesPerSecond {
		return
	}
	var next *limit
	if bytesPerSecond > 0 {
		burst := max(2*chunk, int(bytesPerSecond/100)) // 10 ms
		next = &limit{rate.NewLimiter(rate.Limit(bytesPerSecond), burst), make(chan struct{})}
		if old != nil {
			next.tokens.ReserveN(time.Now(), burst) // one burst is enough, however often the limit changes
		}
	}
	if old = b.limit.Swap(next); old != nil {
		close(old.over)
	}
}

// rate returns the limit in bytes a second; 0 is none.
func (b *bucket) rate() int64 {
	if l := b.limit.Load(); l != nil {
		return int64(l.tokens.Limit())
	}
	return 0
}

// take takes n tokens and returns when they are due. It reports false when
// closed was closed before that. The last ones are given back then unless they
// are spent: unless their bytes have passed already.
func (b *bucket) take(n int, spent bool, closed <-chan struct{}) bool {
	for n > 0 {
		l := b.limit.Load()
		if l == nil {
			return true
		}
		part := min(n, chunk)
		r := l.tokens.ReserveN(time.Now(), part)
		delay := r.Delay()
		if delay == 0 {
			n -= part
			continue
		}
		t := time.NewTimer(delay)
		select {
		case <-t.C:
			n -= part
		case <-l.over:
		case <-closed:
			if !spent {
				r.Cancel()
			}
			return false
		}
		t.Stop()
	}
	return true
}
