package registry

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A child is a registry in a process of its own.
type child struct {
	*client
	cmd   *exec.Cmd
	stdin io.Closer
}

func startChild(t *testing.T, dir string, env ...string) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append(env, "REGISTRY_TEST_DIR="+dir)...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{}
	ch := &child{cmd: cmd, stdin: stdin}
	t.Cleanup(func() { ch.kill(); tr.CloseIdleConnections() })
	addr, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("the registry did not start: %v", err)
	}
	ch.client = &client{t: t, base: "http://" + strings.TrimSpace(addr), http: &http.Client{Transport: tr}}
	return ch
}

// kill is kill -9, and waits for the end.
func (ch *child) kill() {
	ch.cmd.Process.Kill()
	ch.cmd.Wait()
	ch.stdin.Close()
}

// kill -9 in the middle of a PATCH: the upload goes on from what was written.
func TestKillDuringUpload(t *testing.T) {
	dir := t.TempDir()
	data := noise(1, 12<<20+345)
	d := digest.FromBytes(data)
	checkpoints := "REGISTRY_TEST_CHECKPOINT=1048576"

	ch := startChild(t, dir, checkpoints)
	loc := ch.begin("r")
	off := int64(0)
	for round := range 3 {
		conn := stall(t, ch.client, loc, len(data)-int(off), data[off:off+3<<20+1000])
		kept := waitFor(ch.client, loc, off+2<<20)
		ch.kill()
		conn.Close()

		ch = startChild(t, dir, checkpoints)
		off = ch.want(204, "GET", loc, nil).offset(t)
		if off < kept {
			t.Fatalf("round %d: %d bytes after the kill, %d before", round, off, kept)
		}
	}
	r := ch.want(202, "PATCH", loc, data[off:], "Content-Range", fmt.Sprintf("%d-%d", off, len(data)-1))
	ch.want(201, "PUT", r.header.Get("Location")+"?digest="+d.String(), nil)
	if r := ch.want(200, "GET", "/v2/r/blobs/"+d.String(), nil); !bytes.Equal(r.body, data) {
		t.Error("wrong bytes")
	}
}

// The registry is killed before each change that it makes to its names on disk
// while a client pushes and deletes. Whatever the moment: what is named is
// there, what is there is right, and the same push then succeeds.
func TestKillBetweenSteps(t *testing.T) {
	config, layer := []byte(`{}`), noise(1, 1000)
	img := image(config, layer)
	subject := descriptor(ocispec.MediaTypeImageManifest, marshal(t, img))
	ref := image(config)
	ref.Subject = &subject
	blobs := map[digest.Digest][]byte{digest.FromBytes(config): config, digest.FromBytes(layer): layer}
	refDigest := digest.FromBytes(marshal(t, ref))

	push := func(ch *child) bool {
		ok := true
		for _, step := range []struct {
			method, path string
			body         []byte
			status       int
		}{
			{"POST", "/v2/r/blobs/uploads/?digest=" + digest.FromBytes(config).String(), config, 201},
			{"POST", "/v2/r/blobs/uploads/?digest=" + digest.FromBytes(layer).String(), layer, 201},
			{"POST", "/v2/s/blobs/uploads/?digest=" + digest.FromBytes(layer).String(), layer, 201},
			{"POST", "/v2/m/blobs/uploads/?from=r&mount=" + digest.FromBytes(layer).String(), nil, 201},
			{"PUT", "/v2/r/manifests/latest", marshal(t, img), 201},
			{"PUT", "/v2/r/manifests/" + refDigest.String() + "?tag=ref", marshal(t, ref), 201},
		} {
			ok = ok && ch.do(step.method, step.path, step.body).status == step.status
		}
		return ok
	}
	remove := func(ch *child) bool {
		ok := true
		for _, path := range []string{
			"/v2/r/manifests/" + refDigest.String(), "/v2/r/manifests/latest", "/v2/r/manifests/" + subject.Digest.String(),
			"/v2/r/blobs/" + digest.FromBytes(config).String(), "/v2/r/blobs/" + digest.FromBytes(layer).String(),
			"/v2/s/blobs/" + digest.FromBytes(layer).String(), "/v2/m/blobs/" + digest.FromBytes(layer).String(),
		} {
			ok = ok && ch.do("DELETE", path, nil).status == 202
		}
		return ok
	}
	check := func(ch *child) {
		t.Helper()
		for _, repo := range []string{"r", "s", "m"} {
			for d, data := range blobs {
				if r := ch.do("GET", "/v2/"+repo+"/blobs/"+d.String(), nil); r.status != 404 && !bytes.Equal(r.body, data) {
					t.Errorf("blob %s of %s: status %d, %q", d, repo, r.status, r.body)
				}
			}
		}
		var tags struct{ Tags []string }
		if r := ch.do("GET", "/v2/r/tags/list", nil); r.status != 404 && json.Unmarshal(r.body, &tags) != nil {
			t.Errorf("tags: status %d, %s", r.status, r.body)
		}
		for _, tag := range tags.Tags {
			ch.want(200, "GET", "/v2/r/manifests/"+tag, nil)
		}
		there := ch.do("GET", "/v2/r/manifests/"+refDigest.String(), nil).status == 200
		listed := strings.Contains(string(ch.want(200, "GET", "/v2/r/referrers/"+subject.Digest.String(), nil).body), refDigest.String())
		if there != listed {
			t.Errorf("the referrer is there: %v, listed: %v", there, listed)
		}
	}

	for n := 1; ; n++ {
		dir := t.TempDir()
		ch := startChild(t, dir, fmt.Sprint("REGISTRY_TEST_KILL_AT=", n))
		done := push(ch) && remove(ch)
		ch.kill()

		ch = startChild(t, dir)
		check(ch)
		if !push(ch) {
			t.Errorf("killed before change %d: the push after it failed", n)
		}
		check(ch)
		ch.want(200, "GET", "/v2/r/manifests/ref", nil)
		if !remove(ch) {
			t.Errorf("killed before change %d: the delete after it failed", n)
		}
		ch.kill()

		s, err := OpenStore(dir, discard())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Sweep(time.Now().Add(time.Hour)); err != nil {
			t.Error(err)
		}
		for _, d := range []string{"tmp", "uploads", "blobs/sha256"} {
			if left, err := s.list(d); err != nil || len(left) > 0 {
				t.Errorf("killed before change %d: %s is left over in %s, %v", n, left, d, err)
			}
		}
		s.Close()
		if t.Failed() {
			t.FailNow()
		}
		if done {
			if n < 20 {
				t.Errorf("only %d changes seen", n)
			}
			return
		}
	}
}
