package p2p_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p"
)

// pieceRate is one piece a second.
const pieceRate = piece.MinLength

var pieces = tree.Object().Pieces()

// A giver is a crowd that sends what is wanted of it.
type giver struct {
	crowd
	takes time.Duration // a piece; negative: it sends nothing

	mu      sync.Mutex
	holding p2p.Holding
	wants   map[int]p2p.Urgency
	given   int64 // bytes
	single  int   // Wants of less than the object
}

func (g *giver) Join(h p2p.Holding) (p2p.Swarm, error) {
	g.holding, g.wants = h, make(map[int]p2p.Urgency)
	return g, nil
}

func (g *giver) Want(first, last int, u p2p.Urgency) {
	g.mu.Lock()
	defer g.mu.Unlock()
	whole := first == 0 && last == pieces
	if !whole {
		g.single++
	}
	for i := first; i < last; i++ {
		if g.wants[i] == u || whole && u == p2p.Fill && g.wants[i] > u {
			continue
		}
		idle := g.wants[i] == p2p.None
		if g.wants[i] = u; idle && g.takes >= 0 && g.Held(i) {
			time.AfterFunc(g.takes, func() { g.give(i) })
		}
	}
}

// give brings piece i, if it is wanted still.
func (g *giver) give(i int) {
	g.mu.Lock()
	wanted := g.wants[i] != p2p.None
	g.mu.Unlock()
	if !wanted || g.holding.Has(i) {
		return
	}
	off, n := tree.Object().Span(i)
	v, err := tree.Verify(i, data[off:off+n])
	if err == nil {
		err = g.holding.Put(v)
	}
	if err != nil {
		panic(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.given += n
}

func (g *giver) Stats() p2p.SwarmStats {
	g.mu.Lock()
	defer g.mu.Unlock()
	return p2p.SwarmStats{Peers: 1, Received: g.given}
}

// wanted returns how many absent pieces are wanted as soon as u.
func (g *giver) wanted(u p2p.Urgency) (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, w := range g.wants {
		if w == u && !g.holding.Has(i) {
			n++
		}
	}
	return n
}

func all(int) bool    { return true }
func none(int) bool   { return false }
func half(i int) bool { return i < pieces/2 }

func TestPrefetchLimit(t *testing.T) {
	for _, test := range []struct {
		name   string
		engine *giver
		origin float64 // copies
	}{
		{"no engine", nil, 1},
		{"peers hold nothing", &giver{crowd: crowd{holds: none}}, 1},
		{"peers hold everything", &giver{crowd: crowd{holds: all}}, 0},
		{"slow peers hold everything", &giver{crowd: crowd{holds: all}, takes: 1500 * time.Millisecond}, 0},
		{"peers hold a half", &giver{crowd: crowd{holds: half}}, 0.5},
		{"peers send nothing", &giver{crowd: crowd{holds: all}, takes: -1}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				opts := p2p.Options{Node: "a", Logger: quiet()}
				if test.engine != nil {
					opts.Engine = test.engine
				}
				o, n := &origin{}, startNode(t, opts)
				n.SetLimits(pieceRate, 0)
				start := time.Now()
				n.join(t, o, true)
				for s := range pieces - 5 {
					// Two draws and a grant may meet where there is no debt.
					if most := s + 6; n.holding.Count() > most {
						t.Fatalf("%d pieces after %d s, at most %d are allowed", n.holding.Count(), s, most)
					}
					time.Sleep(time.Second)
				}
				n.filled(t, time.Minute)
				if took := time.Since(start); took > time.Duration(pieces+20)*time.Second ||
					test.engine != nil && test.engine.takes == 0 && took > time.Duration(pieces+1)*time.Second {
					t.Errorf("it took %v for %d pieces of a second", took, pieces)
				}
				if d := o.copies() - test.origin; d < -0.1 || d > 0.1 {
					t.Errorf("the origin sent %.2f copies, want %.2f", o.copies(), test.origin)
				}
			})
		})
	}
}

// TestNoLimit: without a limit the swarm is told once, for all pieces.
func TestNoLimit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, o := &giver{crowd: crowd{holds: all}}, &origin{}
		n := startNode(t, p2p.Options{Node: "a", Engine: g, Logger: quiet()})
		start := time.Now()
		n.join(t, o, true)
		n.filled(t, time.Minute)
		if time.Since(start) != 0 || g.single != 0 {
			t.Errorf("it took %v, and the swarm was told of single pieces %d times", time.Since(start), g.single)
		}
	})
}

// TestPrefetchLimitOnTheWay: what is asked of peers is a second's worth, or two pieces.
func TestPrefetchLimitOnTheWay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, o := &giver{crowd: crowd{holds: all}, takes: time.Hour}, &origin{}
		n := startNode(t, p2p.Options{Node: "a", Engine: g, Logger: quiet(), Patience: 24 * time.Hour})
		for _, test := range []struct{ rate, pieces int64 }{{1, 1}, {pieceRate, 2}, {5 * pieceRate, 5}} {
			n.SetLimits(test.rate, 0)
			n.join(t, o, true)
			time.Sleep(time.Minute)
			if got := int64(g.wanted(p2p.Fill)); got < test.pieces || got > test.pieces+1 { // the last piece is short
				t.Errorf("at %d bytes a second %d pieces are wanted, want %d", test.rate, got, test.pieces)
			}
		}
	})
}

// TestPrefetchLimitChanges: a new limit holds at once, whatever waits for the old one.
func TestPrefetchLimitChanges(t *testing.T) {
	for name, engine := range map[string]func() p2p.Engine{
		"origin": func() p2p.Engine { return nil },
		"peers":  func() p2p.Engine { return &giver{crowd: crowd{holds: all}} },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				n := startNode(t, p2p.Options{Node: "a", Engine: engine(), Logger: quiet()})
				n.SetLimits(1, 0) // three days a piece
				n.join(t, &origin{}, true)
				time.Sleep(time.Hour)
				if got := n.holding.Count(); got > 5 {
					t.Fatalf("%d pieces came at one byte a second", got)
				}
				n.SetLimits(pieceRate, 0)
				time.Sleep(5 * time.Second)
				if got := n.holding.Count(); got < 5 || got > 5+10 {
					t.Fatalf("%d pieces are here after 5 s at one a second", got)
				}
				n.SetLimits(1, 0)
				time.Sleep(time.Second)
				had := n.holding.Count()
				time.Sleep(time.Hour)
				if got := n.holding.Count(); got > had+5 {
					t.Fatalf("%d pieces came at one byte a second", got-had)
				}
				n.SetLimits(0, 0)
				start := time.Now()
				n.filled(t, time.Minute)
				if took := time.Since(start); took > time.Second {
					t.Errorf("without the limit the rest took %v", took)
				}
				if prefetch, demand := n.Limits(); prefetch != 0 || demand != 0 {
					t.Errorf("the limits are %d and %d", prefetch, demand)
				}
			})
		})
	}
}

// TestPrefetchLimitTakesBack: a limit bears on what peers were asked for already, but on nothing that a reader waits for.
func TestPrefetchLimitTakesBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := &giver{crowd: crowd{holds: all}, takes: time.Minute}
		n := startNode(t, p2p.Options{Node: "a", Engine: g, Logger: quiet(), Patience: time.Hour, Readahead: 3 * piece.MinLength})
		n.join(t, &origin{}, true)
		synctest.Wait()
		if got := g.wanted(p2p.Fill); got != pieces {
			t.Fatalf("%d pieces are wanted without a limit, want %d", got, pieces)
		}
		ctx, cancel := context.WithCancel(t.Context())
		read := make(chan error)
		go func() { read <- n.Fetch(ctx, id, 7) }()
		synctest.Wait()
		n.SetLimits(1, 0)
		synctest.Wait()
		if fill, ahead, now := g.wanted(p2p.Fill), g.wanted(p2p.Ahead), g.wanted(p2p.Now); fill > 1 || ahead != 3 || now != 1 {
			t.Errorf("under a limit %d pieces are wanted for the fill, %d ahead of a reader and %d by one, want 1, 3 and 1", fill, ahead, now)
		}
		cancel()
		<-read
		synctest.Wait()
		if fill, now := g.wanted(p2p.Fill), g.wanted(p2p.Now); fill > 1 || now != 0 {
			t.Errorf("with the reader gone %d pieces are wanted for the fill and %d by a reader", fill, now)
		}
		n.SetLimits(0, 0)
		if got := g.wanted(p2p.Fill) + g.wanted(p2p.Ahead); got != pieces-n.holding.Count() {
			t.Errorf("%d pieces are wanted without a limit, want %d", got, pieces)
		}
	})
}

// TestPrefetchLimitIsNotDemand: a reader does not wait for it.
func TestPrefetchLimitIsNotDemand(t *testing.T) {
	for name, engine := range map[string]p2p.Engine{"origin": nil, "peers": &giver{crowd: crowd{holds: all}}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				n := startNode(t, p2p.Options{Node: "a", Engine: engine, Logger: quiet()})
				n.SetLimits(1, 0)
				n.join(t, &origin{}, true)
				time.Sleep(time.Minute)
				start := time.Now()
				for i := range pieces {
					if err := n.Fetch(t.Context(), id, i); err != nil {
						t.Fatal(err)
					}
				}
				if took := time.Since(start); took > time.Second {
					t.Errorf("the readers waited %v", took)
				}
			})
		})
	}
}

func TestDemandLimit(t *testing.T) {
	for name, engine := range map[string]p2p.Engine{"origin": nil, "peers": &giver{crowd: crowd{holds: all}}} {
		for _, reading := range []string{"in order", "at once", "backwards"} {
			t.Run(name+", "+reading, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					n := startNode(t, p2p.Options{Node: "a", Engine: engine, Logger: quiet()})
					n.SetLimits(0, pieceRate)
					n.join(t, &origin{}, false)
					start := time.Now()
					var readers sync.WaitGroup
					for i := range pieces {
						if reading == "backwards" {
							i = pieces - 1 - i
						}
						readers.Go(func() {
							if err := n.Fetch(t.Context(), id, i); err != nil {
								t.Error(err)
							}
						})
						if reading != "at once" {
							readers.Wait()
						}
					}
					readers.Wait()
					ideal := time.Duration(pieces) * time.Second
					if took := time.Since(start); took < ideal-5*time.Second || took > ideal+time.Second {
						t.Errorf("it took %v, want %v", took, ideal)
					}
				})
			})
		}
	}
}

// TestDemandLimitWait: what ends a reader's wait for the limit.
func TestDemandLimitWait(t *testing.T) {
	for _, test := range []struct {
		name    string
		happens func(t *testing.T, n *node, cancel func())
		want    error
	}{
		{"no limit", func(_ *testing.T, n *node, _ func()) { n.SetLimits(0, 0) }, nil},
		{"a higher limit", func(_ *testing.T, n *node, _ func()) { n.SetLimits(0, 1<<30) }, nil},
		{"the piece comes", func(t *testing.T, n *node, _ func()) { n.put(t, 9) }, nil},
		{"the reader goes", func(_ *testing.T, _ *node, cancel func()) { cancel() }, context.Canceled},
		{"the object leaves", func(_ *testing.T, n *node, _ func()) { n.Leave(id) }, piece.ErrNotHere},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				o, n := &origin{}, newNode(t, "a", nil)
				n.SetLimits(0, 1)
				n.join(t, o, false)
				if err := n.Fetch(t.Context(), id, 0); err != nil { // the first has nothing to wait for
					t.Fatal(err)
				}
				asked := o.asked.Load()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				read := make(chan error)
				go func() { read <- n.Fetch(ctx, id, 9) }()
				time.Sleep(time.Hour)
				if o.asked.Load() != asked {
					t.Fatal("the origin was asked for more than the limit lets")
				}
				start := time.Now()
				test.happens(t, n, cancel)
				err := <-read
				if !errors.Is(err, test.want) || test.want == nil && !n.holding.Has(9) {
					t.Errorf("%v, want %v", err, test.want)
				}
				if test.want == context.Canceled && !strings.Contains(err.Error(), "limit") {
					t.Errorf("%q does not say that it waited for the limit", err)
				}
				if took := time.Since(start); took > time.Second {
					t.Errorf("it went on to wait for %v", took)
				}
			})
		})
	}
}
