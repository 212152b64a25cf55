package registry

import (
	"bytes"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestQuota fills a registry: what does not fit is refused and what is there
// stays, is shared, and makes room when it is collected.
func TestQuota(t *testing.T) {
	dir := t.TempDir()
	c, _, stop := serve(t, dir, Options{Quota: 3000})
	first, second, third := noise(1, 2000), noise(2, 1000), noise(3, 1)
	d := c.pushBlob("a", first)
	c.pushBlob("a", second) // to the last byte
	refused := func(data []byte) {
		t.Helper()
		r := c.do("POST", "/v2/a/blobs/uploads/?digest="+digest.FromBytes(data).String(), data)
		if r.status != 507 || !bytes.Contains(r.body, []byte("quota")) {
			t.Errorf("a push beyond the quota: %d %s", r.status, r.body)
		}
	}
	refused(third)
	c.want(201, "POST", "/v2/b/blobs/uploads/?from=a&mount="+d.String(), nil)
	c.want(202, "DELETE", "/v2/a/blobs/"+d.String(), nil)
	refused(third) // b holds it
	c.want(202, "DELETE", "/v2/b/blobs/"+d.String(), nil)
	c.pushBlob("a", noise(4, 1999))

	// What is there counts after a restart too.
	stop()
	c, reg, _ := serve(t, dir, Options{Quota: 3000})
	c.pushBlob("a", third)
	refused(noise(5, 1))
	// In parts, the upload keeps what it has.
	if _, err := reg.Store().Collect(t.Context(), aged, false); err != nil {
		t.Fatal(err)
	}
	loc := c.begin("a")
	r := c.want(507, "PATCH", loc, noise(6, bufferSize+3000), "Content-Type", "application/octet-stream")
	if off := r.offset(t); off == 0 || off > bufferSize {
		t.Errorf("the upload has %d bytes", off)
	}
	if err := reg.Store().Sweep(time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	c.pushBlob("a", noise(7, 3000))
}
