package mirror

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ctdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
	"oras.land/oras-go/v2"
	orasmemory "oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/spate-project/spate/oci/remote"
)

// doors are how a registry asks who comes in: each returns a middleware that lets user:pass in only.
var doors = map[string]func(t *testing.T) func(http.Handler) http.Handler{
	"open":   func(*testing.T) func(http.Handler) http.Handler { return nil },
	"basic":  basicDoor,
	"bearer": bearerDoor,
}

func basicDoor(*testing.T) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if user, pass, _ := req.BasicAuth(); user != "user" || pass != "pass" {
				w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, req)
		})
	}
}

// bearerDoor has a token server beside the registry, as most registries do.
func bearerDoor(t *testing.T) func(http.Handler) http.Handler {
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		user, pass, _ := req.BasicAuth()
		if req.ParseForm() == nil && req.Method == http.MethodPost {
			user, pass = req.Form.Get("username"), req.Form.Get("password")
		}
		if user != "user" || pass != "pass" || !strings.Contains(req.FormValue("scope"), "repository:team/app:pull") {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"token": "let-me-in", "access_token": "let-me-in"})
	}))
	t.Cleanup(tokens.Close)
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Authorization") != "Bearer let-me-in" {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="here",scope="repository:team/app:pull"`, tokens.URL))
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, req)
		})
	}
}

// containerd pulls reference as containerd does whose hosts.toml names the mirror, and returns its content store.
func (b *bench) containerd(reference string) (ctdcontent.Store, ocispec.Descriptor, error) {
	b.t.Helper()
	root := b.t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "certs.d", "_default"), 0o755); err != nil {
		b.t.Fatal(err)
	}
	toml := fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", b.url, b.url)
	if err := os.WriteFile(filepath.Join(root, "certs.d", "_default", "hosts.toml"), []byte(toml), 0o644); err != nil {
		b.t.Fatal(err)
	}
	ctx := b.t.Context()
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(ctx, config.HostOptions{
		HostDir:     config.HostDirFromRoot(filepath.Join(root, "certs.d")),
		Credentials: func(string) (string, string, error) { return "user", "pass", nil },
	})})
	store := must(local.NewStore(filepath.Join(root, "content")))
	name, desc, err := resolver.Resolve(ctx, reference)
	if err != nil {
		return store, desc, err
	}
	fetcher := must(resolver.Fetcher(ctx, name))
	children := images.LimitManifests(images.FilterPlatforms(images.ChildrenHandler(store), platforms.OnlyStrict(platforms.MustParse("linux/amd64"))),
		platforms.OnlyStrict(platforms.MustParse("linux/amd64")), 1)
	// One at a time: containerd's token cache has a data race of its own.
	return store, desc, images.Dispatch(ctx, images.Handlers(remotes.FetchHandler(store, fetcher), children), semaphore.NewWeighted(1), desc)
}

// holds fails the test unless store has every one of blobs.
func holds(t *testing.T, store ctdcontent.Store, blobs ...[]byte) {
	t.Helper()
	for _, want := range blobs {
		desc := ocispec.Descriptor{Digest: digest.FromBytes(want), Size: int64(len(want))}
		if got, err := ctdcontent.ReadBlob(t.Context(), store, desc); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, error %v", desc.Digest, len(got), err)
		}
	}
}

// TestContainerd pulls with containerd's own client: a signed image, a signed
// index of images, and an unsigned one, from registries with each kind of door.
func TestContainerd(t *testing.T) {
	for name, door := range doors {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			big := random(3 << 20)
			single, amd, arm := b.image("v1", big, random(1000)), b.image("", random(5000)), b.image("", random(5000))
			b.sign(single.desc)
			b.sign(b.index("multi", amd, arm))
			b.image("unsigned", random(1000))
			b.mesh.hold(big)
			b.before(door(t))

			store, desc, err := b.containerd(b.host + "/team/app:v1")
			if err != nil || desc.Digest != single.desc.Digest {
				t.Fatalf("pull: %v, %v", desc, err)
			}
			holds(t, store, append(single.layers, single.config)...)
			if _, _, err := b.containerd(b.host + "/team/app@" + single.desc.Digest.String()); err != nil {
				t.Errorf("pull by digest: %v", err)
			}
			store, _, err = b.containerd(b.host + "/team/app:multi")
			if err != nil {
				t.Fatalf("pull: %v", err)
			}
			holds(t, store, append(amd.layers, amd.config)...)

			_, _, err = b.containerd(b.host + "/team/app:unsigned")
			if err == nil || !strings.Contains(err.Error(), "403") {
				t.Errorf("pull an unsigned image: %v", err)
			}
			for _, req := range b.asked() {
				if req.UserAgent() != "spate" {
					t.Errorf("%s went past the mirror to %s", req.UserAgent(), req.URL)
				}
				if strings.HasSuffix(req.URL.Path, digest.FromBytes(big).String()) {
					t.Errorf("the registry was asked for what the mesh has: %s", req.URL)
				}
			}
			if s := b.mirror.Stats(); s.Mesh.Answers < 1 || s.Denied.Answers < 1 || s.Failed.Answers > 0 {
				t.Errorf("counts %+v", s)
			}
			log := b.log.String()
			for _, secret := range []string{"let-me-in", base64.StdEncoding.EncodeToString([]byte("user:pass")), "Bearer", "Basic "} {
				if strings.Contains(log, secret) {
					t.Errorf("the log holds %q", secret)
				}
			}
		})
	}
}

// TestContainerdBroken pulls while the registry's bytes are wrong, or its transfers and the mesh's break off.
func TestContainerdBroken(t *testing.T) {
	b := newBench(t, nil)
	layer, other := random(2<<20), random(2<<20)
	b.sign(b.image("v1", layer).desc)
	b.sign(b.image("v2", other).desc)
	b.before(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if strings.HasSuffix(req.URL.Path, digest.FromBytes(layer).String()) {
				bad := bytes.Clone(layer)
				bad[len(bad)/2] ^= 1
				_, _ = w.Write(bad)
				return
			}
			next.ServeHTTP(w, req)
		})
	})
	store, _, err := b.containerd(b.host + "/team/app:v1")
	if err == nil {
		t.Error("wrong bytes were pulled")
	}
	if _, err := store.Info(t.Context(), digest.FromBytes(layer)); err == nil {
		t.Error("the store holds wrong bytes")
	}
	if log := b.log.String(); !strings.Contains(log, "does not match its digest (sent by "+b.host) {
		t.Errorf("log %s", log)
	}

	// The mesh breaks off in the middle and then has the blob no more: the rest
	// comes from the registry, which here sends the whole for a part.
	b.mesh.hold(other)
	b.mesh.cut = 1 << 20
	b.before(func(next http.Handler) http.Handler {
		b.mesh.mu.Lock()
		defer b.mesh.mu.Unlock()
		if len(b.mesh.asked) > 0 {
			delete(b.mesh.blobs, digest.FromBytes(other))
		}
		return next
	})
	store, _, err = b.containerd(b.host + "/team/app:v2")
	if err != nil {
		t.Fatal(err)
	}
	holds(t, store, other)
	if s := b.mirror.Stats(); s.Failed.Answers < 2 || len(b.mesh.asked) < 2 {
		t.Errorf("counts %+v; the mesh was asked %d times", s, len(b.mesh.asked))
	}
}

// TestOras pulls with oras-go, which asks the mirror as its default registry.
func TestOras(t *testing.T) {
	for name, door := range doors {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, func(b *bench, opts *Options) { opts.Default = b.host })
			img := b.image("v1", random(200<<10))
			b.sign(img.desc)
			b.image("unsigned", random(10))
			b.before(door(t))
			transport := remote.NewTransport()
			defer transport.CloseIdleConnections()
			repo := must(remote.Open(strings.TrimPrefix(b.url, "http://")+"/team/app:v1", remote.Options{
				Transport: transport,
				Credential: func(context.Context, string) (auth.Credential, error) {
					return auth.Credential{Username: "user", Password: "pass"}, nil
				},
			}))
			target := orasmemory.New()
			desc, err := oras.Copy(t.Context(), repo, "v1", target, "", oras.DefaultCopyOptions)
			if err != nil || desc.Digest != img.desc.Digest {
				t.Fatalf("copy: %v, %v", desc, err)
			}
			if ok, err := target.Exists(t.Context(), ocispec.Descriptor{Digest: digest.FromBytes(img.layers[0]), MediaType: ocispec.MediaTypeImageLayer, Size: int64(len(img.layers[0]))}); !ok || err != nil {
				t.Errorf("the layer: %t, %v", ok, err)
			}
			if _, _, err = repo.FetchReference(t.Context(), "unsigned"); err == nil || !strings.Contains(err.Error(), "no signature is attached") {
				t.Errorf("fetch an unsigned image: %v", err)
			}
			var tags []string
			if err := repo.Tags(t.Context(), "", func(page []string) error { tags = append(tags, page...); return nil }); err != nil || !slices.Equal(tags, []string{"unsigned", "v1"}) {
				t.Errorf("tags %v, %v", tags, err)
			}
		})
	}
}

// TestChallenge holds that a challenge reaches the caller as the registry made
// it, but for the mirror in its token server's place, also when only the policy's own questions meet it, and that somebody with
// no credential gets no answer that another's would have had.
func TestChallenge(t *testing.T) {
	b := newBench(t, nil)
	img := b.image("v1", random(100))
	b.sign(img.desc)
	challenge := `Bearer realm="https://auth.example/token",service="here"`
	challenged := func(a answer) bool {
		got := a.header.Get("WWW-Authenticate")
		return strings.HasPrefix(got, `Bearer realm="`+b.url+tokenPath) && strings.HasSuffix(got, `",service="here"`)
	}
	for _, asked := range []string{"/manifests/v1", "/referrers/", "/blobs/"} {
		b.before(func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if strings.Contains(req.URL.Path, asked) && req.Header.Get("Authorization") != "Bearer ok" {
					w.Header().Set("WWW-Authenticate", challenge)
					w.Header().Set("Content-Type", "application/json")
					w.WriteHeader(http.StatusUnauthorized)
					_, _ = w.Write([]byte(`{"errors":[{"code":"UNAUTHORIZED"}]}`))
					return
				}
				next.ServeHTTP(w, req)
			})
		})
		a := b.get("manifests/v1")
		a.want(t, 401, []byte(`{"errors":[{"code":"UNAUTHORIZED"}]}`))
		if !challenged(a) {
			t.Errorf("%s: challenge %q", asked, a.header.Get("WWW-Authenticate"))
		}
	}
	if a := b.get("manifests/v1", "Authorization", "Bearer ok"); a.status != 200 {
		t.Fatalf("status %d, %s", a.status, a.body)
	}
	if a := b.get("blobs/" + digest.FromBytes(img.layers[0]).String()); a.status != 401 || !challenged(a) {
		t.Errorf("status %d, %v", a.status, a.header)
	}
	b.get("blobs/"+digest.FromBytes(img.layers[0]).String(), "Authorization", "Bearer ok").want(t, 200, img.layers[0])
}
