package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/spate-project/spate/oci/remote/remotetest"
	"github.com/spate-project/spate/oci/snapshot/containerdtest"
)

// A private site is one whose registry is to be had behind a door only.
type private struct {
	*site
	door    *remotetest.Door
	host    string // HOST:PORT of the door
	ref     string // of an image behind it
	weights []byte // in it
}

const (
	user     = "puller"
	password = "aeJ3ohsh-one"
)

// newPrivate pushes an image and starts the door before it. Login files of whoever runs the tests do not count.
func newPrivate(t *testing.T) *private {
	t.Helper()
	for _, name := range []string{"DOCKER_CONFIG", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"} {
		t.Setenv(name, t.TempDir())
	}
	t.Setenv("REGISTRY_AUTH_FILE", "")
	p := &private{site: newSite(t, nil), door: remotetest.NewDoor(map[string]string{user: password}), weights: noise(8<<20, 5)}
	ref := p.push("app", map[string][]byte{"etc/greeting": []byte("private\n")}, map[string][]byte{"data/weights": p.weights})
	if _, err := p.spate("index", ref, "--sign-key", p.keys.Sign()); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(p.door.Wrap(httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: p.registry})))
	t.Cleanup(srv.Close)
	p.host = strings.TrimPrefix(srv.URL, "http://")
	p.ref = p.host + "/app:v1"
	return p
}

// reads fails the test unless a container on the image reads all of it. Its name
// is its own on this machine, as its cgroup has it.
func (p *private) reads(c *containerdtest.Containerd) {
	p.t.Helper()
	want := fmt.Sprintf("%x  /data/weights\n", sha256.Sum256(p.weights))
	if out := c.Run(p.ref, "reader-"+filepath.Base(p.dir), "/bin/busybox", "sha256sum", "/data/weights"); out != want {
		p.t.Errorf("a container reads %q, want %q", out, want)
	}
}

func (n *node) lazy(want int) {
	n.t.Helper()
	layers := n.status().Layers
	if len(layers) != want {
		n.t.Errorf("there are layers %+v, want %d", layers, want)
	}
	for _, l := range layers {
		if !strings.HasPrefix(l.Path, "lazy-") {
			n.t.Errorf("a layer is not lazy: %+v", l)
		}
	}
}

// TestPrivateImages pulls a private image with the credentials of a CRI request
// alone: it is lazy and stays readable when tokens expire, a wrong password gets nothing,
// and the credentials are nowhere to be found.
func TestPrivateImages(t *testing.T) {
	for name, containerd := range map[string]func(testing.TB) containerdtest.Binaries{
		"containerd 2": containerdtest.Modern, "containerd 1": containerdtest.Distribution,
	} {
		t.Run(name, func(t *testing.T) {
			p := newPrivate(t)
			n := p.newNode("node", "--registry", "http://"+p.host, "--log-level", "debug")
			c := containerdtest.Start(t, containerd(t), n.socket())
			c.Mirror("http://" + n.listen)

			refused := func() {
				t.Helper()
				for _, auth := range []*cri.AuthConfig{nil, {Username: user, Password: "wrong"}} {
					if err := c.TryPullCRI(p.ref, auth); err == nil {
						t.Errorf("%v has pulled a private image", auth)
					}
				}
			}
			refused()
			n.lazy(0)
			if err := c.TryPullCRI(p.ref, &cri.AuthConfig{Username: user, Password: password}); err != nil {
				t.Fatal(err)
			}
			n.lazy(2)
			refused()
			p.door.Expire()
			p.reads(c)
			p.hides(n)
		})
	}
}

// hides fails the test when a credential is to be found where the agent writes.
func (p *private) hides(n *node) {
	p.t.Helper()
	said := map[string][]byte{}
	for _, path := range []string{"/metrics", "/spate/v1/status"} {
		resp, err := http.Get("http://" + n.listen + path)
		if err != nil {
			p.t.Fatal(err)
		}
		said[path], err = io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			p.t.Fatalf("GET %s: status %d, %v", path, resp.StatusCode, err)
		}
	}
	err := filepath.WalkDir(n.data(), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			said[path], err = os.ReadFile(path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the container's snapshot is on its way out
		}
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	log := filepath.Join(n.dir, n.name+".log")
	if said[log], err = os.ReadFile(log); err != nil {
		p.t.Fatal(err)
	}
	if !bytes.Contains(said[log], []byte("mirror request")) {
		p.t.Error("the log does not tell of requests")
	}
	tokens := p.door.Issued()
	if len(tokens) == 0 {
		p.t.Error("there were no tokens")
	}
	for where, b := range said {
		for _, secret := range append(tokens, password, base64.StdEncoding.EncodeToString([]byte(user+":"+password))) {
			if bytes.Contains(b, []byte(secret)) {
				p.t.Errorf("%s holds %q", where, secret)
			}
		}
	}
}

// TestPrivateImagesOwnLogin pulls a private image past the mirror: the agent reads it as its user, whose login docker has left.
func TestPrivateImagesOwnLogin(t *testing.T) {
	p := newPrivate(t)
	config, err := json.Marshal(map[string]any{"auths": map[string]any{p.host: map[string]string{
		"auth": base64.StdEncoding.EncodeToString([]byte(user + ":" + password)),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	n := p.newNode("node")
	c := containerdtest.Start(t, containerdtest.Modern(t), n.socket())
	if err := c.TryPullCRI(p.ref, &cri.AuthConfig{Username: user, Password: password}); err != nil {
		t.Fatal(err)
	}
	n.lazy(2)
	p.door.Expire()
	p.reads(c)
}
