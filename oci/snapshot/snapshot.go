// Package snapshot is a containerd snapshotter whose layers need not be here.
//
// It is an overlayfs snapshotter. A layer that an index proves is not unpacked
// but mounted: EROFS metadata, complete, over the layer's object, whose bytes
// may still be on their way. Every other layer containerd fetches and unpacks as
// it does with its own snapshotters. Which of the two a layer is, and why, is
// logged, counted (Stats) and listed (List).
//
// On disk, under the root:
//
//	metadata.db          the snapshots, by containerd's storage package
//	snapshots/ID/fs      an unpacked layer, a container's upper directory, or
//	                     the mount point of a lazy layer
//	snapshots/ID/work    overlayfs's own, of a writable snapshot
//	snapshots/ID/mount   of a lazy layer: how it was mounted, and from which file
//
// A snapshot is there once the database says so. A directory that it does not
// know is what a crash left, and is removed by Cleanup or by the next snapshot
// of that ID. A mount of the kernel's survives this process; Restore takes it up
// again.
package snapshot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/continuity/fs"
	"github.com/opencontainers/go-digest"
)

// What Layers answers beside a layer. Every other error means that a source
// fails at the moment.
var (
	// ErrNotIndexed: no index of the image that is trusted. The layer is unpacked.
	ErrNotIndexed = errors.New("not indexed")

	// ErrRefused: the policy does not admit the image. The pull fails.
	ErrRefused = errors.New("not trusted")
)

// A Request names a layer.
type Request struct {
	Image    string        // the reference that is pulled, as containerd has it
	Manifest digest.Digest // of the manifest for this platform
	Layer    digest.Digest // of the blob
	DiffID   digest.Digest // of the object, as the image's config has it; empty from a containerd before 2.4
	ChainID  digest.Digest // of this layer and those below it
}

// A Layer is open: its files are readable as long as it is not closed.
type Layer struct {
	Object   digest.Digest // what Device holds
	Metadata string        // path of the EROFS metadata, complete
	Device   string        // path of the file with the object's bytes
	Held     func() int64  // how many of them are on this disk; nil counts as none
	Close    func() error  // ends the fetching; called once
}

// Layers finds the layers of images. Several opens of one layer may be open at
// once. It is safe for concurrent use.
type Layers interface {
	// Open makes a layer readable. It bounds its own time, within the context's,
	// which governs the opening alone.
	// Errors: ErrNotIndexed, ErrRefused.
	Open(ctx context.Context, r Request) (*Layer, error)

	// Restore is Open for a layer that was open before this process started. It
	// takes what is on this node and asks no registry.
	Restore(ctx context.Context, r Request) (*Layer, error)
}

// Options of a Snapshotter. The zero value is ready to use.
type Options struct {
	Logger *slog.Logger // nil: silent
}

// A Snapshotter is a containerd snapshotter and a Cleaner. It is safe for
// concurrent use.
type Snapshotter struct {
	root    string
	layers  Layers
	log     *slog.Logger
	store   *storage.MetaStore
	options []string // of every overlay mount

	// change is held while snapshots and their directories change: longer than
	// the store's transaction, so that a directory is gone before its ID is given again.
	change sync.Mutex

	mu    sync.Mutex            // guards the rest
	open  map[string]*openLayer // by snapshot ID
	stats Stats
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New opens the snapshotter whose state is under root, a directory that only one
// process uses at a time. It mounts nothing: until Restore has run, a snapshot
// on a lazy layer of an earlier process waits for that layer to be opened anew.
func New(root string, layers Layers, opts Options) (*Snapshotter, error) {
	s, err := open(root, layers, opts)
	if err != nil {
		return nil, fmt.Errorf("open snapshotter at %s: %w", root, err)
	}
	return s, nil
}

func open(root string, layers Layers, opts Options) (*Snapshotter, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(root, "snapshots"), 0o700); err != nil {
		return nil, err
	}
	if ok, err := fs.SupportsDType(root); err != nil {
		return nil, err
	} else if !ok {
		return nil, errors.New("the file system tells no file types in directories (d_type), which overlayfs needs")
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Snapshotter{
		root:   root,
		layers: layers,
		log:    opts.Logger,
		open:   map[string]*openLayer{},
		stats:  Stats{Mounted: map[Path]int64{}, Unpacked: map[Reason]int64{}},
	}
	if userxattr, err := overlayutils.NeedsUserXAttr(root); err != nil {
		return nil, err
	} else if userxattr {
		s.options = append(s.options, "userxattr")
	}
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil {
		s.options = append(s.options, "index=off")
	}
	s.store, err = storage.NewMetaStore(filepath.Join(root, "metadata.db"))
	return s, err
}

// Close closes the store. Mounts stay, so that containers run on, and so do the
// layers.
func (s *Snapshotter) Close() error { return s.store.Close() }

// Stat returns what is known of a snapshot.
func (s *Snapshotter) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = s.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	return info, err
}

// Update sets labels. Those by which a layer is found again stay as they are.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (updated snapshots.Info, err error) {
	err = s.store.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, old, _, err := storage.GetInfo(ctx, info.Name)
		if err != nil {
			return err
		}
		info.Labels = keepLabels(old.Labels, info.Labels)
		updated, err = storage.UpdateInfo(ctx, info, fieldpaths...)
		return err
	})
	return updated, err
}

// Usage returns the disk space of a snapshot without its parents: of a lazy
// layer what its object takes up at the moment.
func (s *Snapshotter) Usage(ctx context.Context, key string) (usage snapshots.Usage, err error) {
	var id string
	var info snapshots.Info
	err = s.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		id, info, usage, err = storage.GetInfo(ctx, key)
		return err
	})
	switch {
	case err != nil:
		return usage, err
	case isLazy(info):
		return snapshots.Usage{Size: s.held(id)}, nil
	case info.Kind == snapshots.KindActive:
		du, err := fs.DiskUsage(ctx, s.fs(id))
		return snapshots.Usage(du), err
	}
	return usage, nil
}

// Walk calls fn for every snapshot that one of the filters admits.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	return s.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, fn, filters...)
	})
}

// Mounts returns the mounts of an active snapshot or a view.
// Errors: errdefs.ErrUnavailable when a layer below it cannot be opened.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	var snapshot storage.Snapshot
	var info snapshots.Info
	if err := s.store.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		if snapshot, err = storage.GetSnapshot(ctx, key); err != nil {
			return err
		}
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	}); err != nil {
		return nil, fmt.Errorf("mounts of snapshot %s: %w", key, err)
	}
	if err := s.ensure(ctx, info.Parent); err != nil {
		return nil, fmt.Errorf("mounts of snapshot %s: %w", key, err)
	}
	return s.mounts(snapshot), nil
}

// Commit makes an active snapshot one that others may stand on.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	err := s.store.WithTransaction(ctx, true, func(ctx context.Context) error {
		id, info, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return err
		}
		usage, err := fs.DiskUsage(ctx, s.fs(id))
		if err != nil {
			return err
		}
		if reason := info.Labels[labelReason]; reason != "" {
			opts = append(opts, snapshots.WithLabels(map[string]string{labelReason: reason}))
		}
		_, err = storage.CommitActive(ctx, key, name, snapshots.Usage(usage), opts...)
		return err
	})
	if err != nil {
		return fmt.Errorf("commit snapshot %s as %s: %w", key, name, err)
	}
	return nil
}

// Remove forgets a snapshot that none stands on. Cleanup frees what it held.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	err := s.store.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, _, err := storage.Remove(ctx, key)
		return err
	})
	if err != nil {
		return fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	return nil
}

func (s *Snapshotter) dir(id string) string  { return filepath.Join(s.root, "snapshots", id) }
func (s *Snapshotter) fs(id string) string   { return filepath.Join(s.dir(id), "fs") }
func (s *Snapshotter) work(id string) string { return filepath.Join(s.dir(id), "work") }
