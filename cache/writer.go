package cache

import (
	"errors"
	"fmt"

	"github.com/spate-project/spate/cache/piece"
)

// Put writes a verified piece and records it present. A piece that is present
// already is left alone. The piece's bytes are borrowed until Put returns. The
// zero Verified and another object's are refused; any other error is of the
// disk, and then the piece is not here.
func (o *Object) Put(v piece.Verified) error {
	if !v.Valid() {
		return fmt.Errorf("put into object %s: the piece was not verified", o.object.Digest)
	}
	if v.Object() != o.object {
		return fmt.Errorf("put into object %s: the piece is of object %s with root %s", o.object.Digest, v.Object().Digest, v.Object().Root)
	}
	i := v.Index()
	if err := o.charge(i); err != nil {
		return err
	}
	if was, err := o.seal(i, false); err != nil || was == present {
		return err
	}
	off, _ := o.object.Span(i)
	if _, err := o.data.WriteAt(v.Bytes(), off); err != nil {
		o.release(i, absent)
		return o.diskFailed("write", i, err)
	}
	return o.enter(i)
}

// WriteBlock stores p, bytes of piece i that begin off bytes into it, in place
// in the object's file, where nobody can read them before Commit. Blocks may
// come in any order, twice, and from several goroutines; where they overlap,
// one of them stays. Blocks that begin and end at a leaf (piece.LeafSize), or
// at the piece's end, save Commit from reading them again. p is borrowed, and
// must not change, until WriteBlock returns. WriteBlock waits for a Put or
// Commit under way; a block that comes too late, when the piece is present, is
// dropped without an error.
func (o *Object) WriteBlock(i int, p []byte, off int64) error {
	if i < 0 || i >= len(o.states) {
		return o.noPiece(i)
	}
	start, n := o.object.Span(i)
	if off < 0 || int64(len(p)) > n-off {
		return fmt.Errorf("write %d bytes at %d of piece %d of object %s: the piece has %d bytes", len(p), off, i, o.object.Digest, n)
	}
	if err := o.charge(i); err != nil {
		return err
	}
	b, leaves, err := o.beginBlock(i, off, int64(len(p)))
	if b == nil || err != nil {
		return err
	}
	_, err = o.data.WriteAt(p, start+off)
	if leaves != nil && err == nil {
		leaves = piece.AppendLeaves(leaves, p)
	}

	o.mu.Lock()
	o.writers--
	if b.end(len(leaves), err != nil); b.writers == 0 {
		o.moved.Broadcast()
	}
	o.mu.Unlock()
	if err != nil {
		return o.diskFailed("write", i, err)
	}
	return nil
}

// beginBlock counts a block of piece i as being written, and returns where the
// hashes of its leaves go, if they are of use; there is no b when the piece is
// present. Who has the piece sealed may yet fail, so that is waited for.
func (o *Object) beginBlock(i int, off, n int64) (b *blocks, leaves []piece.Hash, err error) {
	for {
		if here, err := o.Settle(i); here || err != nil {
			return nil, nil, err
		}
		o.mu.Lock()
		if o.states[i] == absent && o.err == nil {
			if b = o.blocks[i]; b == nil {
				b = new(blocks)
				o.blocks[i] = b
			}
			_, size := o.object.Span(i)
			leaves = b.begin(off, n, size)
			o.writers++
			o.mu.Unlock()
			return b, leaves, nil
		}
		o.mu.Unlock()
	}
}

// Commit verifies what was written of piece i and records it present; from
// then on nobody changes its bytes. A piece that is present already stays so.
// When the bytes do not match, the error is a *piece.WrongBytesError without a
// peer, and the piece starts anew: all its blocks are to be written again.
func (o *Object) Commit(i int) error {
	if was, err := o.seal(i, false); err != nil || was == present {
		return err
	}
	if err := o.verifyBlocks(i); err != nil {
		o.release(i, absent)
		if wrong := (*piece.WrongBytesError)(nil); errors.As(err, &wrong) {
			o.store.stats.wrongBytes.Add(1)
			return err
		}
		return o.diskFailed("read back", i, err)
	}
	return o.enter(i)
}

// verifyBlocks verifies what came of the sealed piece i, by the hashes of its
// blocks where they tell what the file holds.
func (o *Object) verifyBlocks(i int) error {
	o.mu.Lock()
	leaves := o.blocks[i].whole()
	o.mu.Unlock()
	if leaves == nil {
		return o.verify(i)
	}
	return o.tree.VerifyLeaves(i, leaves)
}

// enter records the sealed and verified piece i and makes it present.
func (o *Object) enter(i int) error {
	if err := o.record.set(i); err != nil {
		o.release(i, absent)
		return o.diskFailed("record", i, err)
	}
	o.store.stats.fetched.Add(1)
	o.release(i, present)
	return nil
}
