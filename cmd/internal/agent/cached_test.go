package agent

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/spate-project/spate/cache"
	"github.com/spate-project/spate/cache/piece"
)

// TestEvictIdle: what nobody uses any more is shared until the cache needs its
// room; then it has left the mesh, and is opened anew and fetched again.
func TestEvictIdle(t *testing.T) {
	w := watchAgent(t, nil)
	art, err := w.open(t.Context(), w.ref, need{})
	if err != nil {
		t.Fatal(err)
	}
	readArtifact(t, art)
	if err := w.SetQuota(1); !isQuota(err) {
		t.Errorf("a quota of less than is in use: %v", err)
	}
	w.release(art, need{})
	object := art.files[0].object
	again, err := w.open(t.Context(), w.ref, need{})
	if err != nil || again != art || object.Err() != nil {
		t.Fatalf("what nobody used for a while was given up: %v, %v", err, object.Err())
	}
	w.release(again, need{})

	if err := w.SetQuota(1); err != nil {
		t.Fatal(err)
	}
	if err := object.Err(); !errors.Is(err, cache.ErrEvicted) {
		t.Errorf("what was evicted says %v", err)
	}
	if v := w.Cache(); v.Used != 0 || len(v.Objects) > 0 {
		t.Errorf("%+v is in the cache", v)
	}
	w.mu.Lock()
	artifacts, objects := len(w.artifacts), len(w.objects)
	w.mu.Unlock()
	if artifacts > 0 || objects > 0 {
		t.Errorf("%d artifacts and %d objects are open", artifacts, objects)
	}
	if err := w.mesh.Fetch(t.Context(), object.Tree().Object().Digest, 0); !errors.Is(err, piece.ErrNotHere) {
		t.Errorf("the mesh has it: %v", err)
	}

	if err := w.SetQuota(0); err != nil {
		t.Fatal(err)
	}
	anew, err := w.open(t.Context(), w.ref, need{})
	if err != nil || anew == art {
		t.Fatalf("opened anew: %v", err)
	}
	defer w.release(anew, need{})
	readArtifact(t, anew)
}

// TestEvictHinted: a blob that came by a hint may be evicted when nobody reads it.
func TestEvictHinted(t *testing.T) {
	w := watchAgent(t, nil)
	data := bytes.Repeat([]byte("bytes of a blob "), 40_000)
	h := piece.NewHasher(int64(len(data)))
	h.Write(data)
	tree, err := h.Sum()
	if err != nil {
		t.Fatal(err)
	}
	d := tree.Object().Digest
	b, err := w.hints.enter(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, b, bytes.NewReader(data))
	if err := w.hints.check(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if err := w.SetQuota(1); !isQuota(err) {
		t.Errorf("a quota of less than is in use: %v", err)
	}
	w.hints.release(b)
	if got := w.hints.held(d); got != b {
		t.Fatal("a blob that nobody read for a while was given up")
	}
	got, err := io.ReadAll(io.NewSectionReader(b.object, 0, b.object.Size()))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("read: %v", err)
	}
	w.hints.release(b)
	if err := w.SetQuota(1); err != nil {
		t.Fatal(err)
	}
	if got := w.hints.held(d); got != nil {
		t.Error("an evicted blob counts as held")
	}
	w.Cache() // which lets go of what was evicted
	w.mu.Lock()
	objects, blobs := len(w.objects), len(w.hints.blobs)
	w.mu.Unlock()
	if objects > 0 || blobs > 0 {
		t.Errorf("%d objects and %d blobs are open", objects, blobs)
	}
}

func isQuota(err error) bool {
	_, ok := errors.AsType[*cache.QuotaError](err)
	return ok
}

// readArtifact reads every file of art, which fetches it.
func readArtifact(t *testing.T, art *artifact) {
	t.Helper()
	for _, f := range art.files {
		if err := f.object.Ensure(t.Context(), 0, f.object.Size()); err != nil {
			t.Fatal(err)
		}
	}
}
