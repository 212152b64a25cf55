package remote

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/spate-project/spate/signing"
)

var (
	_ signing.Repository = (*Repository)(nil)
	_ oras.Target        = (*Repository)(nil)

	stamp time.Time
)

func TestOpen(t *testing.T) {
	for _, tt := range []struct {
		reference string
		opts      Options
		plain     bool
	}{
		{"127.0.0.1:5000/models/qwen:v1", Options{}, true},
		{"localhost/qwen", Options{}, true},
		{"[::1]:5000/qwen", Options{}, true},
		{"[::1]/qwen", Options{}, true},
		{"127.0.0.1:5000/qwen", Options{TLS: true}, false},
		{"localhost.example.com/qwen", Options{}, false},
		{"registry.example.com/qwen", Options{}, false},
		{"10.0.0.1:5000/qwen", Options{}, false},
		{"10.0.0.1:5000/qwen", Options{PlainHTTP: true}, true},
	} {
		repo, err := Open(tt.reference, tt.opts)
		if err != nil {
			t.Errorf("Open(%q): %v", tt.reference, err)
		} else if repo.PlainHTTP != tt.plain {
			t.Errorf("Open(%q, %+v).PlainHTTP = %v", tt.reference, tt.opts, repo.PlainHTTP)
		}
	}
	for _, reference := range []string{"", "qwen", "127.0.0.1:5000/", "127.0.0.1:5000/Qwen:v1", "host/x:a b", "host/x@sha256:12", "user:hunter2@host/x"} {
		if _, err := Open(reference, Options{}); err == nil {
			t.Errorf("Open(%q): no error", reference)
		} else if !strings.Contains(err.Error(), "write HOST/NAME:TAG") {
			t.Errorf("Open(%q): error %q has no hint", reference, err)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Open(%q): error %q tells the password", reference, err)
		}
	}
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	repo := open(t, host+"/models/qwen:v1", Options{})

	_, err = repo.Resolve(t.Context(), "v1")
	checkError(t, err, errAny, "resolve "+host+"/models/qwen:v1", "not reachable", "nobody listens at "+host)
	_, err = readRange(t.Context(), repo, describe(blob), 0, 10)
	checkError(t, err, errAny, "nobody listens at "+host)
	err = repo.Upload(t.Context(), bytes.NewReader(blob), int64(len(blob)), func() digest.Digest { return describe(blob).Digest })
	checkError(t, err, errAny, "nobody listens at "+host)
}

func TestNoSuchHost(t *testing.T) {
	repo := open(t, "registry.invalid/qwen", Options{})
	_, err := repo.Resolve(t.Context(), "v1")
	checkError(t, err, errAny, "resolve registry.invalid/qwen:v1", "not reachable")
}

// A registry that speaks no TLS is not silently spoken to without.
func TestPlainHTTPNeedsPermission(t *testing.T) {
	host := serve(t, func(w http.ResponseWriter, req *http.Request) { t.Error("a request without TLS") })
	repo := open(t, host+"/qwen", Options{TLS: true})
	_, err := repo.Resolve(t.Context(), "v1")
	checkError(t, err, errAny, host+" speaks HTTP without TLS")
}

func TestTLS(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		http.ServeContent(w, req, "", stamp, bytes.NewReader(blob))
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "https://")

	_, err := readRange(t.Context(), open(t, host+"/qwen", Options{TLS: true}), describe(blob), 10, 10)
	checkError(t, err, errAny, "x509")

	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	transport := NewTransport()
	t.Cleanup(transport.CloseIdleConnections)
	transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	got, err := readRange(t.Context(), open(t, host+"/qwen", Options{TLS: true, Transport: transport}), describe(blob), 10, 10)
	if err != nil || !bytes.Equal(got, blob[10:20]) {
		t.Fatalf("Range over TLS: %q, %v", got, err)
	}
}

const secret = "s3cret-of-the-registry"

func login(context.Context, string) (auth.Credential, error) {
	return auth.Credential{Username: "user", Password: secret}, nil
}

// A redirect to another place is followed without the credential, and what that
// place is called is nobody's business: its query is a credential of its own.
func TestRedirect(t *testing.T) {
	var fail atomic.Bool
	storage := serve(t, func(w http.ResponseWriter, req *http.Request) {
		if got := req.Header.Get("Authorization"); got != "" {
			t.Errorf("the storage was sent Authorization %q", got)
		}
		if req.URL.Query().Get("signature") != secret {
			t.Errorf("the storage was asked for %s", req.URL)
		}
		if fail.Load() {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, "no: %s", req.URL)
			return
		}
		http.ServeContent(w, req, "", stamp, bytes.NewReader(blob))
	})
	target := "http://" + storage + "/bucket/blob?signature=" + secret
	host := serve(t, func(w http.ResponseWriter, req *http.Request) {
		if _, _, ok := req.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, req, target, http.StatusTemporaryRedirect)
	})
	repo := open(t, host+"/qwen", Options{Credential: login})

	got, err := readRange(t.Context(), repo, describe(blob), 10, 100)
	if err != nil || !bytes.Equal(got, blob[10:110]) {
		t.Fatalf("Range through a redirect: %q, %v", got, err)
	}
	r, err := repo.Fetch(t.Context(), describe(blob))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, blob) {
		t.Fatalf("Fetch through a redirect: %d bytes, %v", len(got), err)
	}

	fail.Store(true)
	_, err = readRange(t.Context(), repo, describe(blob), 10, 100)
	checkError(t, err, errAny, "does not allow it")
	checkNoSecret(t, err)

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	target = "http://" + l.Addr().String() + "/bucket/blob?signature=" + secret
	_, err = readRange(t.Context(), repo, describe(blob), 10, 100)
	checkError(t, err, errAny, "nobody listens at "+l.Addr().String())
	checkNoSecret(t, err)
	_, err = repo.Fetch(t.Context(), describe(blob))
	checkNoSecret(t, err)
}

func checkNoSecret(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	encoded := base64.StdEncoding.EncodeToString([]byte("user:" + secret))
	if text := err.Error(); strings.Contains(text, secret) || strings.Contains(text, encoded) {
		t.Errorf("the error tells a secret: %v", err)
	}
}

// A token of a token server is fetched once and used for all requests.
func TestToken(t *testing.T) {
	var tokens atomic.Int32
	var host string
	host = serve(t, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/token" {
			if _, password, _ := req.BasicAuth(); password != secret {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			tokens.Add(1)
			io.WriteString(w, `{"token":"the-token"}`)
			return
		}
		if req.Header.Get("Authorization") != "Bearer the-token" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+host+`/token",service="here",scope="repository:qwen:pull"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.ServeContent(w, req, "", stamp, bytes.NewReader(blob))
	})
	repo := open(t, host+"/qwen", Options{Credential: login})
	for i := range int64(3) {
		if got, err := readRange(t.Context(), repo, describe(blob), i, 100); err != nil || !bytes.Equal(got, blob[i:i+100]) {
			t.Fatalf("Range: %q, %v", got, err)
		}
	}
	if n := tokens.Load(); n != 1 {
		t.Errorf("%d tokens were fetched", n)
	}

	stranger := open(t, host+"/qwen", Options{Credential: func(context.Context, string) (auth.Credential, error) {
		return auth.Credential{Username: "user", Password: secret + secret}, nil
	}})
	_, err := readRange(t.Context(), stranger, describe(blob), 0, 100)
	checkError(t, err, errAny, "log in first: docker login "+host)
	checkNoSecret(t, err)
}

// Credentials come from the files that docker login and podman login write.
func TestLoginFiles(t *testing.T) {
	host := serve(t, func(w http.ResponseWriter, req *http.Request) {
		if user, password, _ := req.BasicAuth(); user != "user" || password != secret {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.ServeContent(w, req, "", stamp, bytes.NewReader(blob))
	})
	entry := func(plain string) string {
		return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte(plain)))
	}
	for _, tt := range []struct {
		name, env, file, content string
		text                     string // part of the error's text; empty for success
	}{
		{"docker", "DOCKER_CONFIG", "config.json", entry("user:" + secret), ""},
		{"podman", "XDG_RUNTIME_DIR", "containers/auth.json", entry("user:" + secret), ""},
		{"podman's own", "XDG_CONFIG_HOME", "containers/auth.json", entry("user:" + secret), ""},
		{"home", "HOME", ".docker/config.json", entry("user:" + secret), ""},
		{"another host", "HOME", ".docker/config.json", `{"auths":{"elsewhere.example":{"auth":"dXNlcjp4"}}}`, "log in first"},
		{"wrong password", "HOME", ".docker/config.json", entry("user:x" + secret), "log in first"},
		{"nothing", "HOME", "unrelated", "", "log in first"},
		{"broken file", "HOME", ".docker/config.json", `{"auths":`, ".docker/config.json"},
		{"broken entry", "HOME", ".docker/config.json", entry(secret), "the entry is broken"},
		{"no such helper", "HOME", ".docker/config.json", `{"credsStore":"of-nobody"}`, "docker-credential-of-nobody"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, env := range []string{"HOME", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"} {
				t.Setenv(env, "")
			}
			dir := t.TempDir()
			t.Setenv(tt.env, dir)
			path := filepath.Join(dir, tt.file)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := readRange(t.Context(), open(t, host+"/qwen", Options{Credential: loginFiles()}), describe(blob), 0, 100)
			if tt.text == "" {
				if err != nil || !bytes.Equal(got, blob[:100]) {
					t.Fatalf("Range: %q, %v", got, err)
				}
				return
			}
			checkError(t, err, errAny, tt.text)
			checkNoSecret(t, err)
		})
	}
}

func TestCanceled(t *testing.T) {
	arrived := make(chan struct{})
	host := serve(t, func(w http.ResponseWriter, req *http.Request) {
		close(arrived)
		<-req.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	_, err := readRange(ctx, open(t, host+"/qwen", Options{}), describe(blob), 0, 10)
	checkError(t, err, context.Canceled, "read 10 bytes at 0 of "+host+"/qwen@sha256:")
}

// A registry that is busy for a moment is asked again.
func TestRetry(t *testing.T) {
	var requests atomic.Int32
	host := serve(t, func(w http.ResponseWriter, req *http.Request) {
		if requests.Add(1) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		http.ServeContent(w, req, "", stamp, bytes.NewReader(blob))
	})
	got, err := readRange(t.Context(), open(t, host+"/qwen", Options{}), describe(blob), 0, 10)
	if err != nil || !bytes.Equal(got, blob[:10]) {
		t.Fatalf("Range: %q, %v", got, err)
	}
}

func TestNotFound(t *testing.T) {
	host := serve(t, func(w http.ResponseWriter, req *http.Request) { http.NotFound(w, req) })
	repo := open(t, host+"/models/qwen", Options{})
	_, err := repo.Resolve(t.Context(), "v9")
	checkError(t, err, errdef.ErrNotFound, "resolve "+host+"/models/qwen:v9: not found", "check the spelling")
	_, _, err = repo.FetchReference(t.Context(), "v9")
	checkError(t, err, errdef.ErrNotFound, "fetch "+host+"/models/qwen:v9: not found")
	if ok, err := repo.Exists(t.Context(), describe(blob)); ok || err != nil {
		t.Errorf("Exists: %v, %v", ok, err)
	}
}
