package snapshot

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// TestSnapshotterUnpacked: every reason for which a layer is left to containerd is logged, counted and listed.
func TestSnapshotterUnpacked(t *testing.T) {
	shelf := newShelf(t)
	object, _ := shelf.put(map[string]string{"a": "a"})
	damaged, _ := shelf.put(map[string]string{"b": "b"})
	if err := os.WriteFile(shelf.layers[damaged].Metadata, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	comma, _ := shelf.put(map[string]string{"c": "c"})
	shelf.layers[comma].Device += ",a"
	if err := os.WriteFile(shelf.layers[comma].Device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	gone, _ := shelf.put(map[string]string{"d": "d"})
	if err := os.Remove(shelf.layers[gone].Device); err != nil {
		t.Fatal(err)
	}
	other := digest.FromString("other")
	for _, test := range []struct {
		name   string
		labels map[string]string
		answer error
		reason Reason
	}{
		{"no labels", map[string]string{snapshots.LabelSnapshotRef: object.String()}, nil, ReasonNoLabels},
		{"no manifest", without(layerLabels(object), labelManifest), nil, ReasonNoLabels},
		{"out of order", layerLabels(other, object), nil, ReasonNoParent},
		{"not indexed", layerLabels(other), nil, ReasonNotIndexed},
		{"failing", layerLabels(object), errors.New("the registry is asleep"), ReasonFailing},
		{"damaged metadata", layerLabels(damaged), nil, ReasonMount},
		{"comma", layerLabels(comma), nil, ReasonMount},
		{"no device", layerLabels(gone), nil, ReasonMount},
	} {
		t.Run(test.name, func(t *testing.T) {
			shelf.setRefuse(test.answer)
			var log bytes.Buffer
			s := openSnapshotter(t, t.TempDir(), shelf)
			s.log = slog.New(slog.NewTextHandler(&log, nil))
			name := unpack(t, s, "layer", "", map[string]string{"file": "content"}, test.labels)
			mounts, err := s.View(ctx, "view", name)
			if err != nil {
				t.Fatal(err)
			}
			wantFiles(t, mounts, map[string]string{"file": "content"})
			if got := s.Stats(); !maps.Equal(got.Unpacked, map[Reason]int64{test.reason: 1}) || len(got.Mounted) != 0 {
				t.Errorf("stats are %+v, want one of %s", got, test.reason)
			}
			list, err := s.List(ctx)
			if err != nil || len(list) != 1 || list[0].Path != Unpacked || list[0].Reason != test.reason {
				t.Errorf("listed is %+v, %v, want one of %s", list, err, test.reason)
			}
			if !strings.Contains(log.String(), "layer is unpacked") || !strings.Contains(log.String(), string(test.reason)) {
				t.Errorf("the log has no word of it: %s", &log)
			}
			if n := shelf.open(); n != 0 {
				t.Errorf("%d layers are open, want none", n)
			}
		})
	}
}

func without(labels map[string]string, key string) map[string]string {
	delete(labels, key)
	return labels
}

// TestSnapshotterErrors: what containerd is told where a pull must fail.
func TestSnapshotterErrors(t *testing.T) {
	shelf := newShelf(t)
	object, _ := shelf.put(map[string]string{"a": "a"})
	// A blob whose index lies about what is in it.
	blob := digest.FromString("blob")
	shelf.set(blob, digest.FromString("something else"), map[string]string{"a": "evil"})
	lying := layerLabels(object)
	lying[labelLayer] = blob.String()
	lyingOld := without(maps.Clone(lying), snapshots.LabelSnapshotDiffID)
	malformed := layerLabels(object)
	malformed[labelLayer] = "sha256:short"
	for _, test := range []struct {
		name   string
		labels map[string]string
		parent string
		answer error
		is     func(error) bool
		text   string
	}{
		{"refused", layerLabels(object), "", ErrRefused, errdefs.IsPermissionDenied, image},
		{"wrong object", lying, "", nil, errdefs.IsFailedPrecondition, "the index says"},
		{"wrong object, no diffID", lyingOld, "", nil, errdefs.IsFailedPrecondition, "the index says"},
		{"malformed label", malformed, "", nil, errdefs.IsInvalidArgument, "sha256:short"},
		{"no such parent", layerLabels(object), "nowhere", nil, errdefs.IsNotFound, "nowhere"},
	} {
		t.Run(test.name, func(t *testing.T) {
			shelf.setRefuse(test.answer)
			s := openSnapshotter(t, t.TempDir(), shelf)
			_, err := overSocket(t, s).Prepare(ctx, "extract", test.parent, snapshots.WithLabels(test.labels))
			if !test.is(err) || !strings.Contains(err.Error(), test.text) || !strings.Contains(err.Error(), "prepare layer "+object.String()) {
				t.Errorf("prepare: %v", err)
			}
			if test.answer == ErrRefused && s.Stats().Refused != 1 {
				t.Errorf("stats are %+v", s.Stats())
			}
			wantClean(t, s, shelf)
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		shelf.setRefuse(nil)
		s := openSnapshotter(t, t.TempDir(), shelf)
		gone, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := s.Prepare(gone, "extract", "", snapshots.WithLabels(layerLabels(object))); !errors.Is(err, context.Canceled) {
			t.Errorf("prepare: %v", err)
		}
		wantClean(t, s, shelf)
	})
	t.Run("no such parent of a container", func(t *testing.T) {
		s := openSnapshotter(t, t.TempDir(), shelf)
		if _, err := s.Prepare(ctx, "container", "nowhere"); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "create snapshot container") {
			t.Errorf("prepare: %v", err)
		}
	})
	t.Run("socket", func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(name); err == nil || !strings.Contains(err.Error(), "listen on "+name) {
			t.Errorf("listen on a file: %v", err)
		}
	})
	t.Run("root", func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := New(name, shelf, Options{}); err == nil || !strings.Contains(err.Error(), "open snapshotter at "+name) {
			t.Errorf("open at a file: %v", err)
		}
	})
}
