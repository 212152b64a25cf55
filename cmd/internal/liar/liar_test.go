package liar

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"

	"go.uber.org/goleak"

	"github.com/spate-project/spate/p2p/p2ptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestWrong: a liar's reads have the right length, and no piece passes.
func TestWrong(t *testing.T) {
	data := p2ptest.Bytes(600_000, 1)
	tree := p2ptest.Tree(data)
	h := holding{tree: tree, mode: Wrong}
	for i := range tree.Object().Pieces() {
		off, n := tree.Object().Span(i)
		p := make([]byte, n)
		if k, err := h.ReadAt(p, off); int64(k) != n || err != nil {
			t.Fatalf("piece %d: %d bytes, %v", i, k, err)
		}
		if _, err := tree.Verify(i, p); !h.Has(i) || err == nil {
			t.Errorf("piece %d is right", i)
		}
	}
	p := make([]byte, 10)
	if k, err := h.ReadAt(p, int64(len(data))-5); k != 5 || err != io.EOF {
		t.Errorf("at the end: %d bytes, %v", k, err)
	}
}

// TestSilent: a silent liar's reads end only when it ends.
func TestSilent(t *testing.T) {
	ended := make(chan struct{})
	h := holding{tree: p2ptest.Tree([]byte("abc")), mode: Silent, ended: ended}
	read := make(chan error)
	go func() {
		_, err := h.ReadAt(make([]byte, 3), 0)
		read <- err
	}()
	select {
	case <-read:
		t.Error("it has answered")
	case ended <- struct{}{}: // taken by the read that waits
		if err := <-read; err == nil {
			t.Error("the read has succeeded")
		}
	}
}

// TestTrickle: what is free goes at once, what follows waits, and closing ends the wait.
func TestTrickle(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := tricklingListener{inner}
	defer ln.Close()
	there, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error)
	go func() {
		_, err := c.Write(make([]byte, 1<<20))
		wrote <- err
	}()
	got := make([]byte, free)
	if _, err := io.ReadFull(there, got); err != nil || !bytes.Equal(got, make([]byte, free)) {
		t.Errorf("what is free does not come: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-wrote; !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, want net.ErrClosed", err)
	}
}

// TestMode: only the modes that there are can be set.
func TestMode(t *testing.T) {
	var m Mode
	for _, good := range []Mode{Wrong, Silent, Trickle} {
		if err := m.Set(good.String()); err != nil || m != good {
			t.Errorf("%s: %v, %v", good, m, err)
		}
	}
	if err := m.Set("polite"); err == nil || m != Trickle {
		t.Errorf("a mode that is none: %v, %v", m, err)
	}
}
