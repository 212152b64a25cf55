package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/spate-project/spate/cache/piece"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var blob = bytes.Repeat([]byte("0123456789abcdef"), 4096)

func describe(b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(b), Size: int64(len(b))}
}

// serve runs a registry whose every answer is h's, and returns its address.
func serve(t testing.TB, h http.HandlerFunc) string {
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// open opens a repository and lets go of its connections at the end of the test.
func open(t testing.TB, reference string, opts Options) *Repository {
	t.Helper()
	if opts.Transport == nil {
		transport := NewTransport()
		t.Cleanup(transport.CloseIdleConnections)
		opts.Transport = transport
	}
	if opts.Credential == nil {
		opts.Credential = func(context.Context, string) (auth.Credential, error) { return auth.EmptyCredential, nil }
	}
	repo, err := Open(reference, opts)
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

func partial(w http.ResponseWriter, off, n int) {
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, len(blob)))
	w.Header().Set("Content-Length", strconv.Itoa(n))
	w.WriteHeader(http.StatusPartialContent)
	w.Write(blob[off : off+n])
}

// drop sends the start of an answer and cuts the connection.
func drop(w http.ResponseWriter, status, sent int) {
	w.WriteHeader(status)
	w.Write(blob[:sent])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// The zoo: whatever a registry answers, a range is the right bytes or an error.
func TestRangeZoo(t *testing.T) {
	good := func(w http.ResponseWriter, req *http.Request) {
		http.ServeContent(w, req, "", stamp, bytes.NewReader(blob))
	}
	for _, tt := range []struct {
		name   string
		off, n int64
		answer http.HandlerFunc
		want   error  // nil for the right bytes
		text   string // part of the error's text
	}{
		{name: "good", off: 100, n: 1000, answer: good},
		{name: "good, all", off: 0, n: int64(len(blob)), answer: good},
		{name: "good, last byte", off: int64(len(blob)) - 1, n: 1, answer: good},
		{name: "good, size not told", off: 100, n: 1000, answer: func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Content-Range", "bytes 100-1099/*")
			w.WriteHeader(http.StatusPartialContent)
			w.Write(blob[100:1100])
		}},
		{name: "sends more than asked for", off: 100, n: 1000, answer: func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Content-Range", "bytes 100-1099/*")
			w.WriteHeader(http.StatusPartialContent)
			w.Write(blob[100:5000])
		}},
		{name: "ignores ranges, at 0", off: 0, n: 1000, answer: func(w http.ResponseWriter, req *http.Request) { w.Write(blob) }},
		{name: "ignores ranges", off: 100, n: 1000, want: errdef.ErrUnsupported, text: "ignores ranges",
			answer: func(w http.ResponseWriter, req *http.Request) { w.Write(blob) }},
		{name: "ignores ranges and has another blob", off: 0, n: 1000, want: errAny, text: "announced 99 bytes",
			answer: func(w http.ResponseWriter, req *http.Request) { w.Write(blob[:99]) }},
		{name: "another range", off: 100, n: 1000, want: errAny, text: "another range",
			answer: func(w http.ResponseWriter, req *http.Request) { partial(w, 101, 1000) }},
		{name: "a shorter range", off: 100, n: 1000, want: errAny, text: "another range",
			answer: func(w http.ResponseWriter, req *http.Request) { partial(w, 100, 999) }},
		{name: "no Content-Range", off: 100, n: 1000, want: errAny, text: "another range",
			answer: func(w http.ResponseWriter, req *http.Request) {
				w.WriteHeader(http.StatusPartialContent)
				w.Write(blob[100:1100])
			}},
		{name: "range of a larger blob", off: 100, n: 1000, want: errAny, text: "another range",
			answer: func(w http.ResponseWriter, req *http.Request) {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 100-1099/%d", len(blob)+1))
				w.WriteHeader(http.StatusPartialContent)
				w.Write(blob[100:1100])
			}},
		{name: "a multipart range", off: 100, n: 1000, want: errAny, text: "another range",
			answer: func(w http.ResponseWriter, req *http.Request) {
				w.Header().Set("Content-Type", "multipart/byteranges; boundary=x")
				w.WriteHeader(http.StatusPartialContent)
			}},
		{name: "right range, wrong length", off: 100, n: 1000, want: errAny, text: "announced 10 bytes",
			answer: func(w http.ResponseWriter, req *http.Request) {
				w.Header().Set("Content-Range", "bytes 100-1099/*")
				w.Header().Set("Content-Length", "10")
				w.WriteHeader(http.StatusPartialContent)
				w.Write(blob[100:110])
			}},
		{name: "compressed", off: 100, n: 1000, want: errAny, text: `encoded the blob as "gzip"`,
			answer: func(w http.ResponseWriter, req *http.Request) {
				w.Header().Set("Content-Encoding", "gzip")
				partial(w, 100, 1000)
			}},
		{name: "short, and ends", off: 100, n: 1000, want: io.ErrUnexpectedEOF, text: "unexpected EOF",
			answer: func(w http.ResponseWriter, req *http.Request) {
				w.Header().Set("Content-Range", "bytes 100-1099/*")
				w.WriteHeader(http.StatusPartialContent)
				w.Write(blob[100:500])
				w.(http.Flusher).Flush()
			}},
		{name: "drops in the middle", off: 0, n: 1000, want: io.ErrUnexpectedEOF, text: "unexpected EOF",
			answer: func(w http.ResponseWriter, req *http.Request) {
				w.Header().Set("Content-Range", "bytes 0-999/*")
				w.Header().Set("Content-Length", "1000")
				drop(w, http.StatusPartialContent, 500)
			}},
		{name: "not there", off: 0, n: 10, want: errdef.ErrNotFound, text: "not found",
			answer: func(w http.ResponseWriter, req *http.Request) { http.NotFound(w, req) }},
		{name: "not satisfiable", off: 0, n: 10, want: errAny, text: "answered 416",
			answer: func(w http.ResponseWriter, req *http.Request) {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			}},
		{name: "401 without a challenge", off: 0, n: 10, want: errAny, text: "log in first: docker login 127.0.0.1",
			answer: func(w http.ResponseWriter, req *http.Request) { w.WriteHeader(http.StatusUnauthorized) }},
		{name: "401 with a challenge", off: 0, n: 10, want: auth.ErrBasicCredentialNotFound, text: "log in first: docker login 127.0.0.1",
			answer: func(w http.ResponseWriter, req *http.Request) {
				w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
				w.WriteHeader(http.StatusUnauthorized)
			}},
		{name: "403", off: 0, n: 10, want: errAny, text: "does not allow it (denied: not for you)",
			answer: func(w http.ResponseWriter, req *http.Request) {
				w.WriteHeader(http.StatusForbidden)
				io.WriteString(w, `{"errors":[{"code":"DENIED","message":"not for you"}]}`)
			}},
		{name: "empty range", off: 5, n: 0, answer: func(w http.ResponseWriter, req *http.Request) { t.Error("a request for no bytes") }},
		{name: "past the end", off: int64(len(blob)) - 5, n: 6, want: errAny, text: fmt.Sprintf("the blob has %d bytes", len(blob)),
			answer: func(w http.ResponseWriter, req *http.Request) { t.Error("a request for too many bytes") }},
		{name: "before the start", off: -1, n: 6, want: errAny, text: "the blob has",
			answer: func(w http.ResponseWriter, req *http.Request) { t.Error("a request before the start") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := serve(t, tt.answer)
			repo := open(t, host+"/models/qwen:v1", Options{})
			got, err := readRange(t.Context(), repo, describe(blob), tt.off, tt.n)
			if tt.want == nil {
				if err != nil || !bytes.Equal(got, blob[tt.off:tt.off+tt.n]) {
					t.Fatalf("Range: %d bytes, error %v", len(got), err)
				}
				return
			}
			checkError(t, err, tt.want, tt.text, describe(blob).Digest.String(), host+"/models/qwen@sha256:")
		})
	}
}

// errAny stands for an error that matches no class.
var errAny = errors.New("any")

// checkError checks that err is an error, matches want, and that its text holds every part.
func checkError(t *testing.T, err, want error, parts ...string) {
	t.Helper()
	if err == nil || (want != errAny && !errors.Is(err, want)) {
		t.Fatalf("error %v, want %v", err, want)
	}
	if want == errdef.ErrNotFound && !errors.Is(err, piece.ErrNotHere) {
		t.Errorf("error %q does not match piece.ErrNotHere", err)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not hold %q", err, part)
		}
	}
}

func readRange(ctx context.Context, repo *Repository, desc ocispec.Descriptor, off, n int64) ([]byte, error) {
	r, err := repo.Range(ctx, desc, off, n)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// A whole blob is the right bytes or an error too.
func TestFetchZoo(t *testing.T) {
	wrong := bytes.Clone(blob)
	wrong[len(wrong)/2] ^= 1
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		want   error
	}{
		{"good", func(w http.ResponseWriter, req *http.Request) { w.Write(blob) }, nil},
		{"other bytes", func(w http.ResponseWriter, req *http.Request) { w.Write(wrong) },
			&piece.WrongBytesError{Object: piece.Digest(mustDigest(t, blob)), Piece: -1}},
		{"bytes behind the end", func(w http.ResponseWriter, req *http.Request) {
			w.Write(blob)
			w.(http.Flusher).Flush()
			w.Write([]byte("and more"))
		}, &piece.WrongBytesError{}},
		{"short", func(w http.ResponseWriter, req *http.Request) {
			w.Write(blob[:100])
			w.(http.Flusher).Flush()
		}, io.ErrUnexpectedEOF},
		{"drops", func(w http.ResponseWriter, req *http.Request) { drop(w, http.StatusOK, 100) }, io.ErrUnexpectedEOF},
		{"not there", func(w http.ResponseWriter, req *http.Request) { http.NotFound(w, req) }, errdef.ErrNotFound},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := serve(t, tt.answer)
			repo := open(t, host+"/x", Options{})
			r, err := repo.Fetch(t.Context(), describe(blob))
			var got []byte
			if err == nil {
				defer r.Close()
				got, err = io.ReadAll(r)
			}
			if tt.want == nil {
				if err != nil || !bytes.Equal(got, blob) {
					t.Fatalf("Fetch: %d bytes, error %v", len(got), err)
				}
				return
			}
			if errors.As(tt.want, new(*piece.WrongBytesError)) {
				var wrongBytes *piece.WrongBytesError
				if !errors.As(err, &wrongBytes) || wrongBytes.From != host || wrongBytes.Piece != -1 {
					t.Fatalf("error %v, want a WrongBytesError from %s", err, host)
				}
				return
			}
			checkError(t, err, tt.want, describe(blob).Digest.String())
		})
	}
}

func mustDigest(t *testing.T, b []byte) piece.Digest {
	d, err := piece.ParseDigest(digest.FromBytes(b).String())
	if err != nil {
		t.Fatal(err)
	}
	return d
}
