package liar

import (
	"context"
	"io"

	"github.com/spate-project/spate/cache/piece"
)

// A holding is whole by its own word.
type holding struct {
	tree  *piece.Tree
	mode  Mode
	ended <-chan struct{} // closed when the liar ends
}

func (h holding) Tree() *piece.Tree { return h.tree }

func (h holding) Has(i int) bool { return i >= 0 && i < h.tree.Object().Pieces() }

func (h holding) Wait(context.Context, int) error { return nil }

// ReadAt returns the right number of bytes, made up from their place, or never returns.
func (h holding) ReadAt(p []byte, off int64) (int, error) {
	if h.mode == Silent {
		<-h.ended
		return 0, io.ErrClosedPipe
	}
	n := min(int64(len(p)), h.tree.Object().Size-off)
	for i := range n {
		x := uint64(off+i) * 0x9e3779b97f4a7c15
		p[i] = byte(x >> 56)
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// What would come in is thrown away; nothing ever does, as nothing is absent.

func (h holding) Put(piece.Verified) error { return nil }

func (h holding) WriteBlock(int, []byte, int64) error { return nil }

func (h holding) Commit(int) error { return nil }

func (h holding) OnPresent(func(int)) {}
