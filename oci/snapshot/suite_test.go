package snapshot

import (
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
)

// TestSnapshotterSuite is containerd's own suite, over a unix socket.
func TestSnapshotterSuite(t *testing.T) {
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := New(root, newShelf(t), Options{})
		if err != nil {
			return nil, nil, err
		}
		t.Cleanup(func() { s.Close() })
		return overSocket(t, s), s.Close, nil
	})
}
