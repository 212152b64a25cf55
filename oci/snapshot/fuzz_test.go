package snapshot

import (
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// FuzzRequest: labels name a layer wholly, or not at all.
func FuzzRequest(f *testing.F) {
	sum := digest.FromString("x").String()
	f.Add(image, sum, sum, sum, sum)
	f.Add(image, sum, sum, sum, "")
	f.Add("", "", "", sum, "")
	f.Add(image, "sha256:", sum, sum, "sha512:00")
	f.Fuzz(func(t *testing.T, image, manifest, layer, ref, diffID string) {
		r, ok, err := request(map[string]string{
			labelImage: image, labelManifest: manifest, labelLayer: layer,
			snapshots.LabelSnapshotRef: ref, snapshots.LabelSnapshotDiffID: diffID,
		})
		if err != nil {
			if ok || !errdefs.IsInvalidArgument(err) {
				t.Fatalf("ok %v, %v", ok, err)
			}
			return
		}
		if !ok {
			if image != "" && manifest != "" && layer != "" {
				t.Fatal("nothing is missing")
			}
			return
		}
		for _, d := range []digest.Digest{r.Manifest, r.Layer, r.ChainID} {
			if err := d.Validate(); err != nil {
				t.Fatalf("%+v: %v", r, err)
			}
		}
		if r.Image != image || r.DiffID.String() != diffID {
			t.Fatalf("%+v", r)
		}
	})
}
