package snapshot

import (
	"context"
	"fmt"
	"maps"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// A Path is how a layer became readable.
type Path string

const (
	LazyFile Path = "lazy-file" // EROFS over two files
	LazyLoop Path = "lazy-loop" // EROFS over two loop devices
	Unpacked Path = "unpacked"  // fetched and unpacked by containerd
)

// A Reason says why a layer of an image is unpacked.
type Reason string

const (
	ReasonNoLabels   Reason = "no-labels"   // containerd does not tell which image a layer is of
	ReasonNoParent   Reason = "no-parent"   // containerd unpacks layers before those below them
	ReasonNotIndexed Reason = "not-indexed" // ErrNotIndexed
	ReasonFailing    Reason = "failing"     // Layers failed otherwise
	ReasonMount      Reason = "mount"       // the kernel did not mount it
)

// Reasons returns all of them.
func Reasons() []Reason {
	return []Reason{ReasonNoLabels, ReasonNoParent, ReasonNotIndexed, ReasonFailing, ReasonMount}
}

// Stats counts what became of layers since New.
type Stats struct {
	Mounted     map[Path]int64   // those that were mounted, also when restored
	Unpacked    map[Reason]int64 // those that containerd was left to unpack
	Refused     int64            // those that the policy did not admit
	NotRestored int64            // those that Restore could not open
}

// Stats returns the counts.
func (s *Snapshotter) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Mounted, st.Unpacked = maps.Clone(st.Mounted), maps.Clone(st.Unpacked)
	return st
}

func (s *Snapshotter) count(change func(*Stats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.stats)
}

// A Status is what there is to say of a committed snapshot. Fields that
// containerd did not tell are empty.
type Status struct {
	Name    string // in the store
	ID      string // of its directory
	ChainID string
	Image   string
	Layer   string // digest of the blob
	Path    Path   // empty of a lazy layer that is not open
	Reason  Reason // of an unpacked layer
	Open    bool   // false of a lazy layer that was not restored
	Held    int64  // bytes on this disk
}

// List returns the committed snapshots, sorted by name.
func (s *Snapshotter) List(ctx context.Context) ([]Status, error) {
	var list []Status
	err := s.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			if info.Kind != snapshots.KindCommitted {
				return nil
			}
			id, _, usage, err := storage.GetInfo(ctx, info.Name)
			if err != nil {
				return err
			}
			st := Status{
				Name:    info.Name,
				ID:      id,
				ChainID: info.Labels[snapshots.LabelSnapshotRef],
				Image:   info.Labels[labelImage],
				Layer:   info.Labels[labelLayer],
				Path:    Unpacked,
				Reason:  Reason(info.Labels[labelReason]),
				Open:    true,
				Held:    usage.Size,
			}
			if isLazy(info) {
				st.Path, st.Open = s.live(id)
				st.Held = s.held(id)
			}
			list = append(list, st)
			return nil
		})
	})
	if err != nil && !errdefs.IsNotFound(err) { // not found: there never was a snapshot
		return nil, fmt.Errorf("list snapshots at %s: %w", s.root, err)
	}
	return list, nil
}
