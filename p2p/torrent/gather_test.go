package torrent

import (
	"bytes"
	"errors"
	"net"
	"testing"

	"github.com/spate-project/spate/p2p/p2ptest"
)

// A sink keeps what is written, until it has had enough.
type sink struct {
	net.Conn
	bytes.Buffer
	writes, enough int
}

var errEnough = errors.New("enough")

func (s *sink) Write(p []byte) (int, error) {
	if s.writes++; s.writes > s.enough {
		return 0, errEnough
	}
	return s.Buffer.Write(p)
}

func (s *sink) Read(p []byte) (int, error) { return s.Buffer.Read(p) }

// TestGather: every byte arrives, in order, by as few writes as there is room for.
func TestGather(t *testing.T) {
	data := p2ptest.Bytes(1<<20, 5)
	for _, size := range []int{1, 1000, 16<<10 + 22, gatherRoom - 1, gatherRoom, gatherRoom + 1, len(data)} {
		s := &sink{enough: 1 << 20}
		g := &gatherer{Conn: s}
		write := func(b []byte) (pieces int) {
			for len(b) > 0 {
				n, err := g.Write(b[:min(size, len(b))])
				if err != nil {
					t.Fatal(err)
				}
				b = b[n:]
				pieces++
			}
			return pieces
		}
		const first, second = 100 << 10, 700 << 10
		if n := write(data[:first]); s.writes != n {
			t.Errorf("%d bytes at a time: %d writes became %d with nothing to gather", size, n, s.writes)
		}
		s.writes = 0
		g.hold()
		n := write(data[first:second])
		if err := g.send(); err != nil {
			t.Fatal(err)
		}
		fit := max(1, gatherRoom/size) // writes that are gathered into one
		if most := (n + fit - 1) / fit; s.writes > most {
			t.Errorf("%d bytes at a time: %d writes became %d, want %d", size, n, s.writes, most)
		}
		write(data[second:])
		if !bytes.Equal(s.Bytes(), data) {
			t.Errorf("%d bytes at a time: other bytes arrived", size)
		}
	}
}

// TestGatherFails: who writes is told what became of what was kept.
func TestGatherFails(t *testing.T) {
	for enough := range 3 {
		g := &gatherer{Conn: &sink{enough: enough}}
		g.hold()
		var err error
		for range 2*gatherRoom/1000 + 1 {
			if err == nil {
				_, err = g.Write(make([]byte, 1000))
			}
		}
		if err = errors.Join(err, g.send()); !errors.Is(err, errEnough) {
			t.Errorf("after %d writes: %v", enough, err)
		}
	}
}
