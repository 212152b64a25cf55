package registry

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// postUpload begins an upload (end-4a), takes a whole blob at once (end-4b), or
// mounts one from another repository (end-11).
func (r *Registry) postUpload(w http.ResponseWriter, req *http.Request, rt route) error {
	q := req.URL.Query()
	if from := q.Get("from"); from != "" && q.Has("mount") {
		if done, err := r.mount(w, req, rt.name, from, q.Get("mount")); done || err != nil {
			return err
		}
	}
	if q.Has("digest") {
		d, err := parseDigest(q.Get("digest"))
		if err != nil {
			return err
		}
		return r.takeBlob(w, req, rt.name, d)
	}

	algorithm := digest.Canonical
	if a := digest.Algorithm(q.Get("digest-algorithm")); a != "" {
		if !a.Available() {
			return fail(http.StatusBadRequest, codeDigestInvalid, fmt.Errorf("digest algorithm %q is unknown", a))
		}
		algorithm = a
	}
	u, err := r.store.CreateUpload(rt.name, algorithm)
	if err != nil {
		return err
	}
	progress(w, rt.name, u)
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// mount reports whether it answered. A blob that cannot be mounted is uploaded
// instead, so the caller goes on; the specification's optional mount without
// "from" is not offered, since knowing a digest is no right to its bytes.
func (r *Registry) mount(w http.ResponseWriter, req *http.Request, name, from, mount string) (done bool, err error) {
	d, err := parseDigest(mount)
	if err != nil {
		return false, err
	}
	if from, err = parseName(from); err != nil {
		return false, err
	}
	_, err = r.allow(req, from, Pull)
	if err == nil {
		err = r.store.MountBlob(name, from, d)
	}
	if err != nil {
		r.log.Debug("the client is asked to upload what it wanted to mount", "error", err)
		return false, nil
	}
	created(w, blobLocation(name, d), d)
	return true, nil
}

// takeBlob receives a whole blob in the request that asks for the upload. The
// client never learns the upload's id, so a failure ends it.
func (r *Registry) takeBlob(w http.ResponseWriter, req *http.Request, name string, d digest.Digest) error {
	u, err := r.store.CreateUpload(name, d.Algorithm())
	if err != nil {
		return err
	}
	body := r.body(w, req)
	if err := u.Acquire(req.Context(), body.interrupt); err != nil {
		return err
	}
	defer u.Release()
	_, err = u.Append(body)
	if err == nil {
		err = u.Finish(d)
	}
	if err != nil {
		u.Cancel()
		return err
	}
	created(w, blobLocation(name, d), d)
	return nil
}

// getUpload tells how much was received (end-13).
func (r *Registry) getUpload(w http.ResponseWriter, _ *http.Request, rt route) error {
	u, err := r.store.Upload(rt.name, rt.id)
	if err != nil {
		return err
	}
	progress(w, rt.name, u)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// patchUpload receives a chunk, or all the rest as a stream (end-5).
func (r *Registry) patchUpload(w http.ResponseWriter, req *http.Request, rt route) error {
	u, err := r.receive(w, req, rt)
	if err != nil {
		return err
	}
	defer u.Release()
	progress(w, rt.name, u)
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// putUpload receives the last bytes, if any, and makes the upload a blob (end-6).
func (r *Registry) putUpload(w http.ResponseWriter, req *http.Request, rt route) error {
	d, err := parseDigest(req.URL.Query().Get("digest"))
	if err != nil {
		return err
	}
	u, err := r.receive(w, req, rt)
	if errors.Is(err, ErrUploadUnknown) {
		// The client may not have heard the answer to the same request before.
		if _, held := r.store.BlobSize(rt.name, d); held != nil {
			return err
		}
		created(w, blobLocation(rt.name, d), d)
		return nil
	}
	if err != nil {
		return err
	}
	defer u.Release()
	if err := u.Finish(d); err != nil {
		return err
	}
	created(w, blobLocation(rt.name, d), d)
	return nil
}

// deleteUpload cancels an upload (end-14).
func (r *Registry) deleteUpload(w http.ResponseWriter, req *http.Request, rt route) error {
	u, err := r.store.Upload(rt.name, rt.id)
	if err != nil {
		return err
	}
	if err := u.Acquire(req.Context(), nil); err != nil {
		return err
	}
	defer u.Release()
	u.Cancel()
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// receive appends the request's body to its upload. Unless it fails, the caller
// has acquired the upload and releases it. When it fails after the upload was
// found, the answer says how much the upload has.
func (r *Registry) receive(w http.ResponseWriter, req *http.Request, rt route) (u *Upload, err error) {
	u, err = r.store.Upload(rt.name, rt.id)
	if err != nil {
		return nil, err
	}
	body := r.body(w, req)
	if err := u.Acquire(req.Context(), body.interrupt); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			progress(w, rt.name, u)
			u.Release()
		}
	}()

	want, err := announced(req, u.Offset())
	if err == nil {
		var got int64
		if got, err = u.Append(body); err != nil {
			return u, err // it says all this itself
		}
		if want >= 0 && got != want {
			err = fail(http.StatusBadRequest, codeSizeInvalid, fmt.Errorf("%d bytes came where %d were announced", got, want))
		}
	}
	if err != nil {
		err = fmt.Errorf("receive upload %s of %s: %w", rt.id, rt.name, err)
	}
	return u, err
}

// announced returns how many bytes a request says that it brings, -1 when it
// does not say. It fails when they do not belong at offset.
func announced(req *http.Request, offset int64) (int64, error) {
	contentRange := req.Header.Get("Content-Range")
	if contentRange == "" {
		return req.ContentLength, nil
	}
	c, err := parseChunk(contentRange)
	switch {
	case err != nil:
		return 0, err
	case c.first != offset:
		return 0, fail(http.StatusRequestedRangeNotSatisfiable, codeUploadInvalid,
			fmt.Errorf("the chunk begins at %d, the upload has %d bytes", c.first, offset))
	case req.ContentLength >= 0 && req.ContentLength != c.size():
		return 0, fail(http.StatusBadRequest, codeSizeInvalid,
			fmt.Errorf("Content-Range %s is of %d bytes, Content-Length of %d", contentRange, c.size(), req.ContentLength))
	}
	return c.size(), nil
}

// progress says where to go on with an upload, and from which byte. An upload
// of nothing also says "0-0": the header has no form for it.
func progress(w http.ResponseWriter, name string, u *Upload) {
	w.Header().Set("Location", "/v2/"+name+"/blobs/uploads/"+u.ID())
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(u.Offset()-1, 0)))
}

// A chunk is the range of a blob that one request carries, both ends included.
type chunk struct{ first, last int64 }

func (c chunk) size() int64 { return c.last - c.first + 1 }

// parseChunk reads a Content-Range as uploads have it, ^[0-9]+-[0-9]+$, which is not HTTP's form.
func parseChunk(s string) (chunk, error) {
	var c chunk
	first, last, ok := strings.Cut(s, "-")
	if ok {
		var err1, err2 error
		c.first, err1 = parseDecimal(first)
		c.last, err2 = parseDecimal(last)
		ok = err1 == nil && err2 == nil && c.first <= c.last
	}
	if !ok {
		return chunk{}, fail(http.StatusBadRequest, codeUploadInvalid,
			fmt.Errorf("Content-Range %q is not FIRST-LAST, two byte positions", s))
	}
	return c, nil
}

// parseDecimal reads digits without a sign, below 2^62 so that sums of two do not overflow.
func parseDecimal(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 62)
	return int64(n), err
}

// A body is an upload's request body whose reads fail when the client is silent
// for too long, or when another request takes the upload over.
type body struct {
	r       io.Reader
	conn    *http.ResponseController
	silence time.Duration

	mu    sync.Mutex
	taken bool
}

func (r *Registry) body(w http.ResponseWriter, req *http.Request) *body {
	return &body{r: req.Body, conn: http.NewResponseController(w), silence: r.opts.UploadSilence}
}

var errTaken = errors.New("another request took the upload over")

func (b *body) Read(p []byte) (int, error) {
	if err := b.deadline(time.Now().Add(b.silence)); err != nil {
		return 0, err
	}
	n, err := b.r.Read(p)
	switch {
	case err == io.EOF:
		// What the server reads from the connection next is none of our business.
		_ = b.deadline(time.Time{})
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = fmt.Errorf("no byte came for %v", b.silence)
		if b.isTaken() {
			err = errTaken
		}
	}
	return n, err
}

// deadline limits the Read that comes. A server that knows no deadlines, as one in memory, does without.
func (b *body) deadline(t time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.taken {
		return errTaken
	}
	if err := b.conn.SetReadDeadline(t); !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

func (b *body) isTaken() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.taken
}

// interrupt ends the Read that is waiting, and all that follow.
func (b *body) interrupt() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.taken = true
	// Should it fail, the Read lasts until its own deadline.
	_ = b.conn.SetReadDeadline(time.Unix(1, 0))
}
