package model

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/remote"
)

// packRemote packs one large file into a registry behind wrap.
func packRemote(t *testing.T, wrap func(http.Handler) http.Handler) (repo *remote.Repository, packed *Packed, files map[string]string) {
	files = map[string]string{"model.gguf": string(bytesOf(1, 2*partSize+5))}
	repo = openRegistry(t, wrap)
	packed, err := Pack(t.Context(), writeFiles(t, files), repo, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return repo, packed, files
}

// gets reports whether req reads a blob of a model.
func gets(req *http.Request) bool {
	return req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/sha256:")
}

// cutWriter cuts the connection after some bytes of the body.
type cutWriter struct {
	http.ResponseWriter
	left int
	cuts *atomic.Int64
}

func (w *cutWriter) Write(p []byte) (int, error) {
	if len(p) > w.left {
		w.ResponseWriter.Write(p[:w.left])
		w.cuts.Add(1)
		panic(http.ErrAbortHandler)
	}
	w.left -= len(p)
	return w.ResponseWriter.Write(p)
}

// Streams that break off are taken up again where they ended.
func TestUnpackResumes(t *testing.T) {
	var requests, cuts atomic.Int64
	repo, packed, files := packRemote(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if gets(req) && requests.Add(1) <= 5 {
				w = &cutWriter{w, 3 << 20, &cuts}
			}
			h.ServeHTTP(w, req)
		})
	})
	to := t.TempDir()
	if err := Unpack(t.Context(), repo, packed.Files, to, Options{}); err != nil {
		t.Fatal(err)
	}
	checkFiles(t, to, files)
	if cuts.Load() < 4 || requests.Load() != 3+cuts.Load() {
		t.Errorf("%d requests for three parts that broke off %d times", requests.Load(), cuts.Load())
	}
}

// A stream that goes silent is given up and taken up again.
func TestUnpackSilence(t *testing.T) {
	var requests atomic.Int64
	repo, packed, files := packRemote(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if gets(req) && requests.Add(1) == 2 {
				<-req.Context().Done()
				return
			}
			h.ServeHTTP(w, req)
		})
	})
	to := t.TempDir()
	if err := Unpack(t.Context(), repo, packed.Files, to, Options{Concurrency: 1, Silence: 200 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	checkFiles(t, to, files)
}

// A registry that is away for a while in the middle does not end a pull.
func TestUnpackSurvivesRestart(t *testing.T) {
	down := &downTransport{RoundTripper: remote.NewTransport()}
	t.Cleanup(down.RoundTripper.(*http.Transport).CloseIdleConnections)
	repo, packed, files := packRemote(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if gets(req) && down.refuse.CompareAndSwap(0, 2) {
				w = &cutWriter{w, 3 << 20, new(atomic.Int64)}
			}
			h.ServeHTTP(w, req)
		})
	})
	again, err := remote.Open(repo.Reference.String(), remote.Options{Transport: down})
	if err != nil {
		t.Fatal(err)
	}
	to := t.TempDir()
	if err := Unpack(t.Context(), again, packed.Files, to, Options{Concurrency: 1}); err != nil {
		t.Fatal(err)
	}
	checkFiles(t, to, files)
	if down.refused.Load() != 2 {
		t.Errorf("%d connections were refused", down.refused.Load())
	}
}

// downTransport refuses connections while refuse is above 0, once it was.
type downTransport struct {
	http.RoundTripper
	refuse, refused atomic.Int32
}

func (d *downTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if d.refuse.Load() > 0 && d.refused.Load() < d.refuse.Load() {
		d.refused.Add(1)
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}
	return d.RoundTripper.RoundTrip(req)
}

// A registry that is not there at all is told at once.
func TestUnpackUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	repo := openRepository(t, l.Addr().String())
	f := blobs{}.add("x", oci.PackingRaw, []byte("x"))
	dir := t.TempDir()
	err = Unpack(t.Context(), repo, []File{f}, dir, Options{})
	checkError(t, err, "unpack into "+dir+": x: ", "nobody listens at "+l.Addr().String())
	checkFiles(t, dir, nil)
}

// A registry without ranges is read in one stream.
func TestUnpackWithoutRanges(t *testing.T) {
	repo, packed, files := packRemote(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			req.Header.Del("Range")
			h.ServeHTTP(w, req)
		})
	})
	to := t.TempDir()
	if err := Unpack(t.Context(), repo, packed.Files, to, Options{}); err != nil {
		t.Fatal(err)
	}
	checkFiles(t, to, files)
}

// A registry that sends other bytes is found out.
func TestUnpackLyingRegistry(t *testing.T) {
	repo, packed, _ := packRemote(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if gets(req) {
				w = &flipWriter{w}
			}
			h.ServeHTTP(w, req)
		})
	})
	to := t.TempDir()
	err := Unpack(t.Context(), repo, packed.Files, to, Options{})
	if !errors.As(err, new(*piece.WrongBytesError)) {
		t.Fatalf("error %v, want a WrongBytesError", err)
	}
	checkFiles(t, to, nil)
}

// flipWriter flips a bit of everything that is written.
type flipWriter struct{ http.ResponseWriter }

func (w *flipWriter) Write(p []byte) (int, error) {
	p = bytes.Clone(p)
	p[len(p)/2] ^= 1
	return w.ResponseWriter.Write(p)
}

func TestUnpackCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	repo, packed, _ := packRemote(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if gets(req) {
				w.Header().Set("Content-Range", req.Header.Get("Range"))
				cancel()
				<-req.Context().Done()
			}
			h.ServeHTTP(w, req)
		})
	})
	to := t.TempDir()
	if err := Unpack(ctx, repo, packed.Files, to, Options{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	checkFiles(t, to, nil)
}
