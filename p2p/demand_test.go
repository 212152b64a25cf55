package p2p_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/p2ptest"
	"github.com/spate-project/spate/p2p/tracker"
)

func TestFetch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, n := &origin{}, newNode(t, "a", nil)
		n.join(t, o, false)
		if err := n.Fetch(t.Context(), id, 11); err != nil {
			t.Fatal(err)
		}
		if !n.holding.Has(11) {
			t.Fatal("Fetch returned nil but the piece is not there")
		}
		// A fetch that is served already asks nobody.
		asked := o.asked.Load()
		if err := n.Fetch(t.Context(), id, 11); err != nil || o.asked.Load() != asked {
			t.Errorf("fetched again: %v, with %d requests", err, o.asked.Load()-asked)
		}
		time.Sleep(time.Hour)
		if got := n.holding.Count(); got > 2 { // a lease is of two pieces
			t.Errorf("%d pieces came where one was read", got)
		}
		if err := n.Fetch(t.Context(), id, tree.Object().Pieces()-1); err != nil {
			t.Errorf("fetch the last piece: %v", err)
		}
		for _, i := range []int{-1, tree.Object().Pieces()} {
			if err := n.Fetch(t.Context(), id, i); err == nil {
				t.Errorf("there is no piece %d, but it is fetched", i)
			}
		}
		if err := n.Fetch(t.Context(), piece.Digest{}, 0); !errors.Is(err, piece.ErrNotHere) {
			t.Errorf("fetch of an object that is not in the mesh: %v, want piece.ErrNotHere", err)
		}
	})
}

// A halting origin sends a piece of each range at once and the rest on release.
type halting struct {
	origin
	release chan struct{}
}

func (h *halting) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	body, err := h.origin.Range(ctx, off, n)
	if err != nil {
		return nil, err
	}
	rest := readerFunc(func(p []byte) (int, error) {
		select {
		case <-h.release:
			return body.Read(p)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	})
	return io.NopCloser(io.MultiReader(io.LimitReader(body, piece.MinLength), rest)), nil
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestFetchReturns: a reader does not wait for what is drawn with its piece, which
// comes all the same, once, unless the object leaves the mesh or the mesh ends.
func TestFetchReturns(t *testing.T) {
	for _, end := range []string{"comes", "leaves", "ends"} {
		t.Run(end, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				o, n := &halting{release: make(chan struct{})}, newNode(t, "a", nil)
				n.join(t, o, false)
				start := time.Now()
				ctx, cancel := context.WithCancel(t.Context())
				if err := n.Fetch(ctx, id, 5); err != nil || time.Since(start) > time.Second {
					t.Errorf("%v after %v", err, time.Since(start))
				}
				cancel()
				n.is(t, 5)
				switch end {
				case "comes":
					close(o.release)
					synctest.Wait()
					n.is(t, 5, 6)
					if err := n.Fetch(t.Context(), id, 6); err != nil || o.asked.Load() != 1 {
						t.Errorf("%v, %d requests", err, o.asked.Load())
					}
				case "leaves":
					n.Leave(id)
				case "ends":
					n.stop()
					if err := n.Fetch(t.Context(), id, 9); err != nil {
						t.Errorf("after the end: %v", err)
					}
				}
				synctest.Wait()
			})
		})
	}
}

// TestFetchOnce: however many read the same pieces, the origin sends each once.
func TestFetchOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, n := &origin{}, newNode(t, "a", nil)
		o.fails(func(context.Context, int) error {
			time.Sleep(100 * time.Millisecond)
			return nil
		})
		n.join(t, o, false)
		var readers sync.WaitGroup
		for i := range tree.Object().Pieces() {
			for range 3 {
				readers.Go(func() {
					if err := n.Fetch(t.Context(), id, i); err != nil {
						t.Errorf("piece %d: %v", i, err)
					}
				})
			}
		}
		readers.Wait()
		if o.copies() > 1 {
			t.Errorf("the origin sent %.2f copies to one node", o.copies())
		}
	})
}

// TestFetchBeforeRun: a reader is served also where nothing announces the node.
func TestFetchBeforeRun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := p2p.New(p2p.Options{Node: "a", Logger: quiet()})
		h := p2ptest.NewHolding(tree)
		if err := m.Join(h, p2p.JoinOptions{Origin: &origin{}}); err != nil {
			t.Fatal(err)
		}
		if err := m.Fetch(t.Context(), id, 3); err != nil || !h.Has(3) {
			t.Errorf("%v", err)
		}
	})
}

func TestFetchCancelled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, n := &origin{}, newNode(t, "a", nil)
		n.join(t, o, false)
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if err := n.Fetch(gone, id, 0); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want context.Canceled", err)
		}

		o.fails(func(ctx context.Context, _ int) error {
			<-ctx.Done()
			return ctx.Err()
		})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		err := n.Fetch(ctx, id, 0)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Errorf("%v after %v, want context.DeadlineExceeded after 3 s", err, time.Since(start))
		}
		for _, says := range []string{"piece 0", id.String()} {
			if !strings.Contains(fmt.Sprint(err), says) {
				t.Errorf("%q does not name %s", err, says)
			}
		}
		// What it had leased is free for others soon, not when the lease is over.
		o.fails(nil)
		start = time.Now()
		if err := n.Fetch(t.Context(), id, 0); err != nil || time.Since(start) > time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// TestHoldingFails: where the holding itself is closed, waiting is over.
func TestHoldingFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNode(t, "a", trackerFunc(func() (p2p.Tracker, error) { return tracker.Local{Server: newTracker()}, nil }))
		if err := n.Join(shut{n.holding}, p2p.JoinOptions{Origin: &origin{}}); err != nil {
			t.Fatal(err)
		}
		if err := n.Fetch(t.Context(), id, 0); !errors.Is(err, errShut) {
			t.Errorf("%v, want the holding's error", err)
		}
	})
}

var errShut = errors.New("the holding is closed")

// shut is a holding that was closed.
type shut struct{ *p2ptest.Holding }

func (shut) Put(piece.Verified) error        { return errShut }
func (shut) Wait(context.Context, int) error { return errShut }

// TestFetchHopeless: what trying again will not change ends a Fetch long before its time.
func TestFetchHopeless(t *testing.T) {
	wrong := func(_ int64, p []byte) { p[0] ^= 1 }
	for _, test := range []struct {
		name   string
		fails  error                     // of the origin
		change func(off int64, p []byte) // of its bytes
		held   int64                     // a peer holds the piece until so many requests
		asked  int64                     // of the origin, by then
	}{
		{"not here", piece.ErrNotHere, nil, 0, 2},
		{"not here, and a peer that goes", piece.ErrNotHere, nil, 4, 4},
		{"not trusted", piece.ErrNotTrusted, nil, 0, 1},
		{"not trusted, whoever holds it", piece.ErrNotTrusted, nil, 4, 1},
		{"wrong bytes", nil, wrong, 0, 2},
		{"wrong bytes, and a peer that goes", nil, wrong, 4, 4},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				o := &origin{change: test.change}
				o.fails(func(context.Context, int) error {
					if test.fails != nil {
						return fmt.Errorf("registry: %w", test.fails)
					}
					return nil
				})
				peer := &crowd{holds: func(int) bool { return o.asked.Load() < test.held }}
				n := startNode(t, p2p.Options{Node: "a", Engine: peer, Logger: quiet()})
				n.join(t, o, false)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				err := n.Fetch(ctx, id, 3)
				if _, wrong := errors.AsType[*piece.WrongBytesError](err); ctx.Err() != nil ||
					wrong != (test.change != nil) || test.fails != nil && !errors.Is(err, test.fails) {
					t.Errorf("%v", err)
				}
				if o.asked.Load() != test.asked {
					t.Errorf("the origin was asked %d times, want %d", o.asked.Load(), test.asked)
				}
			})
		})
	}
}
