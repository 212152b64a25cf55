package torrent

import (
	"bytes"
	"hash/maphash"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p/p2ptest"
)

// TestBans: a ban ends, the next one lasts longer, and in the end all is forgotten.
func TestBans(t *testing.T) {
	var log bytes.Buffer
	b := newBans(slog.New(slog.NewTextHandler(&log, nil)))
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	object := piece.Digest{1}
	b.add("liar", wrongBytes, object, now)
	b.add("liar", silence, object, now.Add(time.Second)) // is banned already
	b.add("idler", silence, object, now)
	want := []Ban{
		{"idler", silence.reason, now.Add(time.Minute)},
		{"liar", wrongBytes.reason, now.Add(10 * time.Minute)},
	}
	if got := b.active(now.Add(time.Second)); !reflect.DeepEqual(got, want) {
		t.Errorf("bans are %v, want %v", got, want)
	}
	if n := strings.Count(log.String(), "\n"); n != 2 {
		t.Errorf("%d lines are logged of two bans:\n%s", n, log.String())
	}
	for _, word := range []string{"level=WARN", "peer=liar", wrongBytes.reason, "until=2026-01-01T00:10", object.String()} {
		if !strings.Contains(log.String(), word) {
			t.Errorf("%q is not logged:\n%s", word, log.String())
		}
	}
	if len(b.changed) != 1 {
		t.Error("nobody is told to close connections")
	}

	now = now.Add(10 * time.Minute)
	if b.has("liar", now) || !b.has("liar", now.Add(-1)) || b.has("honest", now) {
		t.Error("a ban does not end at its end")
	}
	for _, term := range []time.Duration{20, 40, 80, 160, 320, 640, 1280, 1440, 1440} {
		b.add("liar", silence, object, now)
		now = now.Add(term * time.Minute)
		if !b.has("liar", now.Add(-1)) || b.has("liar", now) {
			t.Errorf("a further ban does not last %d minutes", term)
		}
	}
	now = now.Add(longestBan + 1)
	b.add("other", silence, object, now)
	if len(b.list) != 1 {
		t.Errorf("%d peers are remembered, want one", len(b.list))
	}
}

// TestBlame: of several senders of a piece only who sent other bytes is banned,
// and only once the right ones are here.
func TestBlame(t *testing.T) {
	const half = 128 << 10
	data := p2ptest.Bytes(2*half+1, 1)
	wrong := bytes.Clone(data)
	wrong[half+5] ^= 1
	h := p2ptest.NewHolding(p2ptest.Tree(data))
	e := &Engine{bans: newBans(slog.New(slog.DiscardHandler)), seed: maphash.MakeSeed()}
	s := &swarm{
		engine: e, holding: h, object: h.Tree().Object(),
		senders: make(map[int][]string), suspects: make(map[int][]sentBlock),
	}
	banned := func() (names []string) {
		for _, b := range e.Bans() {
			names = append(names, b.Peer)
		}
		return names
	}
	round := func() {
		s.sent(0, "honest", 0, data[:half])
		s.sent(0, "liar", half, wrong[half:2*half])
		senders := s.senders[0]
		if delete(s.senders, 0); len(senders) != 2 {
			t.Fatalf("senders are %q", senders)
		}
		s.accuse(0, senders)
	}
	round()
	if len(s.suspects[0]) > 0 {
		t.Error("blocks are summed before a piece has failed")
	}
	round()
	if names := banned(); names != nil {
		t.Fatalf("%q are banned on suspicion", names)
	}
	s.convict(0)
	if names := banned(); names != nil {
		t.Fatalf("%q are banned without the right bytes", names)
	}
	round()
	round()
	v, err := h.Tree().Verify(0, data[:2*half])
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Put(v); err != nil {
		t.Fatal(err)
	}
	s.convict(0)
	if names := banned(); !reflect.DeepEqual(names, []string{"liar"}) {
		t.Errorf("%q are banned, want the liar", names)
	}
	if len(s.suspects) > 0 {
		t.Error("a piece that is here is suspect still")
	}
	s.accuse(1, []string{"alone"})
	if names := banned(); !reflect.DeepEqual(names, []string{"alone", "liar"}) {
		t.Errorf("%q are banned, want the only sender of a wrong piece too", names)
	}
}
