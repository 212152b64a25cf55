package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	fillStep    = 1 << 20 // what readers wait for at a time
	fillRetries = 5       // broken connections without a byte in between, before a fill is given up
)

// A blobFill brings one blob from an upstream, as an upload to the store, while
// any number of requests read what has arrived. It is in the repository only
// once its digest is right; a killed process leaves an upload that expires.
type blobFill struct {
	repo   string
	size   int64
	upload *Upload

	mu    sync.Mutex
	grown *sync.Cond
	have  int64 // bytes that can be read
	done  bool
	err   error // why the fill ended without the blob
}

// serveBlob answers from a blob that is on its way here, or with missing when no
// upstream has it. The last byte waits for the digest: a client of wrong bytes sees a broken answer.
func (f *follower) serveBlob(w http.ResponseWriter, req *http.Request, rt route, missing error) error {
	from, _, err := f.repository(rt.name)
	if err != nil {
		return err
	}
	if from == nil {
		return missing
	}
	if err := f.do(req.Context(), rt.name+"/"+rt.digest.String(), upstreamTimeout, func(ctx context.Context) error {
		return f.begin(ctx, from, rt.name, rt.digest)
	}); err != nil {
		return err
	}
	f.mu.Lock()
	fill := f.fills[rt.name+"@"+rt.digest.String()]
	f.mu.Unlock()
	if fill == nil { // it is here by now, or nowhere
		file, err := f.store.OpenBlob(rt.name, rt.digest)
		if err != nil {
			return err
		}
		defer file.Close()
		identify(w, rt.digest, "application/octet-stream")
		http.ServeContent(w, req, "", time.Time{}, file)
		return nil
	}
	file, err := f.store.root.Open(fill.upload.dataPath())
	if errors.Is(err, os.ErrNotExist) { // it has just ended
		if file, err = f.store.OpenBlob(rt.name, rt.digest); errors.Is(err, ErrBlobUnknown) {
			return upstreamFailed(err)
		}
	}
	if err != nil {
		return err
	}
	defer file.Close()
	defer context.AfterFunc(req.Context(), fill.wake)()
	identify(w, rt.digest, "application/octet-stream")
	http.ServeContent(w, req, "", time.Time{}, &growing{ctx: req.Context(), fill: fill, file: file})
	return nil
}

// begin starts the fill of a blob unless it is here or on its way.
func (f *follower) begin(ctx context.Context, from UpstreamRepository, repo string, d digest.Digest) error {
	key := repo + "@" + d.String()
	f.mu.Lock()
	under := f.fills[key] != nil
	f.mu.Unlock()
	if _, err := f.store.BlobSize(repo, d); under || err == nil {
		return nil
	}
	desc, err := from.ResolveBlob(ctx, d)
	if err != nil {
		return err
	}
	upload, err := f.store.CreateUpload(repo, d.Algorithm())
	if err != nil {
		return err
	}
	fill := &blobFill{repo: repo, size: desc.Size, upload: upload}
	fill.grown = sync.NewCond(&fill.mu)
	f.mu.Lock()
	f.fills[key] = fill
	f.mu.Unlock()
	f.busy.Go(func() {
		err := f.run(fill, from, desc)
		if err != nil {
			f.opts.Logger.Error("take a blob from the upstream registry", "repository", repo, "digest", d, "error", err)
		}
		f.mu.Lock()
		delete(f.fills, key)
		f.mu.Unlock()
		fill.end(err)
	})
	return nil
}

// run fetches the blob, going on after broken connections where it was.
func (f *follower) run(fill *blobFill, from UpstreamRepository, desc ocispec.Descriptor) error {
	if err := fill.upload.Acquire(f.ctx, func() {}); err != nil {
		return err
	}
	defer fill.upload.Release()
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	case <-f.ctx.Done():
		fill.upload.Cancel()
		return f.ctx.Err()
	}
	for failed := 0; fill.upload.Offset() < desc.Size; {
		before := fill.upload.Offset()
		err := f.append(fill, from, desc)
		if fill.upload.Offset() > before {
			failed = 0
		} else {
			failed++
		}
		if err != nil && (failed == fillRetries || f.ctx.Err() != nil || !errors.Is(err, ErrInterrupted)) {
			fill.upload.Cancel()
			return err
		}
	}
	return fill.upload.Finish(desc.Digest)
}

// append takes what one connection gives.
func (f *follower) append(fill *blobFill, from UpstreamRepository, desc ocispec.Descriptor) error {
	off := fill.upload.Offset()
	body, err := from.Range(f.ctx, desc, off, desc.Size-off)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInterrupted, err)
	}
	defer body.Close()
	for fill.upload.Offset() < desc.Size {
		_, err := fill.upload.Append(io.LimitReader(body, fillStep))
		fill.advance(fill.upload.Offset())
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *blobFill) advance(have int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.have = min(have, b.size-1)
	b.grown.Broadcast()
}

func (b *blobFill) end(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done, b.err = true, err
	if err == nil {
		b.have = b.size
	}
	b.grown.Broadcast()
}

func (b *blobFill) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.grown.Broadcast()
}

// readable waits until there are bytes at off and returns up to where.
func (b *blobFill) readable(ctx context.Context, off int64) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.have <= off && !b.done && ctx.Err() == nil {
		b.grown.Wait()
	}
	switch {
	case b.err != nil:
		return 0, b.err
	case b.have > off:
		return b.have, nil
	}
	return 0, ctx.Err()
}

// A growing reads a blob that is being filled; a read waits for its bytes.
type growing struct {
	ctx  context.Context
	fill *blobFill
	file *os.File
	off  int64
}

func (g *growing) Read(p []byte) (int, error) {
	if g.off >= g.fill.size {
		return 0, io.EOF
	}
	end, err := g.fill.readable(g.ctx, g.off)
	if err != nil {
		return 0, err
	}
	n, err := g.file.ReadAt(p[:min(int64(len(p)), end-g.off)], g.off)
	g.off += int64(n)
	return n, err
}

// Seek is what http.ServeContent needs of it.
func (g *growing) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += g.off
	case io.SeekEnd:
		offset += g.fill.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the start of a blob")
	}
	g.off = offset
	return offset, nil
}
