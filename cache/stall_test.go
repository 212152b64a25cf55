package cache

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spate-project/spate/cache/piece"
)

// TestStalls: the time that readers wait is counted and told of, and the source learns whose wait it is.
func TestStalls(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		type reader struct{}
		type stall struct {
			object piece.Digest
			pieces int
			took   time.Duration
			err    error
		}
		var stalls []stall
		s := openStore(t, dir, Options{
			OnStall: func(ctx context.Context, d piece.Digest, pieces int) (context.Context, func(time.Duration, error)) {
				return context.WithValue(ctx, reader{}, "a reader"), func(took time.Duration, err error) {
					stalls = append(stalls, stall{d, pieces, took, err})
				}
			},
		})
		data := content(1, 4*small)
		tree := treeOf(t, data, small)
		var o *Object
		o = openObject(t, s, tree, sourceFunc(func(ctx context.Context, _ piece.Digest, i int) error {
			if ctx.Value(reader{}) != "a reader" {
				t.Error("the source does not learn who waits")
			}
			if i == 3 {
				return piece.ErrNotTrusted
			}
			time.Sleep(time.Second)
			return putPiece(o, data, i)
		}))
		put(t, o, data, 0)

		if err := o.Ensure(t.Context(), 0, small); err != nil || len(stalls) != 0 {
			t.Fatalf("a read of what is here: %v, %+v", err, stalls)
		}
		done := make(chan error)
		go func() { done <- o.Ensure(t.Context(), 0, 3*small) }()
		synctest.Wait()
		if st := s.Stats(); st.Waiting != 1 || st.Stalls != 1 || st.StallSeconds != 0 {
			t.Errorf("while a read waits: %+v", st)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if err := o.Ensure(t.Context(), 3*small, 1); !errors.Is(err, piece.ErrNotTrusted) {
			t.Errorf("a read of what nobody may send: %v", err)
		}
		if st := s.Stats(); st.Waiting != 0 || st.Stalls != 2 || st.StallSeconds != 1 || st.Objects != 1 || st.Bytes != 3*small {
			t.Errorf("afterwards: %+v", st)
		}
		if len(stalls) != 2 || stalls[0] != (stall{tree.Object().Digest, 2, time.Second, nil}) || !errors.Is(stalls[1].err, piece.ErrNotTrusted) {
			t.Errorf("told of %+v", stalls)
		}
	})
}

type sourceFunc func(ctx context.Context, d piece.Digest, i int) error

func (sourceFunc) Ahead(piece.Digest, int, int) {}

func (f sourceFunc) Fetch(ctx context.Context, d piece.Digest, i int) error { return f(ctx, d, i) }
