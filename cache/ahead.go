package cache

import "slices"

// mostStreams is how many sequential readers of one object are told apart.
const mostStreams = 16

// An ahead is what is known of an object's sequential readers. It is guarded by Object.mu.
type ahead struct {
	limit   int64     // how far ahead of them is fetched; 0 is not at all
	streams []*stream // the latest, in the order of their last reads
}

// A stream is a run of reads, each of which began near the end of one before.
type stream struct {
	end  int64 // of the furthest read
	run  int64 // bytes by which reads after the first brought that forward
	next int   // the source was told of the pieces before it
}

// ReadAhead has the source told what sequential readers of the object, by
// Ensure and ReadContext, are on their way to: the pieces at most limit bytes
// ahead of each. 0, as at first, tells it nothing; that is right where something
// else fetches the whole object.
//
// A run of reads is followed once it is longer than limit/16, as a small random
// read that comes in parts is not, eight times as far ahead as it is longer: nodes
// that read the same can only pass on to each other what they do not wait for
// yet. Several runs are followed side by side. No read waits for what is ahead of it.
func (o *Object) ReadAhead(limit int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ahead.limit = max(0, limit)
}

// A window is the pieces [first, last); none where first is not below last.
type window struct{ first, last int }

// coming notes a read of the n bytes at off, and returns the pieces that its
// reader is on its way to and the source was not told of. o.mu is held.
func (o *Object) coming(off, n int64) (w window) {
	n = min(n, o.object.Size-off)
	if o.ahead.limit == 0 || n <= 0 || o.src == nil || o.err != nil || o.counts[present] == len(o.states) {
		return w
	}
	limit := o.ahead.limit
	st := o.ahead.follow(off, n)
	_, w.first = o.object.Range(st.end-1, 1)
	_, w.last = o.object.Range(st.end, min(limit, max(0, 8*(st.run-limit/16))))
	w.first = max(w.first, st.next)
	// What is claimed its reader hashes sooner than it could be fetched.
	for w.first < w.last && o.states[w.first] != absent {
		w.first++
	}
	st.next = max(st.next, w.last)
	return w
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
