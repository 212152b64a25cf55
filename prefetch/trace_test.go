package prefetch

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/memory"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
)

// TestTrace stores a trace and finds it again below its subject.
func TestTrace(t *testing.T) {
	store := memory.New()
	a, b := piece.Digest{'a'}, piece.Digest{'b'}
	want := Trace{Workload: "web", Reads: Plan{{b, 7, 9}, {a, 0, 1}, {b, 0, piece.MaxSize}}}
	subject := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("subject"), Size: 7}
	desc, err := want.Push(t.Context(), store, subject)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := content.FetchAll(t.Context(), store, desc)
	if err != nil {
		t.Fatal(err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		t.Fatal(err)
	}
	if m.ArtifactType != oci.ArtifactTypeTrace || m.Subject.Digest != subject.Digest || m.Annotations[ocispec.AnnotationCreated] == "" {
		t.Errorf("the manifest is %s", manifest)
	}
	got, err := LoadTrace(t.Context(), store, manifest)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("loaded %+v, want %+v", got, want)
	}
}

func TestTraceRefused(t *testing.T) {
	const object = `"objects":["sha256:` + "6100000000000000000000000000000000000000000000000000000000000000" + `"]`
	for _, c := range []struct{ text, want string }{
		{`{"version":2,` + object + `,"reads":[]}`, "version"},
		{`{"version":1,` + object + `,"reads":[[1,0,1]]}`, "lists 1"},
		{`{"version":1,` + object + `,"reads":[[-1,0,1]]}`, "lists 1"},
		{`{"version":1,` + object + `,"reads":[[0,-1,1]]}`, "in no object"},
		{`{"version":1,` + object + `,"reads":[[0,0,0]]}`, "in no object"},
		{`{"version":1,` + object + `,"reads":[[0,9223372036854775807,1]]}`, "in no object"},
		{`{"version":1,"workload":"` + strings.Repeat("w", MaxWorkload+1) + `","reads":[]}`, "workload"},
		{`{"version":1,` + object + `,"reads":[[0,0,1]` + strings.Repeat(",[0,0,1]", MaxReads) + `]}`, "more than"},
		{`{"version":1,` + strings.Repeat(" ", MaxTrace) + `"reads":[]}`, "longer"},
	} {
		var trace Trace
		if err := json.Unmarshal([]byte(c.text), &trace); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.100s: %v, want an error with %q", c.text, err, c.want)
		}
	}
}

// FuzzTrace: what is read as a trace is within the bounds and is written and read again as it is.
func FuzzTrace(f *testing.F) {
	f.Add([]byte(`{"version":1,"workload":"w","objects":["sha256:6100000000000000000000000000000000000000000000000000000000000000"],"reads":[[0,5,6]]}`))
	f.Add([]byte(`{"version":1,"objects":[],"reads":[[0,0,1]]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var trace Trace
		if json.Unmarshal(b, &trace) != nil {
			return
		}
		if len(trace.Reads) > MaxReads {
			t.Fatalf("it has %d reads", len(trace.Reads))
		}
		text, err := json.Marshal(trace)
		if err != nil {
			t.Fatal(err)
		}
		var again Trace
		if err := json.Unmarshal(text, &again); err != nil || !reflect.DeepEqual(again, trace) {
			t.Fatalf("%+v is read again as %+v, %v", trace, again, err)
		}
	})
}

func TestRecorder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := piece.Digest{'a'}, piece.Digest{'b'}
		r := NewRecorder(time.Minute)
		time.Sleep(time.Hour) // the time begins with the first read
		for _, read := range []Range{
			{a, 100, 50}, {b, 0, 10}, {a, 150, 50}, // the first goes on behind another's
			{a, 90, 20},             // and begins earlier
			{a, 300, 1}, {a, 90, 1}, // a gap, and what was read before
			{b, 20, 0}, // nothing
		} {
			r.Read(read.Object, read.Offset, read.Length)
		}
		time.Sleep(time.Minute)
		r.Read(b, 1000, 1)
		want := Plan{{a, 90, 110}, {b, 0, 10}, {a, 300, 1}}
		if got, full := r.Reads(); !reflect.DeepEqual(got, want) || full {
			t.Errorf("recorded %v, %v; want %v", got, full, want)
		}
	})
}

func TestRecorderFull(t *testing.T) {
	r := NewRecorder(time.Hour)
	for i, want := range []bool{false, true} {
		for k := range int64(MaxReads) {
			r.Read(piece.Digest{byte(i)}, 2*k, 1)
		}
		if reads, full := r.Reads(); len(reads) != MaxReads || full != want {
			t.Errorf("there are %d reads, full is %v; want %d, %v", len(reads), full, MaxReads, want)
		}
	}
}

// BenchmarkRecorder records eight readers that read on and on.
func BenchmarkRecorder(b *testing.B) {
	for name, lasting := range map[string]time.Duration{"recording": time.Hour, "ended": 0} {
		b.Run(name, func(b *testing.B) {
			r := NewRecorder(lasting)
			for i := 0; b.Loop(); i++ {
				r.Read(piece.Digest{byte(i % 8)}, int64(i/8)<<17, 1<<17)
			}
		})
	}
}
