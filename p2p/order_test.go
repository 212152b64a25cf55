package p2p_test

import (
	"bytes"
	"context"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/p2ptest"
	"github.com/spate-project/spate/p2p/tracker"
)

// TestPriority: what has a higher priority is filled first, and among equals what joined first.
func TestPriority(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var (
			mu    sync.Mutex
			order []string
		)
		n := startNode(t, p2p.Options{Node: "a", LeaseWorkers: 1, Logger: quiet()})
		open := make(chan struct{})
		join := func(name string, seed uint64, opts p2p.JoinOptions) *p2ptest.Holding {
			content := p2ptest.Bytes(piece.MinLength, seed)
			opts.Origin = p2p.OriginFunc(func(ctx context.Context, off, length int64) (io.ReadCloser, error) {
				if name == "gate" {
					<-open
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, name)
				return io.NopCloser(bytes.NewReader(content[off : off+length])), nil
			})
			h := p2ptest.NewHolding(p2ptest.Tree(content))
			if err := n.Join(h, opts); err != nil {
				t.Fatal(err)
			}
			return h
		}
		// The one worker is held up until all have joined and are announced.
		join("gate", 10, p2p.JoinOptions{Fill: true, Priority: 9})
		last := join("last", 11, p2p.JoinOptions{Fill: true, Priority: -1})
		join("second", 12, p2p.JoinOptions{Fill: true})
		raised := join("first", 13, p2p.JoinOptions{})
		join("third", 14, p2p.JoinOptions{Fill: true})
		if err := n.Join(raised, p2p.JoinOptions{Fill: true, Priority: 2}); err != nil {
			t.Fatal(err)
		}
		if err := n.Join(last, p2p.JoinOptions{Priority: 9}); err != nil { // of no fill: changes nothing
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		close(open)
		time.Sleep(time.Minute)
		n.stop()
		if want := []string{"gate", "first", "second", "third", "last"}; !slices.Equal(order, want) {
			t.Errorf("filled in the order %v, want %v", order, want)
		}
	})
}

// TestBacklogIsTold: pieces that this node drew count until half of its peers hold them.
func TestBacklogIsTold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var holders, most, last atomic.Int64
		c := &crowd{spread: func() (int, int) { return int(holders.Load()), 4 }}
		asks := eavesdropper{tracker.Local{Server: newTracker()}, func(r tracker.LeaseRequest) {
			most.Store(max(most.Load(), int64(r.Backlog)))
			last.Store(int64(r.Backlog))
		}}
		holders.Store(1)
		n := startNode(t, p2p.Options{Node: "a", Engine: c, Tracker: asks, LeaseBytes: 1, Logger: quiet()})
		o := &origin{}
		o.fails(func(ctx context.Context, first int) error {
			if first == 10 {
				holders.Store(2)
			}
			return nil
		})
		n.join(t, o, true)
		n.filled(t, time.Minute)
		if most.Load() < 8 || most.Load() > 12 || last.Load() > 1 {
			t.Errorf("the backlog was %d at most and %d at last, want about 10 and none", most.Load(), last.Load())
		}
	})
}

// An eavesdropper is told of every lease request.
type eavesdropper struct {
	tracker.Local
	asked func(tracker.LeaseRequest)
}

func (f eavesdropper) Lease(ctx context.Context, r tracker.LeaseRequest) (tracker.Lease, error) {
	if r.Want < 0 && r.Max > 0 {
		f.asked(r)
	}
	return f.Local.Lease(ctx, r)
}
