package registry

import (
	"bytes"
	"io"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestBlobRanges(t *testing.T) {
	c, _, _ := serve(t, t.TempDir(), Options{})
	data := noise(1, 5000)
	d := c.pushBlob("a/b", data)
	path := "/v2/a/b/blobs/" + d.String()

	for _, tt := range []struct {
		name, rng    string
		status       int
		body         []byte
		contentRange string
	}{
		{"whole", "", 200, data, ""},
		{"one", "bytes=10-19", 206, data[10:20], "bytes 10-19/5000"},
		{"to the end", "bytes=4000-", 206, data[4000:], "bytes 4000-4999/5000"},
		{"suffix", "bytes=-7", 206, data[4993:], "bytes 4993-4999/5000"},
		{"beyond the end", "bytes=4990-9999", 206, data[4990:], "bytes 4990-4999/5000"},
		{"outside", "bytes=5000-5001", 416, nil, "bytes */5000"},
		{"backwards", "bytes=9-3", 416, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := c.want(tt.status, "GET", path, nil, "Range", tt.rng)
			if tt.body != nil && !bytes.Equal(r.body, tt.body) {
				t.Errorf("wrong bytes")
			}
			if got := r.header.Get("Content-Range"); got != tt.contentRange {
				t.Errorf("Content-Range %q, want %q", got, tt.contentRange)
			}
			if tt.status == 416 {
				return
			}
			for name, want := range map[string]string{
				"Accept-Ranges": "bytes", "Etag": `"` + d.String() + `"`,
				"Docker-Content-Digest": d.String(), "Content-Type": "application/octet-stream",
			} {
				if got := r.header.Get(name); got != want {
					t.Errorf("%s %q, want %q", name, got, want)
				}
			}
		})
	}

	t.Run("several", func(t *testing.T) {
		r := c.want(206, "GET", path, nil, "Range", "bytes=0-4,100-109,-5")
		_, params, err := mime.ParseMediaType(r.header.Get("Content-Type"))
		if err != nil {
			t.Fatal(err)
		}
		parts := multipart.NewReader(bytes.NewReader(r.body), params["boundary"])
		for _, want := range [][]byte{data[:5], data[100:110], data[4995:]} {
			p, err := parts.NextPart()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(p); err != nil || !bytes.Equal(got, want) {
				t.Errorf("part: %v, %v; want %v", got, err, want)
			}
		}
	})
	t.Run("cached", func(t *testing.T) {
		c.want(304, "GET", path, nil, "If-None-Match", `"`+d.String()+`"`)
		c.want(200, "GET", path, nil, "If-None-Match", `"sha256:other"`)
		c.want(206, "GET", path, nil, "If-Range", `"`+d.String()+`"`, "Range", "bytes=0-1")
		c.want(200, "GET", path, nil, "If-Range", `"sha256:other"`, "Range", "bytes=0-1")
	})
	t.Run("head", func(t *testing.T) {
		r := c.want(200, "HEAD", path, nil)
		if got := r.header.Get("Content-Length"); got != "5000" {
			t.Errorf("Content-Length %s", got)
		}
	})
}

// To know a digest is no right: a repository shows only what was pushed or mounted to it.
func TestBlobsArePerRepository(t *testing.T) {
	c, reg, _ := serve(t, t.TempDir(), Options{})
	data := noise(2, 100)
	d := c.pushBlob("mine", data)
	c.want(404, "GET", "/v2/yours/blobs/"+d.String(), nil)
	c.want(404, "DELETE", "/v2/yours/blobs/"+d.String(), nil)

	mount := "/v2/yours/blobs/uploads/?mount=" + d.String()
	if c.do("POST", mount, nil).status != 202 {
		t.Error("mounted without saying from where")
	}
	if c.do("POST", mount+"&from=other", nil).status != 202 {
		t.Error("mounted from a repository that does not hold it")
	}
	c.want(400, "POST", mount+"&from=../mine", nil)
	c.want(404, "HEAD", "/v2/yours/blobs/"+d.String(), nil)

	r := c.want(201, "POST", mount+"&from=mine", nil)
	if got := r.header.Get("Location"); got != "/v2/yours/blobs/"+d.String() {
		t.Errorf("Location %q", got)
	}
	c.want(201, "POST", mount+"&from=mine", nil) // again

	c.want(202, "DELETE", "/v2/mine/blobs/"+d.String(), nil)
	c.want(404, "GET", "/v2/mine/blobs/"+d.String(), nil)
	if r := c.want(200, "GET", "/v2/yours/blobs/"+d.String(), nil); !bytes.Equal(r.body, data) {
		t.Error("the mounted blob went with the original")
	}
	if _, err := reg.Store().OpenBlob("mine", d); err == nil {
		t.Error("the store opens a deleted blob")
	}
}

// Pushes of the same bytes take the disk once; the last repository to let go frees it.
func TestBlobsAreStoredOnce(t *testing.T) {
	c, reg, _ := serve(t, t.TempDir(), Options{})
	data := noise(3, 2*bufferSize)
	d := c.pushBlob("a", data)
	c.pushBlob("b", data)
	c.want(202, "DELETE", "/v2/a/blobs/"+d.String(), nil)
	c.pushBlob("c", data)
	stat := func(name string) os.FileInfo {
		t.Helper()
		fi, err := reg.store.root.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		return fi
	}
	if !os.SameFile(stat(blobPath("b", d)), stat(blobPath("c", d))) {
		t.Error("two files hold the same blob")
	}
	c.want(202, "DELETE", "/v2/b/blobs/"+d.String(), nil)
	c.want(202, "DELETE", "/v2/c/blobs/"+d.String(), nil)
	if _, err := reg.store.root.Stat(poolPath(d)); !os.IsNotExist(err) {
		t.Errorf("nobody holds the blob: %v", err)
	}
}

func TestBlobDigests(t *testing.T) {
	c, _, _ := serve(t, t.TempDir(), Options{})
	data := noise(4, 1000)
	for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512} {
		d := a.FromBytes(data)
		c.want(201, "POST", "/v2/r/blobs/uploads/?digest="+d.String(), data)
		loc := c.want(202, "POST", "/v2/r/blobs/uploads/?digest-algorithm="+a.String(), nil).header.Get("Location")
		c.want(201, "PUT", loc+"?digest="+d.String(), data)
		c.want(201, "PUT", c.begin("r")+"?digest="+d.String(), data)
		if r := c.want(200, "GET", "/v2/r/blobs/"+d.String(), nil); !bytes.Equal(r.body, data) {
			t.Errorf("%s: wrong bytes", a)
		}
	}
	for _, bad := range []string{"", "sha256", "sha256:12", "md5:00", "sha256:" + strings.Repeat("A", 64)} {
		r := c.want(400, "POST", "/v2/r/blobs/uploads/?digest="+bad, data)
		if r.code() != codeDigestInvalid {
			t.Errorf("digest %q: code %s", bad, r.code())
		}
	}
	c.want(400, "POST", "/v2/r/blobs/uploads/?digest-algorithm=md5", nil)
	wrong := digest.FromString("other")
	if r := c.want(400, "POST", "/v2/r/blobs/uploads/?digest="+wrong.String(), data); r.code() != codeDigestInvalid {
		t.Errorf("code %s", r.code())
	}
	c.want(404, "GET", "/v2/r/blobs/"+wrong.String(), nil)
}

// The limits on a silent client and a takeover need the connection, which HTTP/2 shares.
func TestBlobsOverHTTP2(t *testing.T) {
	reg, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	srv := httptest.NewUnstartedServer(reg)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	c := &client{t: t, base: srv.URL, http: srv.Client()}

	data := noise(6, 3*bufferSize+7)
	d := digest.FromBytes(data)
	loc := c.begin("r")
	c.want(202, "PATCH", loc, io.MultiReader(bytes.NewReader(data[:bufferSize+1])))
	c.want(416, "PATCH", loc, data[:9], "Content-Range", "0-8")
	c.want(201, "PUT", loc+"?digest="+d.String(), data[bufferSize+1:])
	if r := c.want(206, "GET", "/v2/r/blobs/"+d.String(), nil, "Range", "bytes=5-"); !bytes.Equal(r.body, data[5:]) {
		t.Error("wrong bytes")
	}
}

// A blob must reach the connection as a file, or the kernel cannot send it by itself.
func TestBlobsAreSentByTheKernel(t *testing.T) {
	reg, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var files atomic.Int32
	srv := &httptest.Server{Listener: fileCounter{l, &files}, Config: &http.Server{Handler: reg}}
	srv.Start()
	defer srv.Close()
	c := &client{t: t, base: srv.URL, http: srv.Client()}

	data := noise(5, 1<<20)
	d := c.pushBlob("r", data)
	for n, rng := range []string{"bytes=0-", "bytes=100-900000"} {
		c.want(206, "GET", "/v2/r/blobs/"+d.String(), nil, "Range", rng)
		if got := int(files.Load()); got != n+1 {
			t.Errorf("%d files given to the connection, want %d", got, n+1)
		}
	}
}

type fileCounter struct {
	net.Listener
	files *atomic.Int32
}

func (l fileCounter) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &fileCounterConn{c.(*net.TCPConn), l.files}, nil
}

type fileCounterConn struct {
	*net.TCPConn
	files *atomic.Int32
}

func (c *fileCounterConn) ReadFrom(r io.Reader) (int64, error) {
	if lr, ok := r.(*io.LimitedReader); ok {
		if _, ok := lr.R.(*os.File); ok {
			c.files.Add(1)
		}
	}
	return c.TCPConn.ReadFrom(r)
}
