package tracker_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p/tracker"
)

// hintOf returns the hint of a blob of some pieces, which seed makes its own.
func hintOf(t testing.TB, seed byte, pieces int) *tracker.Hint {
	t.Helper()
	data := bytes.Repeat([]byte{seed}, pieces*piece.MinLength)
	h := piece.NewHasher(int64(len(data)))
	h.Write(data)
	tree, err := h.Sum()
	if err != nil {
		t.Fatal(err)
	}
	return &tracker.Hint{Object: tree.Object(), Layer: tree.Layer()}
}

// A hinting is a tracker that nodes ask for the hint of one blob.
type hinting struct {
	*bench
	right *tracker.Hint
	wrong *tracker.Hint // of the same blob
}

func newHinting(t *testing.T) *hinting {
	h := &hinting{bench: newBench(t, 1), right: hintOf(t, 1, 3)}
	h.wrong = hintOf(t, 2, 3)
	h.wrong.Digest = h.right.Digest
	return h
}

func (h *hinting) ask(r tracker.HintRequest) tracker.HintAnswer {
	h.t.Helper()
	r.Blob = h.right.Digest
	a, err := h.server.Hint(r)
	if err != nil {
		h.t.Fatal(err)
	}
	return a
}

// holds announces that node has all of what hint says.
func (h *hinting) holds(node string, hint *tracker.Hint) {
	h.t.Helper()
	_, err := h.server.Announce(tracker.Announce{Node: node, Addr: node + ":1", Swarms: []tracker.Holding{
		{Swarm: tracker.SwarmOf(hint.Object), Pieces: hint.Pieces(), Have: bits(hint.Pieces(), 0, 1, 2)},
	}})
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *hinting) draws(node string) {
	h.t.Helper()
	if a := h.ask(tracker.HintRequest{Node: node}); !a.Draw || a.Hint != nil || a.Again <= 0 {
		h.t.Errorf("%s is answered %+v, want the right to draw", node, a)
	}
}

func (h *hinting) waits(node string) {
	h.t.Helper()
	if a := h.ask(tracker.HintRequest{Node: node}); a.Draw || a.Hint != nil || a.Again <= 0 {
		h.t.Errorf("%s is answered %+v, want to be told to wait", node, a)
	}
}

func (h *hinting) gets(node string, want *tracker.Hint, from string) {
	h.t.Helper()
	a := h.ask(tracker.HintRequest{Node: node})
	if a.Draw || a.Hint == nil || a.Hint.Object != want.Object || !bytes.Equal(a.Hint.Layer, want.Layer) || a.Hint.From != from {
		h.t.Errorf("%s is answered %+v, want the hint %+v of %s", node, a, want, from)
	}
}

func TestHint(t *testing.T) {
	for name, run := range map[string]func(h *hinting){
		"one draws, the others wait for its hint": func(h *hinting) {
			h.draws("a")
			h.waits("b")
			h.waits("c")
			h.ask(tracker.HintRequest{Node: "a", Give: h.right})
			h.waits("b") // nobody is known to hold it yet
			h.holds("a", h.right)
			h.gets("b", h.right, "a")
			h.gets("c", h.right, "a")
			h.gets("a", h.right, "a")
		},
		"the right to draw lasts while it is renewed": func(h *hinting) {
			h.draws("a")
			for range 5 {
				h.now = h.now.Add(ttl - 1)
				h.draws("a")
				h.waits("b")
			}
			h.now = h.now.Add(ttl + 1)
			h.draws("b")
			h.waits("a")
		},
		"the right to draw is given back": func(h *hinting) {
			h.draws("a")
			h.ask(tracker.HintRequest{Node: "b", Failed: true}) // it is not b's
			h.waits("b")
			h.ask(tracker.HintRequest{Node: "a", Failed: true})
			h.draws("b")
		},
		"a hint ends with those who hold the blob": func(h *hinting) {
			h.holds("a", h.right)
			h.ask(tracker.HintRequest{Node: "a", Give: h.right})
			h.gets("b", h.right, "a")
			h.now = h.now.Add(3*interval + 1)
			h.draws("b")
			h.waits("c")
			h.holds("a", h.right) // it was away and is back
			h.gets("c", h.right, "a")
		},
		"a hint that nobody stands by gives way": func(h *hinting) {
			h.ask(tracker.HintRequest{Node: "liar", Give: h.wrong})
			h.waits("b")
			h.now = h.now.Add(interval)
			h.draws("b")
			h.holds("b", h.right)
			h.ask(tracker.HintRequest{Node: "b", Give: h.right})
			h.gets("c", h.right, "b")
		},
		"a wrong hint is dropped": func(h *hinting) {
			h.holds("liar", h.wrong)
			h.ask(tracker.HintRequest{Node: "liar", Give: h.wrong})
			h.gets("b", h.wrong, "liar")
			if a := h.ask(tracker.HintRequest{Node: "b", Wrong: &h.wrong.Root}); !a.Draw {
				h.t.Errorf("b is answered %+v, want the right to draw", a)
			}
			if a := h.ask(tracker.HintRequest{Node: "c", Wrong: &h.wrong.Root}); a.Draw || a.Hint != nil {
				h.t.Errorf("c is answered %+v, want to be told to wait", a)
			}
			h.holds("b", h.right)
			h.ask(tracker.HintRequest{Node: "b", Give: h.right})
			h.ask(tracker.HintRequest{Node: "d", Wrong: &h.wrong.Root}) // which is not this one
			h.gets("c", h.right, "b")
		},
		"a hint of use is not replaced": func(h *hinting) {
			h.holds("a", h.right)
			h.ask(tracker.HintRequest{Node: "a", Give: h.right})
			h.holds("liar", h.wrong)
			h.ask(tracker.HintRequest{Node: "liar", Give: h.wrong})
			h.gets("b", h.right, "a")
		},
		"who waits longer asks less often": func(h *hinting) {
			h.draws("a")
			first := h.ask(tracker.HintRequest{Node: "b"}).Again
			h.now = h.now.Add(4 * time.Second)
			if later := h.ask(tracker.HintRequest{Node: "b"}).Again; later <= first {
				h.t.Errorf("b is told to wait %v, and then %v", time.Duration(first), time.Duration(later))
			}
		},
	} {
		t.Run(name, func(t *testing.T) { run(newHinting(t)) })
	}
}

func TestHintRefused(t *testing.T) {
	other, right, empty := hintOf(t, 1, 1), hintOf(t, 2, 3), &tracker.Hint{}
	short, root := *right, *right
	short.Layer = right.Layer[1:]
	root.Root = piece.Root{1}
	empty.Object = piece.Object{Digest: right.Digest, PieceLength: piece.MinLength}
	for name, give := range map[string]*tracker.Hint{"blob": other, "layer": &short, "root": &root, "no bytes": empty} {
		s := newServer()
		if _, err := s.Hint(tracker.HintRequest{Node: "a", Blob: right.Digest, Give: give}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		if st := s.Stats(); st.Hints != 0 {
			t.Errorf("%s: it left %+v", name, st)
		}
	}
	if _, err := newServer().Hint(tracker.HintRequest{Blob: right.Digest}); err == nil {
		t.Error("a request without a node is taken")
	}
}

// TestHintMemory gives more hints than there is room for: the oldest make way, announces do not.
func TestHintMemory(t *testing.T) {
	const memory = 128 << 10
	s := tracker.New(tracker.Options{Memory: memory, Logger: slog.New(slog.DiscardHandler)})
	var first, last *tracker.Hint
	for seed := range byte(100) {
		last = hintOf(t, seed, 4)
		if first == nil {
			first = last
		}
		for node, give := range map[string]*tracker.Hint{"a": nil, "b": last} {
			if _, err := s.Hint(tracker.HintRequest{Node: node, Blob: last.Digest, Give: give}); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Audit(); err != nil {
			t.Fatal(err)
		}
	}
	if st := s.Stats(); st.Memory > memory/4 || st.Hints < 10 {
		t.Errorf("there are %+v", st)
	}
	if a, err := s.Hint(tracker.HintRequest{Node: "c", Blob: last.Digest}); err != nil || a.Draw {
		t.Errorf("the last hint is answered %+v, %v", a, err)
	}
	if a, err := s.Hint(tracker.HintRequest{Node: "c", Blob: first.Digest}); err != nil || !a.Draw {
		t.Errorf("the first hint is answered %+v, %v", a, err)
	}
	if _, err := s.Announce(tracker.Announce{Node: "a", Addr: "a:1", Swarms: []tracker.Holding{{Pieces: 1000}}}); err != nil {
		t.Errorf("an announce beside all hints: %v", err)
	}
}

// TestHintHTTP holds that a client and a server understand each other.
func TestHintHTTP(t *testing.T) {
	s := newServer()
	c := tracker.NewClient(&http.Client{Transport: trackers{"tracker": s}}, "http://tracker")
	h := hintOf(t, 1, 3)
	a, err := c.Hint(t.Context(), tracker.HintRequest{Node: "a", Blob: h.Digest})
	if err != nil || !a.Draw || time.Duration(a.Again) <= 0 {
		t.Fatalf("the first is answered %+v, %v", a, err)
	}
	if _, err := c.Announce(t.Context(), tracker.Announce{Node: "a", Addr: "a:1", Swarms: []tracker.Holding{
		{Swarm: tracker.SwarmOf(h.Object), Pieces: h.Pieces(), Have: bits(h.Pieces(), 0, 1, 2)},
	}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Hint(t.Context(), tracker.HintRequest{Node: "a", Blob: h.Digest, Give: h}); err != nil {
		t.Fatal(err)
	}
	a, err = c.Hint(t.Context(), tracker.HintRequest{Node: "b", Blob: h.Digest})
	if err != nil || a.Hint == nil || a.Hint.Object != h.Object || !bytes.Equal(a.Hint.Layer, h.Layer) || a.Hint.From != "a" {
		t.Fatalf("the second is answered %+v, %v", a, err)
	}
	a, err = c.Hint(t.Context(), tracker.HintRequest{Node: "b", Blob: h.Digest, Wrong: &a.Hint.Root})
	if err != nil || !a.Draw {
		t.Fatalf("who calls it wrong is answered %+v, %v", a, err)
	}
	h.Layer = nil
	if _, err = c.Hint(t.Context(), tracker.HintRequest{Node: "a", Blob: h.Digest, Give: h}); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a hint without its layer: %v", err)
	}
}

func FuzzHint(f *testing.F) {
	h := hintOf(f, 1, 2)
	for _, r := range []tracker.HintRequest{
		{},
		{Node: "a", Blob: h.Digest},
		{Node: "a", Blob: h.Digest, Give: h},
		{Node: "a", Blob: h.Digest, Wrong: &h.Root, Failed: true},
	} {
		b, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"node":"a","blob":"sha256:00"}`))
	f.Add([]byte(`{"node":"a","give":{"size":-1}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		s := fuzzed(t)
		feed(t, s, tracker.HintPath, body)
		feed(t, s, tracker.HintPath, body) // again, with what the first one left
	})
}
