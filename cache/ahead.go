package cache

import (
	"context"
	"slices"
)

// mostStreams is how many sequential readers of one object are told apart.
const mostStreams = 16

// An ahead is what is known of an object's sequential readers. It is guarded by Object.mu.
type ahead struct {
	limit   int64     // how far ahead of them is fetched, and how much at a time; 0 is not at all
	flying  int       // pieces that are on their way because of it
	streams []*stream // the latest, in the order of their last reads
}

// A stream is a run of reads, each of which began near the end of one before.
type stream struct {
	end  int64 // of the furthest read
	run  int64 // bytes by which reads after the first brought that forward
	next int   // no piece before it is to be fetched ahead
}

// ReadAhead has sequential reads of the object, by Ensure and ReadContext, fetch
// ahead of themselves: at most limit bytes beyond the reader, and as much on
// its way at a time for all readers together, though a piece is always allowed.
// 0, as at first, fetches what is read and no more; that is right where
// something else fetches the whole object.
//
// A run of reads is followed once it is longer than limit/8, as a random read
// that comes in parts is not, and fetches no further ahead than it is long.
// Several runs are followed side by side. No read waits for what is fetched
// ahead of it, nor learns of its errors: whoever comes there asks again.
func (o *Object) ReadAhead(limit int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ahead.limit = max(0, limit)
}

// readAhead notes a read of the n bytes at off and starts flights ahead of it. o.mu is held.
func (o *Object) readAhead(off, n int64) {
	n = min(n, o.object.Size-off)
	if o.ahead.limit == 0 || n <= 0 || o.src == nil || o.err != nil || o.counts[present] == len(o.states) {
		return
	}
	limit := o.ahead.limit
	st := o.ahead.follow(off, n)
	window := min(limit, max(0, st.run-limit/8))
	_, last := o.object.Range(st.end, window)
	_, read := o.object.Range(st.end-1, 1)
	room := int(max(1, limit/o.object.PieceLength))
	for st.next = max(st.next, read); st.next < last && o.ahead.flying < room; st.next++ {
		// What is claimed its reader hashes sooner than it could be fetched.
		if i := st.next; o.states[i] == absent && o.flights[i] == nil {
			o.launch(context.Background(), i, true)
		}
	}
}

// follow adds a read to the stream whose end is nearest, or makes it one of its
// own. The kernel sends a reader's reads side by side, so they come a little out of order.
func (a *ahead) follow(off, n int64) *stream {
	at, least := -1, int64(0)
	for i, st := range a.streams {
		gap := off - st.end
		if gap < -a.limit/4 || gap > min(n, a.limit/4) {
			continue
		}
		if gap = max(gap, -gap); at < 0 || gap < least {
			at, least = i, gap
		}
	}
	st := &stream{end: off + n}
	switch {
	case at >= 0:
		st = a.streams[at]
		a.streams = slices.Delete(a.streams, at, at+1)
	case len(a.streams) == mostStreams:
		a.streams = slices.Delete(a.streams, 0, 1)
	}
	a.streams = append(a.streams, st)
	if end := off + n; end > st.end {
		st.run += min(n, end-st.end)
		st.end = end
	}
	return st
}
