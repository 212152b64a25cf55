package cache

import "sync"

// buffers lends out memory for pieces, a bounded number of bytes at a time.
type buffers struct {
	limit int64
	pool  sync.Pool

	mu    sync.Mutex
	freed sync.Cond
	lent  int64
}

func newBuffers(limit int64) *buffers {
	b := &buffers{limit: limit}
	b.freed.L = &b.mu
	return b
}

// get returns n bytes of unknown content, once that many may be lent. What is
// larger than the limit is lent alone.
func (b *buffers) get(n int64) []byte {
	b.mu.Lock()
	for b.lent > 0 && b.lent+n > b.limit {
		b.freed.Wait()
	}
	b.lent += n
	b.mu.Unlock()
	if p, _ := b.pool.Get().(*[]byte); p != nil && int64(cap(*p)) >= n {
		return (*p)[:n]
	}
	return make([]byte, n)
}

// put takes back what get lent.
func (b *buffers) put(p []byte) {
	b.pool.Put(&p)
	b.mu.Lock()
	b.lent -= int64(len(p))
	b.mu.Unlock()
	b.freed.Broadcast()
}
