package registry

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Each byte of each kind of file that carries meaning is altered in turn. The
// registry must not hand the damage out as if it were what was pushed, and the
// same push must heal it.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	c, _, _ := serve(t, dir, Options{})
	config := []byte(`{}`)
	subject := descriptor(ocispec.MediaTypeImageManifest, []byte("subject"))
	m := image(config)
	m.Subject = &subject
	raw := marshal(t, m)
	d := digest.FromBytes(raw)
	push := func() {
		t.Helper()
		c.pushBlob("r", config)
		c.pushManifest("r", "t", m)
	}
	push()

	flip := func(name string, i int) {
		t.Helper()
		name = filepath.Join(dir, name)
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b[i] ^= 4
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	for i := range raw {
		flip(manifestPath("r", d), i)
		c.want(404, "GET", "/v2/r/manifests/t", nil)
		c.want(404, "HEAD", "/v2/r/manifests/"+d.String(), nil) // or no client would push it again
		if r := c.want(200, "GET", "/v2/r/referrers/"+subject.Digest.String(), nil); strings.Contains(string(r.body), d.String()) {
			t.Fatalf("byte %d: a damaged manifest is listed", i)
		}
		c.pushManifest("r", "t", m)
		c.want(200, "GET", "/v2/r/manifests/t", nil)
	}
	for i := range d {
		flip(tagPath("r", "t"), i)
		c.want(404, "GET", "/v2/r/manifests/t", nil)
		c.pushManifest("r", "t", m)
		c.want(200, "GET", "/v2/r/manifests/t", nil)
	}
	// Of a blob, the client finds the damage: the digest is in its hands.
	blob := "/v2/r/blobs/" + digest.FromBytes(config).String()
	c.want(201, "POST", "/v2/other/blobs/uploads/?from=r&mount="+digest.FromBytes(config).String(), nil)
	for i := range config {
		flip(blobPath("r", digest.FromBytes(config)), i)
		c.want(202, "DELETE", blob, nil)
		push()
		if r := c.want(200, "GET", blob, nil); !bytes.Equal(r.body, config) {
			t.Fatalf("byte %d: not healed", i)
		}
	}
	for _, length := range []int64{0, 1, 3} {
		if err := os.Truncate(filepath.Join(dir, blobPath("r", digest.FromBytes(config))), length); err != nil {
			t.Fatal(err)
		}
		push()
		if r := c.want(200, "GET", blob, nil); !bytes.Equal(r.body, config) {
			t.Errorf("length %d: not healed", length)
		}
	}

	// A damaged manifest can still be deleted.
	flip(manifestPath("r", d), 0)
	c.want(202, "DELETE", "/v2/r/manifests/"+d.String(), nil)
	c.want(404, "GET", "/v2/r/manifests/t", nil)
}

// Space comes back when the last repository lets go, also after a crash between two steps.
func TestSweepBlobs(t *testing.T) {
	dir := t.TempDir()
	c, reg, _ := serve(t, dir, Options{})
	data := noise(1, 100)
	d := c.pushBlob("a", data)
	c.pushBlob("b", data)
	kept := c.pushBlob("a", noise(2, 100))
	files := func() (n int) {
		t.Helper()
		err := filepath.WalkDir(filepath.Join(dir, "blobs"), func(_ string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				n++
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for i, step := range []struct {
		remove string
		files  int
	}{{"", 2}, {blobPath("a", d), 2}, {blobPath("b", d), 1}} {
		if step.remove != "" {
			if err := os.Remove(filepath.Join(dir, step.remove)); err != nil {
				t.Fatal(err)
			}
		}
		if err := reg.Store().Sweep(time.Now()); err != nil {
			t.Fatal(err)
		}
		if got := files(); got != step.files {
			t.Errorf("step %d: %d files, want %d", i, got, step.files)
		}
	}
	c.want(200, "GET", "/v2/a/blobs/"+kept.String(), nil)
}

func TestOneProcessAtATime(t *testing.T) {
	dir := t.TempDir()
	_, _, stop := serve(t, dir, Options{})
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), dir) {
		t.Fatalf("opened twice: %v", err)
	}
	stop()
	reg, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	reg.Close()
}

// A full disk is named as such, keeps what came, and the upload goes on once there is space.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=3m"); err != nil {
		t.Fatalf("mount a small file system: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	c, _, stop := serve(t, dir, Options{})
	t.Cleanup(stop) // before the unmount

	small := c.pushBlob("r", []byte(`{}`))
	data := noise(1, 8<<20)
	d := digest.FromBytes(data)
	loc := c.begin("r")
	r := c.want(507, "PATCH", loc, bytes.NewReader(data))
	if r.code() != codeUnknown || !strings.Contains(string(r.body), "disk is full") {
		t.Errorf("answer %s", r.body)
	}
	off := c.want(204, "GET", loc, nil).offset(t)
	if off < 1<<20 || off >= 3<<20 {
		t.Errorf("the upload has %d bytes", off)
	}
	if r := c.do("PUT", "/v2/r/manifests/t", marshal(t, image([]byte(`{}`)))); r.status != 507 && r.status != 201 {
		t.Errorf("manifest: status %d", r.status)
	}
	c.want(200, "GET", "/v2/r/blobs/"+small.String(), nil)

	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=32m"); err != nil {
		t.Fatal(err)
	}
	c.want(201, "PUT", loc+"?digest="+d.String(), data[off:])
	if r := c.want(200, "GET", "/v2/r/blobs/"+d.String(), nil); !bytes.Equal(r.body, data) {
		t.Error("wrong bytes")
	}

	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	r = c.want(500, "POST", "/v2/r/blobs/uploads/", nil)
	if !strings.Contains(string(r.body), "owner and mode") || strings.Contains(string(r.body), dir) {
		t.Errorf("answer %s", r.body)
	}
	c.want(200, "GET", "/v2/r/blobs/"+d.String(), nil)
}
