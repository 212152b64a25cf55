package registry

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"
)

// BenchmarkUpload pushes a blob by POST and PUT over loopback, disk sync included.
func BenchmarkUpload(b *testing.B) {
	const size = 256 << 20
	c, _, _ := serve(b, b.TempDir(), Options{})
	data := noise(1, size)
	d := digest.FromBytes(data)
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		c.want(201, "PUT", c.begin("r")+"?digest="+d.String(), data)
		b.StopTimer()
		c.want(202, "DELETE", "/v2/r/blobs/"+d.String(), nil)
		b.StartTimer()
	}
}

// BenchmarkHash is the bound of BenchmarkUpload: SHA-256 alone.
func BenchmarkHash(b *testing.B) {
	data := noise(1, 64<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		digest.FromBytes(data)
	}
}

// BenchmarkRangedGet reads parts of a blob as a lazy client does.
func BenchmarkRangedGet(b *testing.B) {
	const size = 64 << 20
	c, _, _ := serve(b, b.TempDir(), Options{})
	data := noise(1, size)
	d := c.pushBlob("r", data)
	for _, n := range []int{64 << 10, 1 << 20, 8 << 20} {
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			b.SetBytes(int64(n))
			b.ReportAllocs()
			off := 0
			for b.Loop() {
				req, err := http.NewRequestWithContext(b.Context(), "GET", c.base+"/v2/r/blobs/"+d.String(), nil)
				if err != nil {
					b.Fatal(err)
				}
				req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
				resp, err := c.http.Do(req)
				if err != nil {
					b.Fatal(err)
				}
				got, err := io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if err != nil || got != int64(n) || resp.StatusCode != http.StatusPartialContent {
					b.Fatalf("%d bytes, status %d, %v", got, resp.StatusCode, err)
				}
				off = (off + n) % (size - n + 1)
			}
		})
	}
}

// BenchmarkManifestGet reads a small manifest by tag.
func BenchmarkManifestGet(b *testing.B) {
	c, _, _ := serve(b, b.TempDir(), Options{})
	var layers [][]byte
	for i := range 40 {
		layers = append(layers, []byte(fmt.Sprint(i)))
		c.pushBlob("r", layers[i])
	}
	c.pushBlob("r", []byte(`{}`))
	raw := marshal(b, image([]byte(`{}`), layers...))
	c.want(201, "PUT", "/v2/r/manifests/t", raw)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if r := c.want(200, "GET", "/v2/r/manifests/t", nil); !bytes.Equal(r.body, raw) {
			b.Fatal("wrong bytes")
		}
	}
}
