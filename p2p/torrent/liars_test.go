package torrent_test

import (
	"crypto/sha1"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/anacrolix/torrent/metainfo"
	pp "github.com/anacrolix/torrent/peer_protocol"
	"github.com/xtaci/smux"

	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/identity"
	"github.com/spate-project/spate/p2p/p2ptest"
	"github.com/spate-project/spate/p2p/torrent"
	"github.com/spate-project/spate/p2p/tracker"
)

// testTick makes silence one second, and trickle four.
const testTick = 200 * time.Millisecond

// A mute is a holding that is whole by its own word and never answers a read.
type mute struct {
	*p2ptest.Holding
	ended <-chan struct{}
}

func (m mute) ReadAt([]byte, int64) (int, error) {
	<-m.ended
	return 0, io.ErrClosedPipe
}

// TestLiars: where a third of the nodes lie, every other one is filled with the
// right bytes, and those are banned and nobody else.
func TestLiars(t *testing.T) {
	const size, rate, honest = 10 << 20, 3 << 19, 4
	for _, mode := range []string{"wrong", "silent", "trickle"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if mode != "wrong" {
				w.tick = testTick
			}
			w.restartTracker(tracker.Options{Interval: 300 * time.Millisecond}) // who was only cut off comes back soon
			data := p2ptest.Bytes(size, 20)
			names := []string{"liar-0", "liar-1"}
			for _, name := range names {
				switch mode {
				case "wrong":
					w.node(name, 0).join(liar(data), noOrigin, true)
				case "silent":
					w.node(name, 0).join(mute{p2ptest.Full(data), t.Context().Done()}, noOrigin, true)
				case "trickle":
					w.node(name, 16<<10).join(p2ptest.Full(data), noOrigin, true)
				}
			}
			var nodes []*node
			var holdings []*p2ptest.Holding
			for k := range honest {
				n := w.nodeAs(newIdentity(t, w.ca, fmt.Sprintf("node-%d", k), time.Hour), rate, p2p.Options{Patience: time.Second})
				h := partly(t, data, func(i int) bool { return i%(honest+1) == k })
				n.join(h, w.from(data), true)
				nodes, holdings = append(nodes, n), append(holdings, h)
			}
			var banned []string // by any of nodes
			eventually(t, "the liars are banned", func() bool {
				banned = nil
				for _, n := range nodes {
					for _, b := range n.engine.Bans() {
						banned = append(banned, b.Peer)
					}
				}
				slices.Sort(banned)
				banned = slices.Compact(banned)
				return len(banned) >= len(names)
			})
			for _, n := range nodes {
				n.link.SetLimits(0, 0)
			}
			filled(t, data, holdings...)
			if !slices.Equal(banned, names) {
				t.Errorf("banned are %q, want %q", banned, names)
			}
			nobodyBanned(t, nodes)
		})
	}
}

// TestSlowIsNoCrime: who sends slowly, among fast ones, is not banned.
func TestSlowIsNoCrime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tick = testTick
	data := p2ptest.Bytes(3<<20, 21)
	w.node("fast", 2<<20).join(p2ptest.Full(data), noOrigin, true)
	w.node("slow", 192<<10).join(p2ptest.Full(data), noOrigin, true)
	n, h := w.node("node", 0), p2ptest.NewHolding(p2ptest.Tree(data))
	n.join(h, noOrigin, true)
	filled(t, data, h)
	if all := n.engine.Bans(); len(all) > 0 {
		t.Errorf("banned are %v", all)
	}
}

// TestSilentTail: the last pieces were asked of a peer that sends nothing, there
// is no origin, and all else is here. They are asked of another.
func TestSilentTail(t *testing.T) {
	t.Parallel()
	for _, fill := range []bool{true, false} {
		t.Run(fmt.Sprint("fill=", fill), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.tick = testTick
			data := p2ptest.Bytes(1000, 22) // one block, and so one peer is asked
			w.node("mute", 0).join(mute{p2ptest.Full(data), t.Context().Done()}, noOrigin, true)
			n, h := w.node("node", 0), p2ptest.NewHolding(p2ptest.Tree(data))
			n.join(h, noOrigin, fill)
			eventually(t, "the mute is connected", func() bool { s, _ := n.Stats(digestOf(h)); return fill && s.Peers > 0 || !fill })
			w.node("seed", 0).join(p2ptest.Full(data), noOrigin, true)
			if !fill {
				if err := n.Fetch(soon(t), digestOf(h), 0); err != nil {
					t.Fatal(err)
				}
			}
			filled(t, data, h)
		})
	}
}

// TestBanned: a banned peer is not dialled and not let in, its connections are
// closed, and when its time is over all is well again.
func TestBanned(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.restartTracker(tracker.Options{Interval: 50 * time.Millisecond})
	data := p2ptest.Bytes(zooSize, 23)
	a, b := w.node("a", 0), w.nodeAs(newIdentity(t, w.ca, "b", time.Hour), 0, p2p.Options{})
	seed := p2ptest.Full(data)
	a.join(seed, noOrigin, true)
	first := p2ptest.NewHolding(seed.Tree())
	b.join(first, noOrigin, true)
	filled(t, data, first)

	a.engine.Ban("b")
	eventually(t, "the connections to a banned peer are closed", func() bool {
		s, _ := a.Stats(digestOf(seed))
		return s.Peers == 0
	})
	if _, err := a.engine.DialPeer(t.Context(), "b"); err == nil {
		t.Error("a banned peer is dialled")
	}
	shut := w.knock(newIdentity(t, w.ca, "b", time.Hour), a, "a")
	if _, err := io.ReadAll(shut); err != nil {
		t.Errorf("a banned peer's connection is not closed in order: %v", err)
	}
	b.Leave(digestOf(seed))
	again := p2ptest.NewHolding(seed.Tree())
	b.join(again, noOrigin, true)

	a.engine.Forgive("b")
	if all := a.engine.Bans(); len(all) > 0 {
		t.Errorf("a ban has ended, and banned are %v", all)
	}
	filled(t, data, again)
}

// knock opens a connection to n, which has the given name, as the node that id is of.
func (w *world) knock(id *identity.Identity, n *node, name string) *tls.Conn {
	w.t.Helper()
	raw, err := net.Dial("tcp", n.engine.Addr())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { raw.Close() })
	raw.SetDeadline(time.Now().Add(patience))
	c := tls.Client(raw, id.Client(name))
	if err := c.HandshakeContext(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// open opens a stream over a connection that knock opened.
func open(t *testing.T, c net.Conn) net.Conn {
	t.Helper()
	line, err := smux.Client(c, &smux.Config{
		Version: 2, KeepAliveDisabled: true, MaxFrameSize: 32 << 10, MaxStreamBuffer: 1 << 20, MaxReceiveBuffer: 1 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		line.AcceptStream() // until it is cut off, which a writer that waits for room would not notice
		line.Close()
	}()
	t.Cleanup(func() { line.Close() })
	s, err := line.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestHashMessages: a peer that asks for piece hashes, or tells some, gets no
// answer and is banned, and what it told changes nothing.
func TestHashMessages(t *testing.T) {
	data := p2ptest.Bytes(zooSize, 24)
	tree := p2ptest.Tree(data)
	o := tree.Object()
	about := pp.Message{PiecesRoot: o.Root, BaseLayer: 4, Length: 2}
	lies := about
	lies.Hashes = [][32]byte{{1}, {2}}
	for _, kind := range []pp.MessageType{pp.HashRequest, pp.Hashes, pp.HashReject} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			n := w.node("node", 0)
			h := partly(t, data, func(i int) bool { return i == 0 })
			n.join(h, noOrigin, true)

			c := open(t, w.knock(newIdentity(t, w.ca, "talker", time.Hour), n, "node"))
			info, err := torrent.InfoOf(tree)
			if err != nil {
				t.Fatal(err)
			}
			shake := pp.NewPeerExtensionBytes(pp.ExtensionBitFast, pp.ExtensionBitV2Upgrade)
			hash := metainfo.Hash(sha1.Sum(info))
			if _, err := pp.Handshake(t.Context(), c, &hash, [20]byte{1}, shake); err != nil {
				t.Fatal(err)
			}
			msg := about
			if kind == pp.Hashes {
				msg = lies
			}
			msg.Type = kind
			flood := make([]byte, 0, 1<<20)
			for len(flood) < 1<<20 {
				flood = append(flood, msg.MustMarshalBinary()...)
			}
			c.Write(flood) // until it is cut off
			answer, _ := io.ReadAll(c)
			if len(answer) > 10<<10 {
				t.Errorf("a flood was answered with %d bytes", len(answer))
			}
			if all := n.engine.Bans(); len(all) != 1 || all[0].Peer != "talker" {
				t.Errorf("banned are %v, want the talker", all)
			}
			w.node("seed", 0).join(p2ptest.Full(data), noOrigin, true)
			filled(t, data, h)
		})
	}
}
