package p2p_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/p2ptest"
	"github.com/spate-project/spate/p2p/tracker"
)

// TestOriginFails: failures of the origin as a whole are waited out.
func TestOriginFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		down := errors.New("registry is down")
		o, n := &origin{}, newNode(t, "a", nil)
		o.fails(func(context.Context, int) error { return down })
		n.join(t, o, true)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := n.Fetch(ctx, id, 5); !errors.Is(err, down) {
			t.Errorf("fetch from an origin that is down: %v, want its error", err)
		}
		if asked := o.asked.Load(); asked > 40 {
			t.Errorf("a broken origin was asked %d times in 20 s", asked)
		}
		o.fails(nil)
		n.filled(t, 31*time.Second)
	})
}

// TestOriginCutsShort: an answer that ends early gives what it gave, and the rest is asked for again.
func TestOriginCutsShort(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNode(t, "a", nil)
		short := p2p.OriginFunc(func(_ context.Context, off, length int64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(data[off : off+length*2/3])), nil // of two pieces, the first one
		})
		n.join(t, short, true)
		time.Sleep(time.Hour)
		if got := n.holding.Count(); got != tree.Object().Pieces()/2 {
			t.Errorf("%d of %d pieces", got, tree.Object().Pieces())
		}
	})
}

// TestOriginSilent: an origin that answers with nothing is given up, and asked again.
func TestOriginSilent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o, n := &origin{}, newNode(t, "a", nil)
		first := make(map[int]bool)
		var mu sync.Mutex
		o.fails(func(ctx context.Context, at int) error {
			mu.Lock()
			hang := !first[at]
			first[at] = true
			mu.Unlock()
			if hang {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		n.join(t, o, false)
		start := time.Now()
		if err := n.Fetch(t.Context(), id, 4); err != nil || time.Since(start) > 20*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		o.fails(func(ctx context.Context, _ int) error {
			<-ctx.Done()
			return ctx.Err()
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := n.Fetch(ctx, id, 8); err == nil || !strings.Contains(err.Error(), "sent nothing for 15s") {
			t.Errorf("%v: want to be told that the origin is silent", err)
		}
	})
}

// TestOriginSlow: an origin that sends a little all the time is not silent.
func TestOriginSlow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNode(t, "a", nil)
		slow := p2p.OriginFunc(func(_ context.Context, off, length int64) (io.ReadCloser, error) {
			return io.NopCloser(&drip{data[off : off+length]}), nil
		})
		n.join(t, slow, false)
		if err := n.Fetch(t.Context(), id, 4); err != nil {
			t.Error(err)
		}
	})
}

// A drip gives 16 KiB every 5 seconds.
type drip struct{ rest []byte }

func (d *drip) Read(p []byte) (int, error) {
	if len(d.rest) == 0 {
		return 0, io.EOF
	}
	time.Sleep(5 * time.Second)
	n := copy(p[:min(len(p), 16<<10)], d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

// TestOriginWrong: one piece that the origin has wrong keeps back neither the
// others nor, once it is right again, itself.
func TestOriginWrong(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const bad = 6
		o, n := &origin{}, newNode(t, "a", nil)
		o.change = func(off int64, p []byte) {
			if at := bad*piece.MinLength + 77 - off; at >= 0 && at < int64(len(p)) {
				p[at] ^= 1
			}
		}
		n.join(t, o, true)
		time.Sleep(5 * time.Second)
		if got := n.holding.Count(); got != tree.Object().Pieces()-1 || n.holding.Has(bad) {
			t.Errorf("%d pieces of %d, want all but the wrong one", got, tree.Object().Pieces())
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := n.Fetch(ctx, id, bad)
		w, ok := errors.AsType[*piece.WrongBytesError](err)
		if !ok || w.Piece != bad || w.Object != id || w.From != "the origin" {
			t.Errorf("%v, want a *piece.WrongBytesError that blames the origin", err)
		}
		if s, _ := n.Stats(id); s.OriginWrong < 2 {
			t.Errorf("%d wrong pieces are counted", s.OriginWrong)
		}
		o.mu.Lock()
		o.change = nil
		o.mu.Unlock()
		n.filled(t, 31*time.Second)
	})
}

// A full holding has no room while full is set.
type full struct {
	*p2ptest.Holding
	full atomic.Bool
}

func (f *full) Put(v piece.Verified) error {
	if f.full.Load() {
		return fmt.Errorf("write: %w", syscall.ENOSPC)
	}
	return f.Holding.Put(v)
}

// TestFullDisk: a full disk is told to the reader at once, does not use up the
// origin, keeps no piece from other nodes, and is forgotten when there is room.
func TestFullDisk(t *testing.T) {
	bubble(t, func(t *testing.T) {
		server := tracker.Local{Server: newTracker()}
		n, o := newNode(t, "a", server), &origin{}
		h := &full{Holding: n.holding}
		h.full.Store(true)
		if err := n.Join(h, p2p.JoinOptions{Origin: o, Fill: true}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := n.Fetch(t.Context(), id, 3); !errors.Is(err, syscall.ENOSPC) || time.Since(start) > time.Second {
			t.Errorf("%v after %v, want ENOSPC at once", err, time.Since(start))
		}
		other := newNode(t, "b", server)
		other.join(t, &origin{}, true)
		other.filled(t, 3*time.Second)
		other.stop()
		time.Sleep(10 * time.Minute)
		if o.copies() > 3 {
			t.Errorf("%.1f copies were drawn in vain in ten minutes", o.copies())
		}
		h.full.Store(false)
		n.filled(t, time.Minute)
	})
}

// A gauge is an origin that keeps every request for a second, then cuts it
// off, and measures how much is asked for at a time.
type gauge struct {
	mu        sync.Mutex
	now, most int64
	asked     map[int64]int // requests by length
}

func (g *gauge) Range(_ context.Context, _, n int64) (io.ReadCloser, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.now += n
	g.most = max(g.most, g.now)
	g.asked[n]++
	return &gauged{g, n}, nil
}

type gauged struct {
	*gauge
	n int64
}

func (g *gauged) Read([]byte) (int, error) {
	time.Sleep(time.Second)
	return 0, io.ErrUnexpectedEOF
}

func (g *gauged) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.now -= g.n
	return nil
}

// TestLargePieces: however many large pieces are read, few are in memory at a time.
func TestLargePieces(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const large = 16 << 20
		n, g := newNode(t, "a", nil), &gauge{asked: make(map[int64]int)}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var readers sync.WaitGroup
		for k := range 7 {
			h := small(t, k, large, large)
			if k == 6 {
				h = small(t, k, piece.MaxLength, piece.MaxLength)
			}
			if err := n.Join(h, p2p.JoinOptions{Origin: g}); err != nil {
				t.Fatal(err)
			}
			readers.Go(func() { n.Fetch(ctx, h.Tree().Object().Digest, 0) })
		}
		readers.Wait()
		if g.most != 64<<20 || g.now != 0 {
			t.Errorf("%d MiB were drawn at a time, want 64; %d in the end", g.most>>20, g.now)
		}
		if g.asked[large] < 6 || g.asked[piece.MaxLength] == 0 {
			t.Errorf("requests by length: %v", g.asked)
		}
	})
}
