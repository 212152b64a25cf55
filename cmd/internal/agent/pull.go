package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"
)

const (
	// tick is how often a pull tells its progress.
	tick = 200 * time.Millisecond

	// stuck is how long a pull goes without a new piece before it asks for the
	// next one as a reader would, which brings it or says what is wrong.
	stuck = time.Second
)

// An Event tells how far a pull is. Every file is announced with Bytes 0 before the first one starts.
type Event struct {
	File  string `json:"file"`
	Size  int64  `json:"size"`
	Bytes int64  `json:"bytes"` // verified and here
	Done  bool   `json:"done,omitempty"`
}

// Pull writes the files of req.Reference into req.Dir, which is made when missing.
// Every byte comes through the cache, so it is verified and shared with peers.
// A file appears under its name when it is whole. report is called from one goroutine.
func (a *Agent) Pull(ctx context.Context, req PullRequest, report func(Event)) (err error) {
	ctx, ended := a.opts.Tracer.Start(ctx, "pull", slog.String("reference", req.Reference))
	defer func() { ended(err) }()
	reference, dir := req.Reference, req.Dir
	all := need{all: true, priority: req.Priority}
	art, err := a.open(ctx, reference, all)
	if err != nil {
		return err
	}
	defer a.release(art, all)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("pull %s: %w", reference, err)
	}
	root, err := os.OpenRoot(dir) // no link in dir leads out of it
	if err != nil {
		return fmt.Errorf("pull %s: %w", reference, err)
	}
	defer root.Close()
	for _, f := range art.files {
		report(Event{File: f.Path, Size: f.object.Size()})
	}
	for _, f := range art.files {
		if err := f.await(ctx, report); err != nil {
			return fmt.Errorf("pull %s: %s: %w", reference, f.Path, err)
		}
		if err := f.object.Export(ctx, root, f.Path, f.Mode); err != nil {
			return fmt.Errorf("pull %s: %w", reference, err)
		}
		report(Event{File: f.Path, Size: f.object.Size(), Bytes: f.object.Size(), Done: true})
	}
	return nil
}

// await returns when the background fill has brought every piece.
func (f file) await(ctx context.Context, report func(Event)) error {
	o := f.object.Tree().Object()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	last, since := -1, time.Now()
	for !f.object.Complete() {
		if err := f.object.Err(); err != nil {
			return err
		}
		p := f.object.Progress()
		switch {
		case p.Present != last:
			last, since = p.Present, time.Now()
			report(Event{File: f.Path, Size: o.Size, Bytes: presentBytes(f.object)})
		case time.Since(since) > stuck:
			if missing := f.object.Missing(); len(missing) > 0 {
				off, n := o.Span(missing[0])
				if err := f.object.Ensure(ctx, off, n); err != nil {
					return err
				}
			}
			since = time.Now()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
	return nil
}
