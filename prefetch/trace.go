package prefetch

import (
	"context"
	"encoding/json"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
)

const (
	// MaxReads bounds the reads of a trace.
	MaxReads = 1 << 16

	// MaxTrace bounds a trace in a registry, in bytes.
	MaxTrace = 8 << 20

	// MaxWorkload bounds the name of a workload, in bytes.
	MaxWorkload = 256

	// traceVersion is the version of the encoding that this package writes and reads.
	traceVersion = 1
)

// A Trace is what a start of an image or model read, in the order in which it
// first did. In a registry it is a referrer of the manifest of those, of
// ArtifactTypeTrace: anybody's, so whoever loads one looks who signed it. A trace
// only says what to fetch early. It stays of use when the objects that it names
// are not all those of the manifest any more.
type Trace struct {
	Workload string // what was started, for people; may be empty
	Reads    Plan
}

// tracing is a Trace as JSON. Reads name objects by where they are in Objects.
type tracing struct {
	Version  int            `json:"version"`
	Workload string         `json:"workload,omitempty"`
	Objects  []piece.Digest `json:"objects"`
	Reads    [][3]int64     `json:"reads"` // object, offset, length
}

// MarshalJSON refuses what UnmarshalJSON would.
func (t Trace) MarshalJSON() ([]byte, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	x := tracing{Version: traceVersion, Workload: t.Workload, Objects: []piece.Digest{}, Reads: make([][3]int64, 0, len(t.Reads))}
	index := make(map[piece.Digest]int64)
	for _, r := range t.Reads {
		i, ok := index[r.Object]
		if !ok {
			i = int64(len(x.Objects))
			index[r.Object] = i
			x.Objects = append(x.Objects, r.Object)
		}
		x.Reads = append(x.Reads, [3]int64{i, r.Offset, r.Length})
	}
	return json.Marshal(x)
}

// UnmarshalJSON refuses other versions, more than the bounds of this package
// allow, and reads that no object has.
func (t *Trace) UnmarshalJSON(b []byte) error {
	if len(b) > MaxTrace {
		return fmt.Errorf("a trace of %d bytes is longer than %d", len(b), MaxTrace)
	}
	var x tracing
	if err := json.Unmarshal(b, &x); err != nil {
		return err
	}
	if x.Version != traceVersion {
		return fmt.Errorf("a trace has version %d, this program knows version %d; use a newer one", x.Version, traceVersion)
	}
	read := Trace{Workload: x.Workload, Reads: make(Plan, 0, min(len(x.Reads), MaxReads))}
	for i, r := range x.Reads[:min(len(x.Reads), MaxReads+1)] {
		if r[0] < 0 || r[0] >= int64(len(x.Objects)) {
			return fmt.Errorf("read %d of a trace is of object %d, and it lists %d", i, r[0], len(x.Objects))
		}
		read.Reads = append(read.Reads, Range{x.Objects[r[0]], r[1], r[2]})
	}
	if err := read.check(); err != nil {
		return err
	}
	*t = read
	return nil
}

func (t Trace) check() error {
	if len(t.Reads) > MaxReads {
		return fmt.Errorf("a trace has more than %d reads", MaxReads)
	}
	if len(t.Workload) > MaxWorkload {
		return fmt.Errorf("a trace is of a workload whose name has %d bytes, more than %d", len(t.Workload), MaxWorkload)
	}
	for i, r := range t.Reads {
		if !r.valid() {
			return fmt.Errorf("read %d of a trace, %d bytes at %d of %s, is in no object", i, r.Length, r.Offset, r.Object)
		}
	}
	return nil
}

// Push stores the trace as a referrer of subject, of which media type, digest and
// size are used, and returns the descriptor of the referrer's manifest, for the
// caller to sign: unsigned, nobody replays it.
func (t Trace) Push(ctx context.Context, target content.Pusher, subject ocispec.Descriptor) (ocispec.Descriptor, error) {
	b, err := json.Marshal(t)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("attach a trace to %s: %w", subject.Digest, err)
	}
	layer, err := oras.PushBytes(ctx, target, oci.MediaTypeTrace, b)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("attach a trace to %s: push its reads: %w", subject.Digest, err)
	}
	// PackManifest adds the time of creation: the newest trace counts.
	desc, err := oras.PackManifest(ctx, target, oras.PackManifestVersion1_1, oci.ArtifactTypeTrace, oras.PackManifestOptions{
		Subject: &ocispec.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
		Layers:  []ocispec.Descriptor{layer},
	})
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("attach a trace to %s: push its manifest: %w", subject.Digest, err)
	}
	return desc, nil
}

// LoadTrace reads the trace whose manifest has the given bytes, which the caller
// trusts, and fetches its reads by their digest.
func LoadTrace(ctx context.Context, fetcher content.Fetcher, manifest []byte) (Trace, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return Trace{}, fmt.Errorf("load a trace: its manifest: %w", err)
	}
	if len(m.Layers) != 1 || m.Layers[0].MediaType != oci.MediaTypeTrace {
		return Trace{}, fmt.Errorf("load a trace: its manifest has not one layer of type %s", oci.MediaTypeTrace)
	}
	if size := m.Layers[0].Size; size < 0 || size > MaxTrace {
		return Trace{}, fmt.Errorf("load a trace: it has %d bytes, more than %d", size, MaxTrace)
	}
	b, err := content.FetchAll(ctx, fetcher, m.Layers[0])
	if err != nil {
		return Trace{}, fmt.Errorf("load a trace: its reads: %w", err)
	}
	var t Trace
	if err := json.Unmarshal(b, &t); err != nil {
		return Trace{}, fmt.Errorf("load a trace: its reads: %w", err)
	}
	return t, nil
}
