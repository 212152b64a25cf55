package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// Prepare makes a writable snapshot on parent. Asked for a layer of an image,
// with the label containerd.io/snapshot.ref, it mounts that layer if it can,
// commits it as a snapshot of its own with that label and the same parent, and
// answers errdefs.ErrAlreadyExists, which tells containerd to fetch nothing.
// Errors: errdefs.ErrUnavailable when a layer below cannot be opened,
// errdefs.ErrPermissionDenied when the policy refuses the image.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	var base snapshots.Info
	for _, opt := range opts {
		if err := opt(&base); err != nil {
			return nil, err
		}
	}
	if ref := base.Labels[snapshots.LabelSnapshotRef]; ref != "" {
		path, reason, err := s.prepareLayer(ctx, parent, base.Labels)
		if err != nil {
			return nil, fmt.Errorf("prepare layer %s: %w", ref, err)
		}
		if path != Unpacked {
			return nil, fmt.Errorf("prepare layer %s: mounted: %w", ref, errdefs.ErrAlreadyExists)
		}
		opts = append(opts, snapshots.WithLabels(map[string]string{labelReason: string(reason)}))
	}
	return s.create(ctx, snapshots.KindActive, key, parent, opts)
}

// View makes a read-only snapshot on parent.
// Errors: errdefs.ErrUnavailable when a layer below cannot be opened.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindView, key, parent, opts)
}

func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) ([]mount.Mount, error) {
	if err := s.ensure(ctx, parent); err != nil {
		return nil, fmt.Errorf("create snapshot %s on %s: %w", key, parent, err)
	}
	s.change.Lock()
	defer s.change.Unlock()
	var snapshot storage.Snapshot
	err := s.store.WithTransaction(ctx, true, func(ctx context.Context) (err error) {
		if snapshot, err = storage.CreateSnapshot(ctx, kind, key, parent, opts...); err != nil {
			return err
		}
		return s.makeDir(snapshot)
	})
	if err != nil {
		if snapshot.ID != "" {
			s.discard(snapshot.ID)
		}
		return nil, fmt.Errorf("create snapshot %s on %q: %w", key, parent, err)
	}
	return s.mounts(snapshot), nil
}

// makeDir makes the directories of a snapshot. Its root belongs to whom the
// parent's does.
func (s *Snapshotter) makeDir(snapshot storage.Snapshot) error {
	dir := s.dir(snapshot.ID)
	if err := os.Mkdir(dir, 0o700); errors.Is(err, fs.ErrExist) {
		// Left by a crash before its transaction was committed.
		s.discard(snapshot.ID)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if err := os.Mkdir(s.fs(snapshot.ID), 0o755); err != nil {
		return err
	}
	if snapshot.Kind == snapshots.KindActive {
		if err := os.Mkdir(s.work(snapshot.ID), 0o711); err != nil {
			return err
		}
	}
	if len(snapshot.ParentIDs) == 0 {
		return nil
	}
	fi, err := os.Stat(s.fs(snapshot.ParentIDs[0]))
	if err != nil {
		return err
	}
	owner := fi.Sys().(*syscall.Stat_t)
	return os.Lchown(s.fs(snapshot.ID), int(owner.Uid), int(owner.Gid))
}

// mounts says how to mount a snapshot. The length of the lower directories is
// no limit: containerd shortens them when it mounts.
func (s *Snapshotter) mounts(snapshot storage.Snapshot) []mount.Mount {
	bind := func(id, access string) []mount.Mount {
		return []mount.Mount{{Type: "bind", Source: s.fs(id), Options: []string{access, "rbind"}}}
	}
	view := snapshot.Kind == snapshots.KindView
	switch {
	case len(snapshot.ParentIDs) == 0 && view:
		return bind(snapshot.ID, "ro")
	case len(snapshot.ParentIDs) == 0:
		return bind(snapshot.ID, "rw")
	case len(snapshot.ParentIDs) == 1 && view:
		return bind(snapshot.ParentIDs[0], "ro")
	}
	var options []string
	if !view {
		options = append(options, "workdir="+s.work(snapshot.ID), "upperdir="+s.fs(snapshot.ID))
	}
	lower := make([]string, len(snapshot.ParentIDs))
	for i, id := range snapshot.ParentIDs {
		lower[i] = s.fs(id)
	}
	options = append(options, "lowerdir="+strings.Join(lower, ":"))
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: append(options, s.options...)}}
}

// Cleanup frees what removed snapshots held: it unmounts and closes lazy layers
// and removes directories. What cannot be freed is logged and tried again by
// the next Cleanup.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	if err := s.cleanup(ctx); err != nil {
		return fmt.Errorf("clean up snapshots: %w", err)
	}
	return nil
}

func (s *Snapshotter) cleanup(ctx context.Context) error {
	trash := filepath.Join(s.root, "removed")
	if err := os.MkdirAll(trash, 0o700); err != nil {
		return err
	}
	orphans, err := s.orphans(ctx, trash)
	// Neither the end of a fetch nor a large directory holds up other snapshots.
	for _, layer := range orphans {
		s.closeLayer(layer)
	}
	return errors.Join(err, os.RemoveAll(trash))
}

// orphans unmounts what is of no snapshot, moves it to the folder trash and
// returns the layers that were open there.
func (s *Snapshotter) orphans(ctx context.Context, trash string) (layers []*openLayer, err error) {
	s.change.Lock()
	defer s.change.Unlock()
	var ids map[string]string
	err = s.store.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		ids, err = storage.IDMap(ctx)
		return err
	})
	if err != nil && !errdefs.IsNotFound(err) { // not found: there never was a snapshot
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(s.root, "snapshots"))
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		id := entry.Name()
		if _, ok := ids[id]; ok {
			continue
		}
		layer, err := s.detach(id)
		if layer != nil {
			layers = append(layers, layer)
		}
		if err == nil {
			err = moveInto(trash, s.dir(id))
		}
		if err != nil {
			s.log.Warn("the directory of a removed snapshot stays", "dir", s.dir(id), "err", err)
		}
	}
	return layers, nil
}

// moveInto moves dir to a fresh name in the folder trash: an ID may come there twice.
func moveInto(trash, dir string) error {
	to, err := os.MkdirTemp(trash, "")
	if err != nil {
		return err
	}
	return os.Rename(dir, filepath.Join(to, filepath.Base(dir)))
}

// discard frees at once all that the snapshot id held: one whose making failed.
// The caller holds s.change.
func (s *Snapshotter) discard(id string) {
	layer, err := s.detach(id)
	if layer != nil {
		s.closeLayer(layer)
	}
	if err == nil {
		err = os.RemoveAll(s.dir(id))
	}
	if err != nil {
		s.log.Warn("the directory of a removed snapshot stays", "dir", s.dir(id), "err", err)
	}
}
