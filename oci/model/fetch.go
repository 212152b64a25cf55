package model

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// A Ranger is a source that can be read from the middle. *remote.Repository is one.
type Ranger interface {
	// Range opens exactly n bytes of blob at off. The error matches
	// errdef.ErrUnsupported when only whole blobs can be had.
	Range(ctx context.Context, blob ocispec.Descriptor, off, n int64) (io.ReadCloser, error)
}

const (
	// partSize is how much of a file one stream fetches at a time, in bytes.
	partSize = 16 << 20

	// attempts is how often in a row a part may break off without a byte received.
	attempts = 8
)

// fill writes the verified bytes of f into file.
func (u *unpacker) fill(ctx context.Context, file *os.File, f File) error {
	if err := file.Truncate(f.Size); err != nil {
		return err
	}
	if ranger, ok := u.source.(Ranger); ok {
		err := u.fillParts(ctx, ranger, file, f)
		if !errors.Is(err, errdef.ErrUnsupported) {
			return err
		}
	}
	return u.fillWhole(ctx, file, f)
}

// fillWhole fetches f in one stream.
func (u *unpacker) fillWhole(ctx context.Context, file *os.File, f File) error {
	if err := u.streams.Acquire(ctx, 1); err != nil {
		return err
	}
	defer u.streams.Release(1)
	body, err := u.source.Fetch(ctx, f.Descriptor)
	if err != nil {
		return err
	}
	defer body.Close()
	w := &partWriter{file: file, end: f.Size, advanced: u.counter(f)}
	if _, err := w.copy(body); err != nil {
		return err
	}
	v := newVerifier(f)
	if err := v.read(ctx, file, 0, f.Size); err != nil {
		return err
	}
	return v.check()
}

// fillParts fetches f in several streams. What has arrived is hashed in order
// while the rest arrives.
func (u *unpacker) fillParts(ctx context.Context, ranger Ranger, file *os.File, f File) error {
	count := int((f.Size + partSize - 1) / partSize)
	arrived := make([]chan struct{}, count)
	for i := range arrived {
		arrived[i] = make(chan struct{})
	}
	advanced := u.counter(f)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		v := newVerifier(f)
		for i := range arrived {
			select {
			case <-arrived[i]:
			case <-ctx.Done():
				return ctx.Err()
			}
			off := int64(i) * partSize
			if err := v.read(ctx, file, off, min(partSize, f.Size-off)); err != nil {
				return err
			}
		}
		return v.check()
	})
	for i := range arrived {
		if u.streams.Acquire(ctx, 1) != nil {
			break // g knows why ctx is done
		}
		g.Go(func() error {
			defer u.streams.Release(1)
			off := int64(i) * partSize
			w := &partWriter{file: file, off: off, end: min(off+partSize, f.Size), advanced: advanced}
			if err := u.fetchPart(ctx, ranger, f, w); err != nil {
				return err
			}
			close(arrived[i])
			return nil
		})
	}
	return g.Wait()
}

// fetchPart fills w. When a stream breaks off it goes on from there with the
// next, as long as that brings anything forward.
func (u *unpacker) fetchPart(ctx context.Context, ranger Ranger, f File, w *partWriter) error {
	for failed := 0; ; {
		n, err := u.fetchRange(ctx, ranger, f, w)
		if n > 0 {
			failed = 0
			u.received.Store(true)
		}
		if err == nil {
			return nil
		}
		if failed++; failed > attempts || !u.received.Load() || !brokeOff(err) { // at first sight an error is told at once
			return err
		}
		select {
		case <-time.After(min(250*time.Millisecond<<(failed-1), 5*time.Second)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// fetchRange does one request for what w lacks and returns how much came. It
// gives up on a source that is silent for too long.
func (u *unpacker) fetchRange(ctx context.Context, ranger Ranger, f File, w *partWriter) (n int64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(u.opts.Silence, func() { cancel(errSilent) })
	defer silence.Stop()
	w.heard = func() { silence.Reset(u.opts.Silence) }
	defer func() {
		if err != nil && errors.Is(context.Cause(ctx), errSilent) {
			err = fmt.Errorf("byte %d of blob %s: %w for %v", w.off, f.Descriptor.Digest, errSilent, u.opts.Silence)
		}
	}()
	body, err := ranger.Range(ctx, f.Descriptor, w.off, w.end-w.off)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	return w.copy(body)
}

var errSilent = errors.New("the registry sent nothing")

// brokeOff reports whether err is of a connection or a registry that is busy or
// restarting, so that another request may do better.
func brokeOff(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	if answer := (*errcode.ErrorResponse)(nil); errors.As(err, &answer) {
		return answer.StatusCode >= 500 || answer.StatusCode == http.StatusTooManyRequests
	}
	return errors.Is(err, errSilent) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ECONNREFUSED) || errors.As(err, new(net.Error))
}

// counter returns a function that adds to what is done of f.
func (u *unpacker) counter(f File) func(n int64) {
	var done int64
	return func(n int64) {
		u.mu.Lock()
		defer u.mu.Unlock()
		done += n
		u.opts.progress(Event{Step: Advanced, Path: f.Path, Done: done, Size: f.Size})
	}
}

// A partWriter writes the bytes [off, end) of a file and moves off forward.
type partWriter struct {
	file     *os.File
	off, end int64
	advanced func(n int64)
	heard    func() // called for whatever arrives, unless nil
}

// copy writes r up to the end. It fails when r ends before.
func (w *partWriter) copy(r io.Reader) (n int64, err error) {
	buf := make([]byte, min(chunkSize, w.end-w.off))
	r = heardReader{r, w.heard}
	for w.off < w.end {
		k, readErr := io.ReadFull(r, buf[:min(int64(len(buf)), w.end-w.off)])
		if k > 0 {
			if _, err := w.file.WriteAt(buf[:k], w.off); err != nil {
				return n, fmt.Errorf("write to disk: %w", err)
			}
			w.off, n = w.off+int64(k), n+int64(k)
			w.advanced(int64(k))
		}
		if readErr == io.EOF {
			readErr = io.ErrUnexpectedEOF
		}
		if readErr != nil {
			return n, readErr
		}
	}
	return n, nil
}

// A heardReader tells of every read that brought something.
type heardReader struct {
	io.Reader
	heard func()
}

func (r heardReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 && r.heard != nil {
		r.heard()
	}
	return n, err
}

// A verifier compares what is read with the digest of a file.
type verifier struct {
	file File
	hash hash.Hash
}

func newVerifier(f File) *verifier { return &verifier{f, sha256.New()} }

// read hashes the bytes [off, off+n) of r, which follow those that were hashed before.
func (v *verifier) read(ctx context.Context, r io.ReaderAt, off, n int64) error {
	buf := make([]byte, min(chunkSize, n))
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		k, err := r.ReadAt(buf[:min(int64(len(buf)), n)], off)
		v.hash.Write(buf[:k])
		off, n = off+int64(k), n-int64(k)
		if err != nil && n > 0 {
			return err
		}
	}
	return nil
}

// check fails unless all that was read has the digest of the file.
func (v *verifier) check() error {
	if digest.NewDigest(digest.SHA256, v.hash) != v.file.Descriptor.Digest {
		return wrongBytes(v.file)
	}
	return nil
}
