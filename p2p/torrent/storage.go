package torrent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/anacrolix/torrent/metainfo"
	"github.com/anacrolix/torrent/storage"

	"github.com/spate-project/spate/cache/piece"
)

// noStorage is the storage of torrents that bring none of their own: there are no such torrents.
type noStorage struct{}

func (noStorage) OpenTorrent(context.Context, *metainfo.Info, metainfo.Hash) (storage.TorrentImpl, error) {
	return storage.TorrentImpl{}, errors.New("a torrent without a holding")
}

// OpenTorrent makes the holding the torrent's storage (storage.ClientImpl).
func (s *swarm) OpenTorrent(context.Context, *metainfo.Info, metainfo.Hash) (storage.TorrentImpl, error) {
	return storage.TorrentImpl{
		Piece: func(p metainfo.Piece) storage.PieceImpl { return stored{s, p.Index()} },
		Close: func() error { return nil }, // the holding belongs to who joined it
	}, nil
}

// stored is one piece as anacrolix/torrent sees it.
type stored struct {
	*swarm
	index int
}

var _ io.WriterTo = stored{}

// ReadAt reads a verified piece, for a peer.
func (p stored) ReadAt(b []byte, off int64) (int, error) {
	at, _ := p.object.Span(p.index)
	return p.holding.ReadAt(b, at+off)
}

// WriteAt stores a block that a peer sent.
func (p stored) WriteAt(b []byte, off int64) (int, error) {
	if err := p.holding.WriteBlock(p.index, b, off); err != nil {
		return 0, err
	}
	return len(b), nil
}

// WriteTo shows the piece to the engine's own hash once all its blocks are
// there. The holding verifies it first, against the proven tree: that decides.
// A piece that fails is shown as no bytes at all, which cannot match, so that
// the engine fails it too, blames its senders and asks for it again.
func (p stored) WriteTo(w io.Writer) (int64, error) {
	off, n := p.object.Span(p.index)
	err := p.commit()
	if _, wrong := errors.AsType[*piece.WrongBytesError](err); wrong {
		return 0, nil
	}
	if err != nil {
		// The engine would ask for the piece again at once. Its locks are held here.
		go p.writeFailed(err)
		return 0, err
	}
	return io.Copy(w, io.NewSectionReader(p.holding, off, n))
}

func (p stored) commit() error {
	p.mu.Lock()
	senders := p.senders[p.index]
	delete(p.senders, p.index)
	p.own[p.index] = true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.own, p.index)
		p.mu.Unlock()
	}()

	err := p.holding.Commit(p.index)
	if wrong, ok := errors.AsType[*piece.WrongBytesError](err); ok {
		wrong.From = strings.Join(senders, ", ")
		p.refused.Add(1)
		p.engine.opts.Logger.Warn("refused a piece from peers", "err", err)
	}
	return err
}

// MarkComplete is called when the engine's hash agreed.
func (p stored) MarkComplete() error {
	if !p.holding.Has(p.index) {
		return fmt.Errorf("piece %d of object %s passed the engine's hash but not the holding's", p.index, p.object.Digest)
	}
	return nil
}

// MarkNotComplete is called when the engine's hash failed, just before the
// engine takes the piece for absent. It may have come from the origin
// meanwhile; then the engine is told again.
func (p stored) MarkNotComplete() error {
	time.AfterFunc(time.Second, func() {
		if p.holding.Has(p.index) {
			p.present(p.index)
		}
	})
	return nil
}

// Completion reports what the holding has verified.
func (p stored) Completion() storage.Completion {
	return storage.Completion{Ok: true, Complete: p.holding.Has(p.index)}
}
