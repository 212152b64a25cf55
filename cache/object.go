package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/spate-project/spate/cache/piece"
)

// A state is what is known of one piece.
type state uint8

const (
	absent  state = iota // not here; blocks may be written in its place
	claimed              // an earlier process recorded it; this one has not hashed it
	sealed               // one goroutine writes or verifies it, nobody else
	present              // verified by this process; its bytes do not change
)

// An Object is one object in a Store, whole or in part. It is safe for concurrent use.
type Object struct {
	store  *Store
	tree   *piece.Tree
	object piece.Object
	src    Source
	data   *os.File
	shown  *os.File // data, opened to read
	record *record
	refs   int // guarded by store.mu

	dead   chan struct{} // closed when err is set
	flying sync.WaitGroup

	mu       sync.Mutex
	moved    sync.Cond // a piece left sealed, a block was written, or err was set
	states   []state
	charged  []bool           // by piece: the account counts it
	counts   [present + 1]int // of states
	blocks   map[int]*blocks  // of absent pieces that blocks came of
	writers  int              // of all blocks
	arrivals map[int]chan struct{}
	flights  map[int]*flight
	ahead    ahead
	watchers []func(i int)
	audited  bool
	err      error // why the object serves no more: closed or in quarantine
}

// load opens the files of t's object. s.mu is held.
func (s *Store) load(t *piece.Tree, src Source) (_ *Object, err error) {
	o := &Object{
		store: s, tree: t, object: t.Object(), src: src, refs: 1,
		dead:     make(chan struct{}),
		states:   make([]state, t.Object().Pieces()),
		charged:  make([]bool, t.Object().Pieces()),
		blocks:   make(map[int]*blocks),
		arrivals: make(map[int]chan struct{}),
		flights:  make(map[int]*flight),
	}
	o.moved.L = &o.mu
	defer func() {
		if err != nil {
			o.closeFiles()
		}
	}()
	dir := s.objectPath(o.object.Digest)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, dataName)
	if o.data, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	info, err := o.data.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() != o.object.Size {
		if err := o.data.Truncate(o.object.Size); err != nil {
			return nil, err
		}
	}
	if o.shown, err = os.Open(path); err != nil {
		return nil, err
	}
	r, slots, fits, err := openRecord(filepath.Join(dir, recordName), t)
	if err != nil {
		return nil, err
	}
	o.record = r
	if !fits && info.Size() > 0 { // not new
		s.stats.badClaims.Add(1)
		s.log.Warn("the record of an object's pieces is broken or another tree's; the object starts anew", "object", o.object.Digest)
		if err := errors.Join(o.data.Truncate(0), o.data.Truncate(o.object.Size)); err != nil {
			return nil, err
		}
	}
	o.counts[absent] = len(o.states)
	for i := range o.states {
		if claims(t, slots, i) {
			o.set(i, claimed)
			o.charged[i] = true
		}
	}
	o.audited = claims(t, slots, len(o.states))
	if o.object.Size == 0 {
		s.queue.add(o)
	}
	return o, nil
}

// Close ends one use of the object, as Store.Open began it. The last one closes
// the files: reads that wait and flights end with fs.ErrClosed.
func (o *Object) Close() error { return o.store.close(o) }

// Linger ends one use of the object as Close does, but the last one leaves it
// open, for whom it serves by the way, until the store is closed or needs its
// room; then Err is ErrEvicted. Reopen begins a use of it again.
func (o *Object) Linger() {
	s := o.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.refs--; s.objects[o.object.Digest] == o {
		s.touch(o.object.Digest)
	}
}

// Reopen begins one use of an object that lingers, as Store.Open does. It reports
// false when the object is open no more.
func (o *Object) Reopen() bool {
	s := o.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects[o.object.Digest] != o {
		return false
	}
	o.refs++
	return true
}

// shut ends all use of the object because of err, and returns when no write is under way.
func (o *Object) shut(err error) error {
	o.fail(fmt.Errorf("object %s: %w", o.object.Digest, err))
	o.mu.Lock()
	for _, f := range o.flights {
		f.cancel()
	}
	for o.counts[sealed] > 0 || o.writers > 0 {
		o.moved.Wait()
	}
	o.mu.Unlock()
	return o.closeFiles()
}

// fail makes every later call fail with err. The first failure stays.
func (o *Object) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = err
		close(o.dead)
		o.moved.Broadcast()
	}
}

// Err returns why the object refuses all reads, now and for good, so that who
// waits for it to become Complete can stop: a *piece.WrongBytesError when it is
// in quarantine, fs.ErrClosed after the last Close. It is nil otherwise.
func (o *Object) Err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

func (o *Object) closeFiles() error {
	files := []*os.File{o.data, o.shown}
	if o.record != nil {
		files = append(files, o.record.file)
	}
	var errs []error
	for _, f := range files {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// Tree returns the tree that the object was opened with.
func (o *Object) Tree() *piece.Tree { return o.tree }

// Size returns the object's length in bytes.
func (o *Object) Size() int64 { return o.object.Size }

// File returns the object's file, opened to read. What was Ensured, and all of
// a Complete object, holds the right bytes there; all else is undefined. The
// file is borrowed: it is closed when the object is.
func (o *Object) File() *os.File { return o.shown }

// Has reports whether piece i is present: verified and readable. It never
// waits; a piece that an earlier process recorded is present once it was
// hashed again, by the first read or by Recheck.
func (o *Object) Has(i int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err == nil && i >= 0 && i < len(o.states) && o.states[i] == present
}

// Complete reports whether every piece is present.
func (o *Object) Complete() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err == nil && o.counts[present] == len(o.states)
}

// Missing returns the pieces that are neither present nor claimed by an earlier
// process, in order: what is left to fetch, if all claims hold.
func (o *Object) Missing() []int {
	o.mu.Lock()
	defer o.mu.Unlock()
	missing := make([]int, 0, o.counts[absent])
	for i, s := range o.states {
		if s == absent {
			missing = append(missing, i)
		}
	}
	return missing
}

// A Progress counts an object's pieces.
type Progress struct {
	Present int // verified
	Claimed int // recorded by an earlier process, to be hashed again
	Total   int
}

// Progress returns how far the object is.
func (o *Object) Progress() Progress {
	o.mu.Lock()
	defer o.mu.Unlock()
	return Progress{Present: o.counts[present], Claimed: o.counts[claimed], Total: len(o.states)}
}

// OnPresent registers f to be called for each piece that becomes present from
// now on, once a piece and without locks held. f should return soon: whoever
// brought the piece waits for it.
func (o *Object) OnPresent(f func(i int)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.watchers = append(o.watchers, f)
}

// Wait returns when piece i is present, or with the context's error. It fetches nothing.
func (o *Object) Wait(ctx context.Context, i int) error {
	here, err := o.Settle(i)
	if here || err != nil {
		return err
	}
	o.mu.Lock()
	if o.states[i] == present {
		o.mu.Unlock()
		return nil
	}
	arrived := o.arrival(i)
	o.mu.Unlock()
	select {
	case <-arrived:
		return nil
	case <-o.dead:
		return o.Err()
	case <-ctx.Done():
		return fmt.Errorf("wait for piece %d of object %s: %w", i, o.object.Digest, context.Cause(ctx))
	}
}

// arrival returns a channel that is closed when piece i is present; it is not yet. o.mu is held.
func (o *Object) arrival(i int) <-chan struct{} {
	c := o.arrivals[i]
	if c == nil {
		c = make(chan struct{})
		o.arrivals[i] = c
	}
	return c
}

// set moves piece i to state s. o.mu is held.
func (o *Object) set(i int, s state) {
	o.counts[o.states[i]]--
	o.counts[s]++
	o.states[i] = s
}

// seal takes piece i for the caller alone: it waits for whoever has it and for
// blocks that are being written, and keeps new ones out. was is the state that
// it had. A present piece is not sealed, nor one that is not claimed when
// onlyClaimed; all others must be given back with release.
func (o *Object) seal(i int, onlyClaimed bool) (was state, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if i < 0 || i >= len(o.states) {
		return absent, o.noPiece(i)
	}
	for o.states[i] == sealed && o.err == nil {
		o.moved.Wait()
	}
	if o.err != nil {
		return absent, o.err
	}
	was = o.states[i]
	if was == present || onlyClaimed && was != claimed {
		return was, nil
	}
	o.set(i, sealed)
	for b := o.blocks[i]; b != nil && b.writers > 0; {
		o.moved.Wait()
	}
	return was, nil
}

// release ends what seal began: piece i is now s. What came of it in blocks is forgotten.
func (o *Object) release(i int, s state) {
	o.mu.Lock()
	o.set(i, s)
	delete(o.blocks, i)
	o.moved.Broadcast()
	var watchers []func(int)
	var complete bool
	if s == present {
		if c := o.arrivals[i]; c != nil {
			close(c)
			delete(o.arrivals, i)
		}
		watchers = o.watchers
		complete = o.counts[present] == len(o.states) && o.err == nil && !o.audited
	}
	o.mu.Unlock()
	for _, f := range watchers {
		f(i)
	}
	if complete {
		o.store.queue.add(o)
	}
}

// Settle hashes piece i if an earlier process recorded it, waits for whoever is
// at it, and reports whether it is present then. A record that does not hold is a
// miss. It fetches nothing; the error is why the object can be read no more.
func (o *Object) Settle(i int) (here bool, err error) {
	was, err := o.seal(i, true)
	if err != nil || was != claimed {
		return was == present, err
	}
	if err := o.verify(i); err != nil {
		o.dropClaim(i, err)
		o.release(i, absent)
		return false, nil
	}
	o.release(i, present)
	return true, nil
}

// verify hashes the sealed piece i as it stands in the file.
func (o *Object) verify(i int) error {
	off, n := o.object.Span(i)
	buf := o.store.bufs.get(n)
	defer o.store.bufs.put(buf)
	if _, err := o.data.ReadAt(buf, off); err != nil {
		return err
	}
	_, err := o.tree.Verify(i, buf)
	return err
}

func (o *Object) dropClaim(i int, why error) {
	o.store.stats.badClaims.Add(1)
	o.store.log.Warn("a recorded piece is broken; it is fetched again", "object", o.object.Digest, "piece", i, "error", why)
	if err := o.record.clear(i); err != nil {
		o.store.log.Warn("a broken piece stays recorded until the next start", "object", o.object.Digest, "piece", i, "error", err)
	}
}

// Recheck hashes every piece that an earlier process recorded, one after the
// other, and returns when there is none left; Progress tells how far it is.
// Reads do not depend on it: they hash what they touch.
func (o *Object) Recheck(ctx context.Context) error {
	for i := range o.states {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("recheck object %s: %w", o.object.Digest, context.Cause(ctx))
		}
		if _, err := o.Settle(i); err != nil {
			return err
		}
	}
	return nil
}
