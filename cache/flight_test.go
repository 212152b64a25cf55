package cache

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spate-project/spate/cache/piece"
)

// inBubble runs test with a cache and a clock of its own, so that waiting takes no time.
func inBubble(t *testing.T, test func(t *testing.T, s *Store, data []byte, tree *piece.Tree)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		data := content(1, 3*small)
		test(t, openStore(t, dir, Options{}), data, treeOf(t, data, small))
	})
}

func TestFlightIsShared(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Store, data []byte, tree *piece.Tree) {
		src := &slow{origin: origin{data: data}, begun: make(chan int, 9), goOn: make(chan struct{})}
		src.into = openObject(t, s, tree, src)
		first, cancel := context.WithCancel(t.Context())
		failed := make(chan error, 1)
		go func() { failed <- src.into.Ensure(first, 0, 1) }()
		<-src.begun
		const others = 20
		done := make(chan error, others)
		for range others {
			go func() { done <- src.into.Ensure(t.Context(), 10, 5) }()
		}
		synctest.Wait() // all are on board
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("the first reader, who left: %v", err)
		}
		close(src.goOn)
		for range others {
			if err := <-done; err != nil {
				t.Errorf("a reader who stayed: %v", err)
			}
		}
		if n := src.asked.Load(); n != 1 || len(src.begun) != 0 {
			t.Errorf("the piece was fetched %d times", n)
		}
	})
}

func TestFlightEndsWithItsLastWaiter(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Store, data []byte, tree *piece.Tree) {
		src := &silent{asked: make(chan int, 9), ended: make(chan int, 9)}
		o := openObject(t, s, tree, src)
		var cancels []context.CancelFunc
		done := make(chan error)
		for range 3 {
			ctx, cancel := context.WithCancel(t.Context())
			cancels = append(cancels, cancel)
			go func() { done <- o.Ensure(ctx, small, 1) }()
		}
		synctest.Wait()
		for i, cancel := range cancels {
			if len(src.ended) != 0 {
				t.Fatalf("the flight ended with %d waiters left", len(cancels)-i)
			}
			cancel()
			<-done
			synctest.Wait()
		}
		if len(src.asked) != 1 || len(src.ended) != 1 {
			t.Fatalf("%d flights, %d ended", len(src.asked), len(src.ended))
		}

		// Who comes now starts another. It is not cut off when the piece comes:
		// that may be a part of what the source is bringing.
		go func() { done <- o.Ensure(t.Context(), small, 1) }()
		synctest.Wait()
		if len(src.asked) != 2 {
			t.Fatal("no new flight")
		}
		put(t, o, data, 1) // by another way
		if err := <-done; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if len(src.ended) != 1 {
			t.Error("the source was cut off")
		}
		o.Close()
		if len(src.ended) != 2 {
			t.Error("the source was not told of the object's end")
		}
	})
}

// TestFlightOutlivesFailures is the registry that dies and comes back.
func TestFlightOutlivesFailures(t *testing.T) {
	for name, err := range map[string]error{"failing": errors.New("connection refused"), "not here": piece.ErrNotHere} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *Store, data []byte, tree *piece.Tree) {
				src := &flaky{origin: origin{data: data}, err: err}
				src.failures.Store(10)
				src.into = openObject(t, s, tree, src)
				if err := src.into.Ensure(t.Context(), 0, 1); err != nil {
					t.Fatal(err)
				}
				if n := src.asked.Load(); n != 11 {
					t.Errorf("asked %d times", n)
				}
			})
		})
	}
}

func TestFlightGivesUp(t *testing.T) {
	const soon = -1
	wrong := (*piece.WrongBytesError)(nil)
	for name, test := range map[string]struct {
		src   func(o **Object) Source
		after time.Duration
		is    func(error) bool
		says  string
	}{
		"silent": {
			func(**Object) Source { return &silent{asked: make(chan int, 9)} },
			2 * time.Minute, func(err error) bool { return !errors.Is(err, context.DeadlineExceeded) }, "gave up after 2m0s",
		},
		"failing": {
			func(**Object) Source { f := &flaky{err: errors.New("boom")}; f.failures.Store(1e9); return f },
			2 * time.Minute, func(error) bool { return true }, "boom",
		},
		"cancelled by itself": {
			func(**Object) Source { f := &flaky{err: context.Canceled}; f.failures.Store(1e9); return f },
			2 * time.Minute, func(err error) bool { return !errors.Is(err, context.Canceled) }, "gave up",
		},
		"liar": {
			func(o **Object) Source { return lateLiar{into: o} },
			soon, func(err error) bool { return errors.As(err, &wrong) && wrong.From == "liar" }, "piece 0",
		},
		"empty": {
			func(**Object) Source { return empty{} },
			2 * time.Minute, func(error) bool { return true }, "not here",
		},
		"not trusted": {
			func(**Object) Source { f := &flaky{err: piece.ErrNotTrusted}; f.failures.Store(1e9); return f },
			0, func(err error) bool { return errors.Is(err, piece.ErrNotTrusted) }, "not trusted",
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *Store, _ []byte, tree *piece.Tree) {
				var o *Object
				o = openObject(t, s, tree, test.src(&o))
				start := time.Now()
				err := o.Ensure(t.Context(), 0, 1)
				if err == nil || !test.is(err) || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), "piece 0 of object "+o.object.Digest.String()) {
					t.Errorf("error %v", err)
				}
				switch took := time.Since(start); {
				case test.after == soon && took < time.Second:
				case took != test.after:
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// A lateLiar is a liar made before its object.
type lateLiar struct {
	onDemand
	into **Object
}

func (s lateLiar) Fetch(ctx context.Context, d piece.Digest, i int) error {
	return (&liar{into: *s.into}).Fetch(ctx, d, i)
}

func TestEnsureBoundsItsFlights(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		data := content(1, 10*small)
		s := openStore(t, dir, Options{Flights: 4})
		src := &slow{origin: origin{data: data}, begun: make(chan int, 99), goOn: make(chan struct{})}
		src.into = openObject(t, s, treeOf(t, data, small), src)
		done := make(chan error)
		go func() { done <- src.into.Ensure(t.Context(), 0, int64(len(data))) }()
		synctest.Wait()
		if n := len(src.begun); n != 4 {
			t.Errorf("%d flights at a time", n)
		}
		close(src.goOn)
		if err := <-done; err != nil || !src.into.Complete() {
			t.Errorf("Ensure: %v", err)
		}
	})
}

// TestFlightIsNotLeftBehind has a reader come while the only other one leaves:
// it must not board the flight that ends with that one.
func TestFlightIsNotLeftBehind(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	data := content(1, small)
	src := &slow{origin: origin{data: data}, begun: make(chan int, 9)}
	src.into = openObject(t, s, treeOf(t, data, small), src)
	o := src.into
	for range 3000 {
		src.goOn = make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		left, stayed := make(chan error), make(chan error)
		go func() { left <- o.Ensure(ctx, 0, 1) }()
		<-src.begun
		go cancel()
		go func() { stayed <- o.Ensure(t.Context(), 0, 1) }()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Fatalf("the reader who left: %v", err)
		}
		close(src.goOn)
		if err := <-stayed; err != nil {
			t.Fatalf("the reader who stayed: %v", err)
		}
		o.flying.Wait()
		for len(src.begun) > 0 {
			<-src.begun
		}
		o.mu.Lock()
		o.set(0, absent) // once more
		o.mu.Unlock()
	}
}
