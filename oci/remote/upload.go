package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/spate-project/spate/cache/piece"
)

// abandonTimeout is how long a failed upload waits for the registry to forget it.
const abandonTimeout = 2 * time.Second

// Upload stores a blob of size bytes from src, whose digest is not known before
// its last byte was read: POST, one streaming PATCH, then PUT. digest is called
// once, after src was read to its end. Upload needs no more memory than a copy
// needs. It does not read src after it returned and never closes it.
//
// It fails when src ends early or goes on after size bytes. The stream cannot
// be sent again, so a connection lost in the middle is an error; the registry
// is then asked to drop what it has.
func (r *Repository) Upload(ctx context.Context, src io.Reader, size int64, digest func() digest.Digest) error {
	ctx = auth.AppendRepositoryScope(ctx, r.Reference, auth.ActionPull, auth.ActionPush)
	location, err := r.startUpload(ctx)
	if err != nil {
		return r.explain("start an upload to", "", err)
	}
	if err = r.upload(ctx, location, src, size, digest); err != nil {
		r.abandonUpload(ctx, location)
		return r.explain("upload a blob to", "", err)
	}
	return nil
}

func (r *Repository) upload(ctx context.Context, location *url.URL, src io.Reader, size int64, digest func() digest.Digest) error {
	body := &uploadBody{src: src, left: size, size: size}
	if size > 0 {
		next, err := r.sendBody(ctx, location, body)
		if err != nil {
			return err
		}
		location = next
	} else if _, err := body.end(); err != nil {
		return err
	}
	return r.finishUpload(ctx, location, digest())
}

// startUpload opens an upload session and returns its address.
func (r *Repository) startUpload(ctx context.Context) (*url.URL, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url("blobs", "uploads/"), nil)
	if err != nil {
		return nil, err
	}
	resp, err := r.Client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		return nil, answerError(resp)
	}
	return r.session(resp, nil)
}

// sendBody streams body into the session and returns the session's next address.
func (r *Repository) sendBody(ctx context.Context, location *url.URL, body *uploadBody) (*url.URL, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPatch, location.String(), body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = body.size
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := r.Client.Do(req)
	if err == nil {
		defer resp.Body.Close()
	}
	complete, srcErr := body.end()
	switch {
	case srcErr != nil:
		return nil, srcErr // the cause of whatever the transport says
	case err != nil:
		return nil, err
	case resp.StatusCode != http.StatusAccepted && resp.StatusCode != http.StatusNoContent:
		return nil, answerError(resp)
	case !complete:
		return nil, errors.New("the registry answered before it had the whole blob")
	}
	return r.session(resp, location)
}

// finishUpload turns the session into a blob.
func (r *Repository) finishUpload(ctx context.Context, location *url.URL, d digest.Digest) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, location.String(), nil)
	if err != nil {
		return err
	}
	query := req.URL.Query()
	query.Set("digest", d.String())
	req.URL.RawQuery = query.Encode()
	resp, err := r.Client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		return answerError(resp)
	}
	if got := resp.Header.Get("Docker-Content-Digest"); got != "" && got != d.String() {
		return fmt.Errorf("the registry stored %s as %s", d, got)
	}
	return nil
}

// abandonUpload asks the registry to drop a session that failed. Registries do
// that in time by themselves, so nobody needs to know whether it worked.
func (r *Repository) abandonUpload(ctx context.Context, location *url.URL) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, location.String(), nil)
	if err != nil {
		return
	}
	if resp, err := r.Client.Do(req); err == nil {
		resp.Body.Close()
	}
}

// session returns the address that resp names for what comes next, or previous
// where it names none. It has to be the registry's own: the blob and the
// credential go there.
func (r *Repository) session(resp *http.Response, previous *url.URL) (*url.URL, error) {
	location, err := resp.Location()
	switch {
	case errors.Is(err, http.ErrNoLocation) && previous != nil:
		return previous, nil
	case err != nil:
		return nil, fmt.Errorf("the registry named no usable place to upload to: %w", err)
	}
	home, err := url.Parse(r.url("blobs", "uploads/"))
	if err != nil {
		return nil, err
	}
	if location.Scheme != home.Scheme || !sameHost(location, home) {
		return nil, fmt.Errorf("the registry wants the blob at another place, %s://%s", location.Scheme, location.Host)
	}
	location.Host = home.Host // one spelling, the one that tokens are kept under
	return location, nil
}

// sameHost reports whether a and b are on one host and port, written out or not.
func sameHost(a, b *url.URL) bool {
	port := func(u *url.URL) string {
		if p := u.Port(); p != "" {
			return p
		}
		return map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

// An uploadBody is exactly size bytes of src, or an error.
type uploadBody struct {
	mu         sync.Mutex
	src        io.Reader
	left, size int64
	err        error // why src cannot be read any more; io.EOF after size bytes
	closed     bool
}

func (b *uploadBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, errors.New("the upload has ended")
	}
	if b.left == 0 {
		b.probe()
	}
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.src.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if err == io.EOF {
		if err = nil; b.left > 0 {
			err = &piece.SizeError{Want: b.size, Got: b.size - b.left}
		}
	}
	b.err = err
	return n, err
}

// probe looks for the end of src behind its last byte.
func (b *uploadBody) probe() {
	if b.err != nil {
		return
	}
	var one [1]byte
	n, err := io.ReadFull(b.src, one[:])
	if b.err = err; n > 0 {
		b.err = &piece.SizeError{Want: b.size, Got: b.size + 1}
	}
}

// Close ends the reading. The transport calls it as well, at any time.
func (b *uploadBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return nil
}

// end waits for a Read under way, ends all later ones and says what is wrong
// with src, as far as it was read. Its caller is free to use src again.
func (b *uploadBody) end() (complete bool, err error) {
	b.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left == 0 {
		b.probe()
	}
	if b.err == io.EOF {
		return true, nil
	}
	return false, b.err
}
