package registry

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"
)

// Sizes around the buffer, each way to push, the same blob in the end.
func TestUploadWays(t *testing.T) {
	c, reg, _ := serve(t, t.TempDir(), Options{})
	for seed, size := range []int{0, 1, 1000, bufferSize - 1, bufferSize, bufferSize + 1, 3*bufferSize + 5} {
		data := noise(uint64(seed), size)
		d := digest.FromBytes(data)
		ways := map[string]func(repo string){
			"post": func(repo string) {
				c.want(201, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), data)
			},
			"put": func(repo string) {
				c.want(201, "PUT", c.begin(repo)+"?digest="+d.String(), data)
			},
			"stream": func(repo string) {
				// Of unknown length, in reads of all sizes.
				r := c.want(202, "PATCH", c.begin(repo), iotest.HalfReader(bytes.NewReader(data)))
				c.want(201, "PUT", r.header.Get("Location")+"?digest="+d.String(), nil)
			},
			"chunks": func(repo string) {
				loc := c.begin(repo)
				n := size/3 + 1
				for off := 0; off < size; off += n {
					end := min(off+n, size)
					r := c.want(202, "PATCH", loc, data[off:end], "Content-Range", fmt.Sprintf("%d-%d", off, end-1))
					if got := r.header.Get("Range"); got != fmt.Sprintf("0-%d", end-1) {
						t.Errorf("Range %q after %d bytes", got, end)
					}
					loc = r.header.Get("Location")
				}
				c.want(201, "PUT", loc+"?digest="+d.String(), nil)
			},
			"last chunk by put": func(repo string) {
				loc := c.begin(repo)
				if size < 2 {
					c.want(201, "PUT", loc+"?digest="+d.String(), data)
					return
				}
				c.want(202, "PATCH", loc, data[:size/2], "Content-Range", fmt.Sprintf("0-%d", size/2-1))
				c.want(201, "PUT", loc+"?digest="+d.String(), data[size/2:], "Content-Range", fmt.Sprintf("%d-%d", size/2, size-1))
			},
		}
		for name, push := range ways {
			repo := fmt.Sprintf("%s-%d", strings.ReplaceAll(name, " ", "-"), size)
			push(repo)
			r := c.want(200, "GET", "/v2/"+repo+"/blobs/"+d.String(), nil)
			if !bytes.Equal(r.body, data) {
				t.Errorf("%s of %d bytes: wrong bytes", name, size)
			}
		}
	}
	if left, err := reg.store.list("uploads"); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

func TestUploadRefusals(t *testing.T) {
	c, _, _ := serve(t, t.TempDir(), Options{})
	data := noise(1, 1000)
	d := digest.FromBytes(data)
	loc := c.begin("r")
	c.want(202, "PATCH", loc, data[:500], "Content-Range", "0-499")

	for _, tt := range []struct {
		name, method, path, contentRange string
		body                             any
		status                           int
		code                             string
	}{
		{"gap", "PATCH", loc, "600-699", data[600:700], 416, codeUploadInvalid},
		{"again", "PATCH", loc, "0-499", data[:500], 416, codeUploadInvalid},
		{"put gap", "PUT", loc + "?digest=" + d.String(), "600-999", data[600:], 416, codeUploadInvalid},
		{"shorter than announced", "PATCH", loc, "500-699", data[500:600], 400, codeSizeInvalid},
		{"malformed", "PATCH", loc, "bytes 500-599/1000", data[500:600], 400, codeUploadInvalid},
		{"backwards", "PATCH", loc, "500-499", []byte{}, 400, codeUploadInvalid},
		{"put without digest", "PUT", loc, "", nil, 400, codeDigestInvalid},
		{"put with a bad digest", "PUT", loc + "?digest=sha256:no", "", nil, 400, codeDigestInvalid},
		{"other repository", "GET", strings.Replace(loc, "/r/", "/s/", 1), "", nil, 404, codeUploadUnknown},
		{"unknown", "PATCH", "/v2/r/blobs/uploads/AAAAAAAAAAAAAAAAAAAAAAAAAA", "", data, 404, codeUploadUnknown},
		{"malformed id", "GET", "/v2/r/blobs/uploads/..", "", nil, 404, codeUploadUnknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := c.want(tt.status, tt.method, tt.path, tt.body, "Content-Range", tt.contentRange)
			if r.code() != tt.code {
				t.Errorf("code %q, want %q", r.code(), tt.code)
			}
			if tt.status == 416 && r.offset(t) != 500 {
				t.Errorf("the answer says %d bytes", r.offset(t))
			}
			if got := c.want(204, "GET", loc, nil).offset(t); got != 500 {
				t.Errorf("the upload has %d bytes", got)
			}
		})
	}

	c.want(202, "PATCH", loc, data[500:], "Content-Range", "500-999")
	wrong := digest.FromString("something else")
	if r := c.want(400, "PUT", loc+"?digest="+wrong.String(), nil); r.code() != codeDigestInvalid {
		t.Errorf("code %s", r.code())
	}
	c.want(404, "GET", loc, nil) // wrong bytes cannot become right
	c.want(404, "HEAD", "/v2/r/blobs/"+d.String(), nil)
	c.want(404, "HEAD", "/v2/r/blobs/"+wrong.String(), nil)
}

// A client that did not hear the answer to its last request asks again.
func TestUploadFinishedTwice(t *testing.T) {
	c, _, _ := serve(t, t.TempDir(), Options{})
	data := noise(1, 1000)
	last := c.begin("r") + "?digest=" + digest.FromBytes(data).String()
	for range 2 {
		r := c.want(201, "PUT", last, data)
		if got := r.header.Get("Docker-Content-Digest"); got != digest.FromBytes(data).String() {
			t.Errorf("digest %q", got)
		}
	}
	c.want(404, "PUT", strings.Replace(last, "/r/", "/s/", 1), data)
}

func TestUploadCancel(t *testing.T) {
	c, reg, _ := serve(t, t.TempDir(), Options{})
	loc := c.begin("r")
	c.want(202, "PATCH", loc, noise(1, 100))
	c.want(204, "DELETE", loc, nil)
	c.want(404, "GET", loc, nil)
	c.want(404, "DELETE", loc, nil)
	if left, err := reg.store.list("uploads"); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

// A client whose connection broke goes on where the registry stopped.
func TestUploadResumesAfterBreak(t *testing.T) {
	c, _, _ := serve(t, t.TempDir(), Options{})
	data := noise(1, 5*bufferSize+123)
	d := digest.FromBytes(data)
	for _, cut := range []int{0, 2, bufferSize, 2*bufferSize + 77} {
		loc := c.begin("r")
		stall(t, c, loc, len(data), data[:cut]).Close()
		waitFor(c, loc, int64(cut))
		resume(c, loc, data)
		c.want(201, "PUT", loc+"?digest="+d.String(), nil)
		if r := c.want(200, "GET", "/v2/r/blobs/"+d.String(), nil); !bytes.Equal(r.body, data) {
			t.Error("wrong bytes")
		}
		c.want(202, "DELETE", "/v2/r/blobs/"+d.String(), nil)
	}
}

// resume sends what the upload lacks of data. It asks again when the broken
// request, which the registry may come to only now, takes the upload over.
func resume(c *client, loc string, data []byte) {
	c.t.Helper()
	for {
		off := c.want(204, "GET", loc, nil).offset(c.t)
		if off == int64(len(data)) {
			return
		}
		r := c.do("PATCH", loc, data[off:], "Content-Range", fmt.Sprintf("%d-%d", off, len(data)-1))
		switch r.status {
		case 202, 400, 416: // the other request took over, or kept more bytes meanwhile
		default:
			c.t.Fatalf("PATCH %s: status %d: %s", loc, r.status, r.body)
		}
	}
}

// waitFor asks for the upload's status until it has at least n bytes, and returns how many.
func waitFor(c *client, loc string, n int64) int64 {
	c.t.Helper()
	for {
		if off := c.want(204, "GET", loc, nil).offset(c.t); off >= n {
			return off
		}
		runtime.Gosched()
	}
}

// stall sends the beginning of a PATCH by hand and keeps the connection open.
func stall(t *testing.T, c *client, loc string, length int, data []byte) net.Conn {
	t.Helper()
	host := strings.TrimPrefix(c.base, "http://")
	conn, err := net.Dial("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "PATCH %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n", loc, host, length)
	if _, err := conn.Write(data); err != nil {
		t.Fatal(err)
	}
	return conn
}

func answered(t *testing.T, conn net.Conn) int {
	t.Helper()
	r, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	return r.StatusCode
}

// A client that comes back is not kept waiting by its own dead connection.
func TestUploadTakeover(t *testing.T) {
	c, _, _ := serve(t, t.TempDir(), Options{UploadSilence: time.Hour})
	data := noise(1, 4*bufferSize)
	d := digest.FromBytes(data)
	loc := c.begin("r")
	conn := stall(t, c, loc, len(data), data[:bufferSize+1000])
	waitFor(c, loc, bufferSize)
	resume(c, loc, data)
	if got := answered(t, conn); got != 400 {
		t.Errorf("the request that was taken over ended with %d", got)
	}
	c.want(201, "PUT", loc+"?digest="+d.String(), nil)
	if r := c.want(200, "GET", "/v2/r/blobs/"+d.String(), nil); !bytes.Equal(r.body, data) {
		t.Error("wrong bytes")
	}
}

// A client that falls silent does not hold its connection and buffers for ever.
func TestUploadSilence(t *testing.T) {
	c, _, _ := serve(t, t.TempDir(), Options{UploadSilence: 10 * time.Millisecond})
	loc := c.begin("r")
	conn := stall(t, c, loc, 1000, noise(1, 100))
	if got := answered(t, conn); got != 400 {
		t.Errorf("status %d", got)
	}
	if got := c.want(204, "GET", loc, nil).offset(t); got > 100 {
		t.Errorf("the upload has %d bytes", got)
	}
}

// What was received outlives the process, whatever became of the checkpoint.
func TestUploadResumesAfterRestart(t *testing.T) {
	data := noise(1, 8*bufferSize+99)
	half := 5*bufferSize + 31
	for _, tt := range []struct {
		name   string
		damage func(*state)
	}{
		{"checkpoint", func(*state) {}},
		{"checkpoint of other bytes", func(st *state) { st.Hash[10] ^= 1 }},
		{"checkpoint of another hash", func(st *state) { st.Hash[3] ^= 1 }},
		{"checkpoint elsewhere", func(st *state) { st.Offset-- }},
		{"checkpoint beyond the data", func(st *state) { st.Offset *= 10 }},
		{"no checkpoint", func(st *state) { st.Offset, st.Hash = 0, nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			c, reg, stop := serve(t, dir, Options{})
			reg.store.checkpointBytes = bufferSize
			loc := c.begin("r")
			c.want(202, "PATCH", loc, data[:half])
			id := loc[strings.LastIndex(loc, "/")+1:]
			stop()

			name := dir + "/uploads/" + id + "/state"
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var st state
			if err := json.Unmarshal(b, &st); err != nil || st.Offset != 5*bufferSize || st.Hash == nil {
				t.Fatalf("state %s, %v", b, err)
			}
			h := sha256.New()
			if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(st.Hash); err != nil {
				t.Fatal(err)
			}
			h.Write(data[st.Offset:])
			if got := digest.NewDigest(digest.SHA256, h); got != digest.FromBytes(data) {
				t.Error("the checkpoint is not the hash of the bytes that it says")
			}
			tt.damage(&st)
			if err := os.WriteFile(name, marshal(t, st), 0o600); err != nil {
				t.Fatal(err)
			}

			c, _, _ = serve(t, dir, Options{})
			if off := c.want(204, "GET", loc, nil).offset(t); off != int64(half) {
				t.Fatalf("%d bytes after the restart, want %d", off, half)
			}
			d := digest.FromBytes(data)
			c.want(201, "PUT", loc+"?digest="+d.String(), data[half:], "Content-Range", fmt.Sprintf("%d-%d", half, len(data)-1))
			if r := c.want(200, "GET", "/v2/r/blobs/"+d.String(), nil); !bytes.Equal(r.body, data) {
				t.Error("wrong bytes")
			}
		})
	}
}

// An upload whose state cannot be read is unknown: its client begins again.
func TestUploadStateDamaged(t *testing.T) {
	for _, garbage := range []string{"", "{", `{"repository":"other","algorithm":"sha256"}`, `{"repository":"r","algorithm":"md5"}`} {
		dir := t.TempDir()
		c, _, stop := serve(t, dir, Options{})
		loc := c.begin("r")
		stop()
		name := dir + "/uploads/" + loc[strings.LastIndex(loc, "/")+1:] + "/state"
		if err := os.WriteFile(name, []byte(garbage), 0o600); err != nil {
			t.Fatal(err)
		}
		c, _, stop = serve(t, dir, Options{})
		if r := c.want(404, "PATCH", loc, noise(1, 10)); r.code() != codeUploadUnknown {
			t.Errorf("%q: code %s", garbage, r.code())
		}
		stop()
	}
}

func TestUploadExpires(t *testing.T) {
	dir := t.TempDir()
	c, reg, _ := serve(t, dir, Options{})
	old, young := c.begin("r"), c.begin("r")
	past := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(dir+"/uploads/"+old[strings.LastIndex(old, "/")+1:]+"/data", past, past); err != nil {
		t.Fatal(err)
	}
	orphan := dir + "/uploads/BBBBBBBBBBBBBBBBBBBBBBBBBB" // killed while it was made
	if err := os.Mkdir(orphan, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(orphan, past, past); err != nil {
		t.Fatal(err)
	}
	if err := reg.Store().Sweep(time.Now().Add(-24 * time.Hour)); err != nil {
		t.Fatal(err)
	}
	c.want(404, "GET", old, nil)
	c.want(204, "GET", young, nil)
	if _, err := os.Stat(orphan); !os.IsNotExist(err) {
		t.Errorf("orphan: %v", err)
	}
}

// Memory does not grow with the blob.
func TestUploadMemory(t *testing.T) {
	c, _, _ := serve(t, t.TempDir(), Options{})
	const size = 96 << 20
	zeros := func() io.Reader { return io.LimitReader(zeroReader{}, size) }
	d, err := digest.FromReader(zeros())
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	loc := c.want(202, "PATCH", c.begin("r"), zeros()).header.Get("Location")
	c.want(201, "PUT", loc+"?digest="+d.String(), nil)
	req, err := http.NewRequestWithContext(t.Context(), "GET", c.base+"/v2/r/blobs/"+d.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); n != size || err != nil {
		t.Fatalf("read %d bytes, %v", n, err)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 16<<20 {
		t.Errorf("%d bytes allocated for a blob of %d", got, size)
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
