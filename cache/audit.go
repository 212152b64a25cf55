package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spate-project/spate/cache/piece"
)

// An auditQueue holds the complete objects whose SHA-256 is still to be compared.
type auditQueue struct {
	mu      sync.Mutex
	waiting []*Object
	more    chan struct{} // holds a token when waiting may have grown
}

func newAuditQueue() auditQueue { return auditQueue{more: make(chan struct{}, 1)} }

func (q *auditQueue) add(o *Object) {
	q.mu.Lock()
	q.waiting = append(q.waiting, o)
	q.mu.Unlock()
	select {
	case q.more <- struct{}{}:
	default:
	}
}

func (q *auditQueue) take() []*Object {
	q.mu.Lock()
	defer q.mu.Unlock()
	objects := q.waiting
	q.waiting = nil
	return objects
}

// Run audits each object after it became complete, one at a time, until ctx ends. It returns nil.
func (s *Store) Run(ctx context.Context) error {
	for {
		for _, o := range s.queue.take() {
			if s.rest(ctx); ctx.Err() == nil && o.Err() == nil {
				s.audit(ctx, o)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.queue.more:
		}
	}
}

// auditPatience is how long an audit waits for the cache to rest.
const auditPatience = 10 * time.Minute

// rest returns when no piece has come for a while, or after auditPatience.
func (s *Store) rest(ctx context.Context) {
	for begin := time.Now(); time.Since(begin) < auditPatience; {
		before := s.stats.fetched.Load()
		timer := time.NewTimer(s.opts.AuditQuiet)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		if s.stats.fetched.Load() == before {
			return
		}
	}
}

func (s *Store) audit(ctx context.Context, o *Object) {
	err := o.tree.Audit(contextReader{ctx, io.NewSectionReader(o.data, 0, o.object.Size)})
	wrong := (*piece.WrongBytesError)(nil)
	switch {
	case err == nil:
		s.stats.audited.Add(1)
		if err := o.record.set(len(o.states)); err != nil {
			s.log.Warn("an audit is not recorded and will be repeated", "object", o.object.Digest, "error", s.explain(err))
		}
		s.log.Debug("audited", "object", o.object.Digest)
	case errors.As(err, &wrong):
		s.quarantine(o, wrong)
	case ctx.Err() == nil && o.Err() == nil:
		s.log.Warn("an object could not be audited", "object", o.object.Digest, "error", s.explain(err))
	}
}

// quarantine stops all reads of o and moves its files away, so that no later process uses them either.
func (s *Store) quarantine(o *Object, why *piece.WrongBytesError) {
	o.fail(why)
	s.stats.quarantined.Add(1)
	to := s.quarantinePath(o.object)
	s.log.Error("ALARM: a complete object does not match its digest although all its pieces match the signed root; it is in quarantine and serves no reads",
		"object", o.object.Digest, "root", o.object.Root, "path", to)
	err := os.MkdirAll(filepath.Dir(to), 0o700)
	if err == nil {
		err = os.Rename(s.objectPath(o.object.Digest), to)
		s.account.drop(o.object.Digest)
	}
	if err != nil {
		s.log.Error("quarantine failed: remove the object's files by hand", "path", s.objectPath(o.object.Digest), "error", err)
	}
}

// A contextReader fails when its context ends.
type contextReader struct {
	ctx context.Context
	io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, fmt.Errorf("stopped: %w", context.Cause(r.ctx))
	}
	return r.Reader.Read(p)
}
