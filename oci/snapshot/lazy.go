package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

// The labels of a layer's snapshot.
const (
	// What containerd tells of the layer, if it is set up to (docs/snapshotters/README.md of containerd).
	labelImage    = "containerd.io/snapshot/cri.image-ref"
	labelManifest = "containerd.io/snapshot/cri.manifest-digest"
	labelLayer    = "containerd.io/snapshot/cri.layer-digest"
	labelLayers   = "containerd.io/snapshot/cri.image-layers"

	// labelRemote marks a layer that is mounted, as other lazy snapshotters do.
	labelRemote = "containerd.io/snapshot/remote"

	// labelReason says why a layer is unpacked.
	labelReason = "containerd.io/snapshot/spate.unpacked"
)

var ownLabels = []string{
	snapshots.LabelSnapshotRef, snapshots.LabelSnapshotDiffID,
	labelImage, labelManifest, labelLayer, labelLayers, labelRemote, labelReason,
}

// keepLabels returns labels with our own as they were.
func keepLabels(old, labels map[string]string) map[string]string {
	kept := maps.Clone(labels)
	for _, key := range ownLabels {
		value, ok := old[key]
		if !ok {
			continue
		}
		if kept == nil {
			kept = map[string]string{}
		}
		kept[key] = value
	}
	return kept
}

func isLazy(info snapshots.Info) bool {
	return info.Kind == snapshots.KindCommitted && info.Labels[labelRemote] != ""
}

// request reads what layer the labels name. ok is false where containerd does
// not say: it is not set up to, or the image is pulled in a way that never does.
// r has then nothing but the chain, as it was told.
func request(labels map[string]string) (r Request, ok bool, err error) {
	if labels[labelImage] == "" || labels[labelManifest] == "" || labels[labelLayer] == "" {
		return Request{ChainID: digest.Digest(labels[snapshots.LabelSnapshotRef])}, false, nil
	}
	r.Image = labels[labelImage]
	for _, field := range []struct {
		label string
		to    *digest.Digest
	}{
		{labelManifest, &r.Manifest},
		{labelLayer, &r.Layer},
		{snapshots.LabelSnapshotRef, &r.ChainID},
		{snapshots.LabelSnapshotDiffID, &r.DiffID},
	} {
		value := labels[field.label]
		if value == "" && field.to == &r.DiffID {
			continue
		}
		if *field.to, err = digest.Parse(value); err != nil {
			return Request{}, false, fmt.Errorf("label %s=%q: %w: %w", field.label, value, err, errdefs.ErrInvalidArgument)
		}
	}
	return r, true, nil
}

// An openLayer is a layer that is mounted and whose source is open.
type openLayer struct {
	*Layer
	path Path
}

// prepareLayer makes a layer readable. Unpacked means that containerd is to do it,
// for the given reason.
func (s *Snapshotter) prepareLayer(ctx context.Context, parent string, labels map[string]string) (Path, Reason, error) {
	r, ok, err := request(labels)
	switch {
	case err != nil:
		return "", "", err
	case !ok:
		return s.unpack(r, ReasonNoLabels, nil)
	case parent == "" && r.DiffID != "" && r.DiffID != r.ChainID:
		// Layers are unpacked in any order and get their parents later, which a
		// snapshot that we commit ourselves cannot.
		return s.unpack(r, ReasonNoParent, nil)
	}
	layer, err := s.layers.Open(ctx, r)
	switch {
	case ctx.Err() != nil:
		if err == nil {
			s.closeLayer(&openLayer{Layer: layer})
		}
		return "", "", ctx.Err()
	case errors.Is(err, ErrNotIndexed):
		return s.unpack(r, ReasonNotIndexed, err)
	case errors.Is(err, ErrRefused):
		s.count(func(st *Stats) { st.Refused++ })
		s.log.Warn("image refused", "image", r.Image, "manifest", r.Manifest, "layer", r.Layer, "err", err)
		return "", "", fmt.Errorf("%s of %s: %w: %w", r.Layer, r.Image, err, errdefs.ErrPermissionDenied)
	case err != nil:
		return s.unpack(r, ReasonFailing, err)
	}
	path, err := s.attach(ctx, parent, labels, r, layer)
	var mountErr *mountError
	switch {
	case errors.As(err, &mountErr):
		return s.unpack(r, ReasonMount, err)
	case errors.Is(err, errUnproven):
		return s.unpack(r, ReasonNoLabels, err)
	case err != nil:
		return "", "", fmt.Errorf("%s of %s: %w", r.Layer, r.Image, err)
	}
	return path, "", nil
}

func (s *Snapshotter) unpack(r Request, why Reason, err error) (Path, Reason, error) {
	s.count(func(st *Stats) { st.Unpacked[why]++ })
	s.log.Warn("layer is unpacked", "reason", why, "image", r.Image, "layer", r.Layer, "chain", r.ChainID, "err", err)
	return Unpacked, why, nil
}

// attach mounts layer as the snapshot that the labels name on parent, which it
// commits unless it is there. layer is then the snapshot's, or closed.
func (s *Snapshotter) attach(ctx context.Context, parent string, labels map[string]string, r Request, layer *Layer) (path Path, err error) {
	s.change.Lock()
	defer s.change.Unlock()
	var id string
	var known, fresh bool
	err = s.store.WithTransaction(ctx, true, func(ctx context.Context) error {
		name, parentRef, err := layerName(ctx, parent, r.ChainID)
		if err != nil {
			return err
		}
		if err := checkObject(r, parent, parentRef, layer.Object); err != nil {
			return err
		}
		id, _, _, err = storage.GetInfo(ctx, name)
		if errdefs.IsNotFound(err) {
			id, err = s.commitLayer(ctx, name, parent, labels)
			fresh = err == nil
		}
		if err != nil {
			return err
		}
		if path, known = s.live(id); known {
			return nil
		}
		path, err = mountLayer(layer, s.dir(id))
		return err
	})
	if err == nil && !known {
		if old := s.replace(id, &openLayer{Layer: layer, path: path}); old != nil {
			s.closeLayer(old)
		}
		s.count(func(st *Stats) { st.Mounted[path]++ })
		s.log.Info("layer is mounted", "path", path, "image", r.Image, "layer", r.Layer, "snapshot", id)
		return path, nil
	}
	if err != nil && fresh {
		s.discard(id)
	}
	s.closeLayer(&openLayer{Layer: layer})
	return path, err
}

// layerName returns the name of the lazy snapshot of a chain on parent, and
// which chain parent is, empty when nobody said. The parent is part of the name:
// containerd asks for the pair, and the same chain may stand on another snapshot
// in another of its namespaces.
func layerName(ctx context.Context, parent string, chain digest.Digest) (name string, parentRef digest.Digest, err error) {
	if parent == "" {
		return "lazy/0/" + chain.String(), "", nil
	}
	id, info, _, err := storage.GetInfo(ctx, parent)
	if err != nil {
		return "", "", fmt.Errorf("parent %s: %w", parent, err)
	}
	return "lazy/" + id + "/" + chain.String(), digest.Digest(info.Labels[snapshots.LabelSnapshotRef]), nil
}

// errUnproven: nothing that containerd told says which object a layer holds.
var errUnproven = errors.New("neither the layer's diffID nor the chain below it is known")

// checkObject holds an object against the image's config, as containerd does
// with what it unpacks itself: by the object's digest where containerd told it,
// else by the chain's.
func checkObject(r Request, parent string, parentRef, object digest.Digest) error {
	same := r.DiffID == object
	if r.DiffID == "" {
		chain := []digest.Digest{object}
		if parent != "" {
			chain = []digest.Digest{parentRef, object}
		}
		if chain[0] == "" {
			return errUnproven
		}
		same = identity.ChainID(chain) == r.ChainID
	}
	if !same {
		return fmt.Errorf("the index says that layer %s holds %s, the image's config does not (diffID %q, chain %s): %w",
			r.Layer, object, r.DiffID, r.ChainID, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// commitLayer records the snapshot of a layer, and makes its directory.
func (s *Snapshotter) commitLayer(ctx context.Context, name, parent string, labels map[string]string) (id string, err error) {
	temporary := name + "/new"
	if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, temporary, parent); err != nil {
		return "", err
	}
	labels = maps.Clone(labels)
	labels[labelRemote] = "remote snapshot"
	id, err = storage.CommitActive(ctx, temporary, name, snapshots.Usage{}, snapshots.WithLabels(labels))
	if err != nil {
		return "", err
	}
	// No work directory, and the mount covers the owner.
	if err := s.makeDir(storage.Snapshot{ID: id, Kind: snapshots.KindCommitted}); err != nil {
		s.discard(id)
		return "", err
	}
	return id, nil
}

// A found snapshot is of a lazy layer.
type found struct {
	id   string
	info snapshots.Info
}

// ensure opens the lazy layers from the snapshot name downwards that are not,
// as after a restart.
func (s *Snapshotter) ensure(ctx context.Context, name string) error {
	var dead []found
	err := s.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		for name != "" {
			id, info, _, err := storage.GetInfo(ctx, name)
			if err != nil {
				return err
			}
			if _, ok := s.live(id); isLazy(info) && !ok {
				dead = append(dead, found{id, info})
			}
			name = info.Parent
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, f := range dead {
		if err := s.revive(ctx, f, s.layers.Open); err != nil {
			return fmt.Errorf("layer %s of %s is not readable: %w: %w", f.info.Labels[labelLayer], f.info.Labels[labelImage], err, errdefs.ErrUnavailable)
		}
	}
	return nil
}

func (s *Snapshotter) revive(ctx context.Context, f found, open func(context.Context, Request) (*Layer, error)) error {
	r, ok, err := request(f.info.Labels)
	if err != nil {
		return err
	}
	if !ok {
		return errors.New("its labels are gone")
	}
	layer, err := open(ctx, r)
	if err != nil {
		return err
	}
	_, err = s.attach(ctx, f.info.Parent, f.info.Labels, r, layer)
	return err
}

// Restore opens and mounts the lazy layers that an earlier process had, and
// takes up the mounts of theirs that the kernel still has. A layer that cannot
// be restored is logged and counted; a snapshot that needs it tries again.
// It returns how many there are and how many are open now.
func (s *Snapshotter) Restore(ctx context.Context) (open, all int, err error) {
	start := time.Now()
	var lazy []found
	err = s.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			id, _, _, err := storage.GetInfo(ctx, info.Name)
			if err == nil && isLazy(info) {
				lazy = append(lazy, found{id, info})
			}
			return err
		})
	})
	if err != nil && !errdefs.IsNotFound(err) { // not found: there never was a snapshot
		return 0, 0, fmt.Errorf("restore snapshots at %s: %w", s.root, err)
	}
	for _, f := range lazy {
		if ctx.Err() != nil {
			return open, len(lazy), fmt.Errorf("restore snapshots at %s: %w", s.root, ctx.Err())
		}
		if _, ok := s.live(f.id); !ok {
			if err := s.revive(ctx, f, s.layers.Restore); err != nil {
				s.count(func(st *Stats) { st.NotRestored++ })
				s.log.Error("layer is not restored", "image", f.info.Labels[labelImage], "layer", f.info.Labels[labelLayer], "snapshot", f.id, "err", err)
				continue
			}
		}
		open++
	}
	s.log.Info("snapshots are restored", "layers", len(lazy), "open", open, "took", time.Since(start))
	return open, len(lazy), nil
}

// live returns how the snapshot id is mounted. ok is false unless its layer is
// open and mounted.
func (s *Snapshotter) live(id string) (path Path, ok bool) {
	s.mu.Lock()
	layer := s.open[id]
	s.mu.Unlock()
	if layer == nil || !mounted(s.fs(id)) {
		return "", false
	}
	return layer.path, true
}

func (s *Snapshotter) held(id string) int64 {
	s.mu.Lock()
	layer := s.open[id]
	s.mu.Unlock()
	if layer == nil || layer.Held == nil {
		return 0
	}
	return layer.Held()
}

// replace sets the open layer of the snapshot id, or none, and returns the last one.
func (s *Snapshotter) replace(id string, layer *openLayer) *openLayer {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.open[id]
	if layer == nil {
		delete(s.open, id)
	} else {
		s.open[id] = layer
	}
	return old
}

// detach unmounts the snapshot id and returns its layer, nil if none was open.
// The caller holds s.change.
func (s *Snapshotter) detach(id string) (*openLayer, error) {
	err := unmount(s.fs(id))
	return s.replace(id, nil), err
}

func (s *Snapshotter) closeLayer(layer *openLayer) {
	if err := layer.Close(); err != nil {
		s.log.Warn("close layer", "object", layer.Object, "err", err)
	}
}
