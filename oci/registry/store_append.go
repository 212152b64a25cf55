package registry

import (
	"encoding"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
)

// bufferSize is the unit in which uploads are read, hashed and written. An upload under way has two buffers.
const bufferSize = 256 << 10

// Append receives bytes from r until io.EOF and returns how many they were. It
// keeps them also when it fails: an error of r is ErrInterrupted.
func (u *Upload) Append(r io.Reader) (int64, error) {
	n, err := u.append(r)
	if err != nil {
		return n, fmt.Errorf("receive upload %s of %s at %d: %w", u.id, u.repo, u.Offset(), err)
	}
	return n, nil
}

// append overlaps the two costs: while one buffer is hashed, the next is read and written.
func (u *Upload) append(r io.Reader) (n int64, err error) {
	if err := u.restore(); err != nil {
		return 0, err
	}
	f, err := u.store.root.OpenFile(u.dataPath(), os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if _, err := f.Seek(u.Offset(), io.SeekStart); err != nil {
		return 0, err
	}

	free := make(chan *[bufferSize]byte, 2)
	for range cap(free) {
		free <- u.store.buffers.Get().(*[bufferSize]byte)
	}
	type block struct {
		buf *[bufferSize]byte
		n   int
	}
	written := make(chan block, cap(free))
	hashed := make(chan error, 1)
	c := checkpointer{upload: u, file: f, offset: u.Offset()}
	go func() {
		for b := range written {
			u.hash.Write(b.buf[:b.n])
			free <- b.buf
			c.advance(int64(b.n))
		}
		hashed <- c.wait()
	}()

	for err == nil {
		if err = u.store.quota.room(u.Offset()); err != nil {
			break
		}
		buf := <-free
		var got, put int
		got, err = fill(r, buf[:])
		put, werr := f.Write(buf[:got])
		written <- block{buf, put}
		u.offset.Add(int64(put))
		n += int64(put)
		if werr != nil {
			err = werr
		} else if err != nil && err != io.EOF {
			err = fmt.Errorf("%w: %v", ErrInterrupted, err)
		}
	}
	close(written)
	if cerr := <-hashed; cerr != nil {
		// A failed sync leaves open which bytes the disk has: the data is worth nothing.
		u.Cancel()
		return 0, cerr
	}
	for range cap(free) {
		u.store.buffers.Put(<-free)
	}
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// fill reads until buf is full or r ends; other than io.ReadFull it returns r's own error.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// A checkpointer writes checkpoints beside the stream, one at a time.
type checkpointer struct {
	upload *Upload
	file   *os.File
	offset int64
	busy   sync.WaitGroup
	err    error // of the checkpoint before; read it after busy.Wait
}

// advance counts n hashed bytes and begins a checkpoint where one is due. It
// waits for the one before: a disk that is slower than the network holds the
// sender up here and not at the end.
func (c *checkpointer) advance(n int64) {
	c.offset += n
	if c.offset-c.upload.saved < c.upload.store.checkpointBytes {
		return
	}
	if c.wait() != nil {
		return
	}
	sum, err := c.upload.hash.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return // every hash of go-digest can; without a checkpoint a restart reads all bytes again
	}
	c.upload.saved = c.offset
	st := state{Repository: c.upload.repo, Algorithm: c.upload.algorithm, Offset: c.offset, Hash: sum}
	c.busy.Go(func() { c.err = c.upload.save(c.file, st) })
}

func (c *checkpointer) wait() error {
	c.busy.Wait()
	return c.err
}

// save syncs the data and then writes st. Its error says that the data may be
// lost; a checkpoint that cannot be written is not one.
func (u *Upload) save(data *os.File, st state) error {
	if err := data.Sync(); err != nil {
		return err
	}
	b, err := json.Marshal(st)
	if err == nil {
		err = u.store.write(u.statePath(), b)
	}
	if err == nil {
		err = u.store.sync("uploads")
	}
	if err != nil {
		u.store.log.Warn("no checkpoint of an upload; a restart will read its bytes again", "upload", u.id, "error", err)
	}
	return nil
}
