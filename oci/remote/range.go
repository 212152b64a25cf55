package remote

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// Range opens the bytes [off, off+n) of a blob. The reader gives exactly n bytes
// before io.EOF, or fails with io.ErrUnexpectedEOF when the registry sent fewer;
// that they are the right bytes is for the caller to check. ctx governs the
// reader too. The caller closes it.
//
// A registry that ignores ranges and sends the whole blob is good enough for a
// range that starts at 0. For any other the error matches errdef.ErrUnsupported:
// skipping would cost as much as reading the blob whole, which is what to do then.
func (r *Repository) Range(ctx context.Context, blob ocispec.Descriptor, off, n int64) (io.ReadCloser, error) {
	doing := fmt.Sprintf("read %d bytes at %d of", n, off)
	if off < 0 || n < 0 || off > blob.Size || n > blob.Size-off {
		return nil, r.explain(doing, blob.Digest.String(), fmt.Errorf("the blob has %d bytes", blob.Size))
	}
	if n == 0 {
		return http.NoBody, nil
	}
	req, err := http.NewRequestWithContext(auth.AppendRepositoryScope(ctx, r.Reference, auth.ActionPull),
		http.MethodGet, r.url("blobs", blob.Digest.String()), nil)
	if err != nil {
		return nil, r.explain(doing, blob.Digest.String(), err)
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	resp, err := r.Client.Do(req)
	if err != nil {
		return nil, r.explain(doing, blob.Digest.String(), err)
	}
	if err := checkRange(resp, blob.Size, off, n); err != nil {
		resp.Body.Close()
		return nil, r.explain(doing, blob.Digest.String(), err)
	}
	return &rangeReader{body: resp.Body, left: n, explain: func(err error) error {
		return r.explain(doing, blob.Digest.String(), err)
	}}, nil
}

// checkRange checks that resp holds the bytes [off, off+n) of a blob of size bytes, at its start at least.
func checkRange(resp *http.Response, size, off, n int64) error {
	if encoding := resp.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return fmt.Errorf("the registry encoded the blob as %q", encoding)
	}
	length := n
	switch resp.StatusCode {
	case http.StatusPartialContent:
		got := resp.Header.Get("Content-Range")
		want := fmt.Sprintf("bytes %d-%d/", off, off+n-1)
		if got != want+"*" && got != want+strconv.FormatInt(size, 10) {
			return fmt.Errorf("the registry sent another range: %q where %s%d was asked for", got, want, size)
		}
	case http.StatusOK:
		if off > 0 {
			return fmt.Errorf("the registry ignores ranges: %w", errdef.ErrUnsupported)
		}
		length = size
	default:
		return answerError(resp)
	}
	if resp.ContentLength >= 0 && resp.ContentLength != length {
		return fmt.Errorf("the registry announced %d bytes instead of %d", resp.ContentLength, length)
	}
	return nil
}

// A rangeReader gives the first bytes of a body, all of them or an error.
type rangeReader struct {
	body    io.ReadCloser
	left    int64
	explain func(error) error
}

func (r *rangeReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.body.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	switch {
	case err == nil || r.left == 0:
		return n, nil
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return n, r.explain(err)
}

func (r *rangeReader) Close() error { return r.body.Close() }

// url returns the address of something in the repository.
func (r *Repository) url(kind, name string) string {
	scheme := "https"
	if r.PlainHTTP {
		scheme = "http"
	}
	return fmt.Sprintf("%s://%s/v2/%s/%s/%s", scheme, r.Reference.Host(), r.Reference.Repository, kind, name)
}
