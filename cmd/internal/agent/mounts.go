package agent

import (
	"context"
	"fmt"
	"sync"

	"github.com/spate-project/spate/cache/mount"
	"github.com/spate-project/spate/cmd/internal/ui"
)

// A mounted is a mount of this agent.
type mounted struct {
	artifact *artifact
	fs       *mount.FS
	once     sync.Once
	force    chan struct{} // closed to unmount by force
	done     chan struct{} // closed when it is gone
}

// Mount shows a reference at a directory and returns when it can be read.
func (a *Agent) Mount(ctx context.Context, req MountRequest) error {
	a.mu.Lock()
	_, taken := a.mounts[req.Dir]
	a.mu.Unlock()
	if taken {
		return inUse(req.Dir)
	}
	art, err := a.open(ctx, req.Reference, !req.Lazy)
	if err != nil {
		return err
	}
	entries := make([]mount.Entry, 0, len(art.files))
	for _, f := range art.files {
		entries = append(entries, mount.Entry{Path: f.Path, Mode: f.Mode, File: f.object})
	}
	fs, err := mount.New(entries, mount.Options{Logger: a.log})
	if err == nil {
		err = fs.Mount(req.Dir)
	}
	if err != nil {
		a.release(art)
		return fmt.Errorf("mount %s: %w", req.Reference, err)
	}
	m := &mounted{artifact: art, fs: fs, force: make(chan struct{}), done: make(chan struct{})}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mounts[req.Dir] = m
	a.tasks(func(ctx context.Context) { a.serveMount(ctx, req.Dir, m) })
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
	a.mu.Lock()
	delete(a.mounts, dir)
	a.mu.Unlock()
	a.release(m.artifact)
	close(m.done)
}

// Unmount takes a mount away and returns when it is gone.
func (a *Agent) Unmount(req UnmountRequest) error {
	a.mu.Lock()
	m := a.mounts[req.Dir]
	a.mu.Unlock()
	if m == nil {
		return ui.WithHint(fmt.Errorf("unmount %s: the agent has no mount there", req.Dir), "see `spate status`")
	}
	if req.Force {
		m.once.Do(func() { close(m.force) })
	} else if err := m.fs.Unmount(); err != nil {
		return ui.WithHint(fmt.Errorf("unmount %s: %w", req.Dir, err), "close what has files open there, or use --force")
	}
	<-m.done
	return nil
}

func inUse(dir string) error {
	return ui.WithHint(fmt.Errorf("mount: %s is in use by another mount of this agent", dir),
		"choose another directory, or `spate umount` it first")
}
