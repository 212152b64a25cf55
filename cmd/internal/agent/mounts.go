package agent

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/spate-project/spate/cache/mount"
	"github.com/spate-project/spate/cmd/internal/ui"
)

// lingering is how long an unmount waits for the file system to end. It may
// live on, where it is bind-mounted into a container.
const lingering = 2 * time.Second

// A mounted is a mount of this agent.
type mounted struct {
	artifact *artifact // nil while it is being mounted
	need     need
	fs       *mount.FS
	once     sync.Once
	force    chan struct{} // closed to unmount by force
	done     chan struct{} // closed when it is gone
}

// Mount shows a reference at a directory and returns when it can be read, or,
// where the request says so, when everything is here. An error while it waits
// for that leaves the mount as it is.
func (a *Agent) Mount(ctx context.Context, req MountRequest) (err error) {
	ctx, ended := a.opts.Tracer.Start(ctx, "mount", slog.String("reference", req.Reference))
	defer func() { ended(err) }()
	m := &mounted{force: make(chan struct{}), done: make(chan struct{})}
	a.mu.Lock()
	_, taken := a.mounts[req.Dir]
	if !taken {
		a.mounts[req.Dir] = m
	}
	a.mu.Unlock()
	if taken {
		return ui.WithHint(fmt.Errorf("mount %s: %s is in use by another mount of this agent", req.Reference, req.Dir),
			"choose another directory, or `spate umount` it first")
	}
	if err := a.mount(ctx, req, m); err != nil {
		a.forget(req.Dir, m)
		return err
	}
	if !req.Wait {
		return nil
	}
	for _, f := range m.artifact.files {
		if err := f.whole(ctx); err != nil {
			return fmt.Errorf("wait for the rest of %s, mounted at %s: %s: %w", req.Reference, req.Dir, f.Path, err)
		}
	}
	return nil
}

func (a *Agent) mount(ctx context.Context, req MountRequest, m *mounted) error {
	n := need{all: !req.Lazy, priority: req.Priority}
	art, err := a.open(ctx, req.Reference, n)
	if err != nil {
		return err
	}
	entries := make([]mount.Entry, 0, len(art.files))
	for _, f := range art.files {
		entries = append(entries, mount.Entry{Path: f.Path, Mode: f.Mode, File: recorded{f.object, art.recorder}})
	}
	fs, err := mount.New(entries, mount.Options{Logger: a.log})
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = fs.Mount(req.Dir)
	}
	if err != nil {
		a.release(art, n)
		return fmt.Errorf("mount %s: %w", req.Reference, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	m.artifact, m.need, m.fs = art, n, fs
	// This request is a task of the agent's, so that there is room for one more.
	a.tasks.Go(func() { a.serveMount(a.running, req.Dir, m) })
	return nil
}

// serveMount serves a mount until it is gone, by whatever hand.
func (a *Agent) serveMount(ctx context.Context, dir string, m *mounted) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-m.force:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := m.fs.Run(ctx); err != nil {
		a.log.Error("serve a mount", "dir", dir, "err", err)
	}
	a.forget(dir, m)
	a.release(m.artifact, m.need)
	close(m.done)
}

// forget frees dir, unless another mount has it by now.
func (a *Agent) forget(dir string, m *mounted) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mounts[dir] == m {
		delete(a.mounts, dir)
	}
}

// Unmount takes a mount away and returns when its directory is free.
func (a *Agent) Unmount(ctx context.Context, req UnmountRequest) error {
	a.mu.Lock()
	m := a.mounts[req.Dir]
	ready := m != nil && m.fs != nil
	a.mu.Unlock()
	if !ready {
		return ui.WithHint(fmt.Errorf("unmount %s: the agent has no mount there", req.Dir), "see `spate status`")
	}
	if req.Force {
		m.once.Do(func() { close(m.force) })
	} else if err := m.fs.Unmount(); err != nil {
		return ui.WithHint(fmt.Errorf("unmount %s: %w", req.Dir, err), "close what has files open there, or use --force")
	}
	select {
	case <-m.done:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(lingering):
		a.log.Info("a mount is gone from its directory and lives on elsewhere", "dir", req.Dir)
		a.forget(req.Dir, m)
	}
	return nil
}
