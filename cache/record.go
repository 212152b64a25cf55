package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spate-project/spate/cache/piece"
)

// An object lies in two files of objects/<first two hex digits>/<hex digest>/:
//
//	data    the object's bytes, sparse, of its full size from the start
//	pieces  the record: a header that says what object this is, then slots
//
// The record is, with integers big-endian:
//
//	 8  "spatepc1"
//	32  digest
//	 8  size
//	 8  piece length
//	32  root
//	 …  piece layer, 32 bytes a piece; none for an object of at most one piece
//	32  SHA-256 of all the above
//	 8  for each piece: the first 8 bytes of its hash when it is present, else zeros
//	 8  the first 8 bytes of the digest when the object passed its audit, else zeros
//
// Crash rules. The header is written once, with all slots empty; a torn or
// altered one fails its checksum and the object starts anew. A slot is written
// by one pwrite after the piece's bytes were written and verified; a slot with
// any other content than the piece's own is an absent piece. The two files are
// never synced, so after a power cut a slot may stand without its bytes; hence
// a slot from an earlier process is only a claim, and the piece is hashed again
// before it counts. A lock on the file "lock" keeps a second process out.
const (
	dataName   = "data"
	recordName = "pieces"

	recordMagic = "spatepc1"
	fixedSize   = len(recordMagic) + sha256.Size + 8 + 8 + sha256.Size
	slotSize    = 8
)

// encodeHeader returns what a record of t starts with.
func encodeHeader(t *piece.Tree) []byte {
	o := t.Object()
	b := make([]byte, 0, headerSize(o))
	b = append(b, recordMagic...)
	b = append(b, o.Digest[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(o.Size))
	b = binary.BigEndian.AppendUint64(b, uint64(o.PieceLength))
	b = append(b, o.Root[:]...)
	b = append(b, t.Layer()...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

func headerSize(o piece.Object) int {
	n := fixedSize + sha256.Size
	if o.Pieces() > 1 {
		n += o.Pieces() * sha256.Size
	}
	return n
}

// parseObject reads which object a record that begins with b says it is of.
func parseObject(b []byte) (piece.Object, error) {
	if len(b) < fixedSize || string(b[:len(recordMagic)]) != recordMagic {
		return piece.Object{}, errors.New("not a record of pieces")
	}
	at := b[len(recordMagic):]
	o := piece.Object{
		Digest:      piece.Digest(at[:32]),
		Size:        int64(binary.BigEndian.Uint64(at[32:])),
		PieceLength: int64(binary.BigEndian.Uint64(at[40:])),
		Root:        piece.Root(at[48:80]),
	}
	return o, o.Check()
}

// parseRecord reads a whole record: the tree, proven against its root, and the slots.
func parseRecord(b []byte) (*piece.Tree, []byte, error) {
	o, err := parseObject(b)
	if err != nil {
		return nil, nil, err
	}
	header := headerSize(o)
	if want := header + (o.Pieces()+1)*slotSize; len(b) != want {
		return nil, nil, fmt.Errorf("the record has %d bytes, %d pieces need %d", len(b), o.Pieces(), want)
	}
	layer := b[fixedSize : header-sha256.Size]
	if sum := sha256.Sum256(b[:header-sha256.Size]); !bytes.Equal(sum[:], b[header-sha256.Size:header]) {
		return nil, nil, errors.New("the record's checksum does not match")
	}
	t, err := piece.NewTree(o, layer)
	if err != nil {
		return nil, nil, err
	}
	return t, b[header:], nil
}

// A record is the open file of an object's record.
type record struct {
	file  *os.File
	tree  *piece.Tree
	slots int64 // where they begin
}

// openRecord opens the record of t at path. slots are the claims that it holds;
// fits is false when it was not there or not t's, and was then begun anew.
func openRecord(path string, t *piece.Tree) (r *record, slots []byte, fits bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, false, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	header := encodeHeader(t)
	r = &record{file: f, tree: t, slots: int64(len(header))}
	size := len(header) + (t.Object().Pieces()+1)*slotSize
	had, err := io.ReadAll(io.LimitReader(f, int64(size)+1))
	if err == nil && len(had) == size && bytes.HasPrefix(had, header) {
		return r, had[len(header):], true, nil
	}
	if err := f.Truncate(0); err != nil {
		return nil, nil, false, err
	}
	fresh := append(header, make([]byte, size-len(header))...)
	if _, err := f.WriteAt(fresh, 0); err != nil {
		return nil, nil, false, err
	}
	return r, fresh[len(header):], false, nil
}

// slot returns what the slot of piece i holds when it is present. The slot after the last piece's is the audit's.
func slot(t *piece.Tree, i int) []byte {
	if i == t.Object().Pieces() {
		d := t.Object().Digest
		return d[:slotSize]
	}
	h := t.Hash(i)
	return h[:slotSize]
}

// claims reports whether slots say that piece i is present.
func claims(t *piece.Tree, slots []byte, i int) bool {
	return bytes.Equal(slots[i*slotSize:(i+1)*slotSize], slot(t, i))
}

func (r *record) set(i int) error {
	_, err := r.file.WriteAt(slot(r.tree, i), r.slots+int64(i)*slotSize)
	return err
}

func (r *record) clear(i int) error {
	_, err := r.file.WriteAt(make([]byte, slotSize), r.slots+int64(i)*slotSize)
	return err
}
