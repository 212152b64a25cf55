package torrent

import (
	"context"
	"errors"
	"fmt"
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

var _ storage.SelfHashing = stored{}

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

// SelfHash stands for the engine's own hash once all blocks of the piece are
// there: the holding verifies it, against the proven tree, and its word is the
// piece's hash as the info dictionary has it. A piece that fails has none: the
// engine asks for it again. It blames nobody, as it would for a wrong hash.
func (p stored) SelfHash() (metainfo.Hash, error) {
	if err := p.commit(); err != nil {
		if _, wrong := errors.AsType[*piece.WrongBytesError](err); !wrong {
			// The engine would ask for the piece again at once. Its locks are held here.
			go p.writeFailed(err)
		}
		return metainfo.Hash{}, err
	}
	return shortHash(p.holding.Tree(), p.index), nil
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
	if err == nil && len(senders) > 0 {
		p.verified.Add(1)
	}
	if wrong, ok := errors.AsType[*piece.WrongBytesError](err); ok {
		wrong.From = strings.Join(senders, ", ")
		p.refused.Add(1)
		p.engine.opts.Logger.Warn("refused a piece from peers", "err", err)
		p.accuse(p.index, senders)
	}
	return err
}

// MarkComplete is called when SelfHash has vouched for the piece.
func (p stored) MarkComplete() error {
	if !p.holding.Has(p.index) {
		return fmt.Errorf("piece %d of object %s is whole for the engine but not in the holding", p.index, p.object.Digest)
	}
	return nil
}

// MarkNotComplete is called when SelfHash has failed, just before the
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
