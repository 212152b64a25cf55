package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"testing"

	"github.com/spate-project/spate/cache/piece"
)

// TestHintYields: whatever a hint said of a blob before, by a trusted index its
// object is read right.
func TestHintYields(t *testing.T) {
	for _, name := range []string{"wrong", "unchecked", "checked"} {
		t.Run(name, func(t *testing.T) {
			w := watchAgent(t, nil)
			admission, err := w.admit(t.Context(), w.ref, online)
			if err != nil {
				t.Fatal(err)
			}
			file := admission.Files[0]
			right, err := treeOf(admission.Index, file)
			if err != nil {
				t.Fatal(err)
			}
			tree := right
			if name == "wrong" {
				tree = otherTree(t, right)
			}
			b, err := w.hints.enter(t.Context(), tree)
			if err != nil {
				t.Fatal(err)
			}
			if name == "checked" {
				body, err := origin(admission.repo, file.Descriptor)(t.Context(), 0, file.Descriptor.Size)
				if err != nil {
					t.Fatal(err)
				}
				defer body.Close()
				fill(t, b, body)
				if err := w.hints.check(t.Context(), b); err != nil {
					t.Fatal(err)
				}
			}
			held := w.hints.held(right.Object().Digest)
			if (held != nil) != (name == "checked") {
				t.Fatalf("a blob that is %s counts as held: %v", name, held != nil)
			}

			art, err := w.open(t.Context(), w.ref, need{})
			if err != nil {
				t.Fatal(err)
			}
			defer w.release(art, need{})
			object := art.object(right.Object().Digest)
			if held != nil && object != held.object {
				t.Error("what was checked is not used by the index")
			}
			got := make([]byte, object.Size())
			if _, err := object.ReadContext(t.Context(), got, 0); err != nil {
				t.Fatal(err)
			}
			if err := right.Audit(bytes.NewReader(got)); err != nil {
				t.Error(err)
			}
			if err := b.object.Err(); (err == nil) != (held != nil) || err != nil && !errors.Is(err, fs.ErrClosed) {
				t.Errorf("the blob's object by the hint: %v", err)
			}
		})
	}
}

// TestHintWrongLeavesNothing: of a blob that did not have its digest nothing is kept.
func TestHintWrongLeavesNothing(t *testing.T) {
	w := watchAgent(t, nil)
	data := bytes.Repeat([]byte("other bytes "), 50_000)
	h := piece.NewHasher(int64(len(data)))
	h.Write(data)
	sum, err := h.Sum()
	if err != nil {
		t.Fatal(err)
	}
	o := sum.Object()
	o.Digest[0] ^= 1
	tree, err := piece.NewTree(o, sum.Layer())
	if err != nil {
		t.Fatal(err)
	}
	b, err := w.hints.enter(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, b, bytes.NewReader(data))
	var wrong *piece.WrongBytesError
	if err := w.hints.check(t.Context(), b); !errors.As(err, &wrong) {
		t.Fatalf("check: %v", err)
	}
	if w.hints.held(o.Digest) != nil || w.store.Stats().Objects != 0 || len(w.objects) != 0 {
		t.Errorf("it is open: %+v, %v", w.store.Stats(), w.objects)
	}
	if err := w.mesh.Fetch(t.Context(), o.Digest, 0); !errors.Is(err, piece.ErrNotHere) {
		t.Errorf("the mesh has it: %v", err)
	}
}

// TestHintTurns: requests for one blob come one after the other, and who waits no longer leaves.
func TestHintTurns(t *testing.T) {
	h := newHints(nil)
	first, err := h.turn(t.Context(), piece.Digest{1})
	if err != nil {
		t.Fatal(err)
	}
	if other, err := h.turn(t.Context(), piece.Digest{2}); err != nil {
		t.Error(err)
	} else {
		other()
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.turn(gone, piece.Digest{1}); !errors.Is(err, context.Canceled) {
		t.Errorf("who is gone is answered %v", err)
	}
	got := make(chan error)
	go func() {
		end, err := h.turn(t.Context(), piece.Digest{1})
		if err == nil {
			end()
		}
		got <- err
	}()
	first()
	if err := <-got; err != nil || len(h.turns) != 0 {
		t.Errorf("the next one: %v; left are %v", err, h.turns)
	}
}

// otherTree returns a tree of right's digest and size that is of other bytes.
func otherTree(t *testing.T, right *piece.Tree) *piece.Tree {
	t.Helper()
	o := right.Object()
	h := piece.NewHasher(o.Size)
	if _, err := io.CopyN(h, zeros{}, o.Size); err != nil {
		t.Fatal(err)
	}
	sum, err := h.Sum()
	if err != nil {
		t.Fatal(err)
	}
	o.PieceLength, o.Root = sum.Object().PieceLength, sum.Object().Root
	tree, err := piece.NewTree(o, sum.Layer())
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// fill puts all pieces of b's object, which r gives.
func fill(t *testing.T, b *hinted, r io.Reader) {
	t.Helper()
	tree := b.object.Tree()
	for i := range tree.Object().Pieces() {
		_, n := tree.Object().Span(i)
		p := make([]byte, n)
		if _, err := io.ReadFull(r, p); err != nil {
			t.Fatal(err)
		}
		v, err := tree.Verify(i, p)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.object.Put(v); err != nil {
			t.Fatal(err)
		}
	}
}
