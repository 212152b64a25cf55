package agent

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/spate-project/spate/cmd/internal/lab"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/oci/remote/remotetest"
	"github.com/spate-project/spate/p2p/link"
)

// TestLogin holds that the agent reads a repository with the login that it let in
// last by way of the mirror, gets new tokens with it, says what to do when it is
// good no more, and uses it for no other repository.
func TestLogin(t *testing.T) {
	source := filepath.Join(t.TempDir(), "source")
	if err := lab.Synthesize(t.Context(), source, 1<<20, lab.ModelOptions{Shards: 1}); err != nil {
		t.Fatal(err)
	}
	open := newRegistry(t)
	policy := push(t, source, open+"/m:v1")
	door := remotetest.NewDoor(map[string]string{"user": "pass"})
	srv := httptest.NewServer(door.Wrap(httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: open})))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	nobody := func(context.Context, string) (auth.Credential, error) { return auth.EmptyCredential, nil }
	a, addr, _ := running(t, Options{
		Data: t.TempDir(), Policy: policy, Link: link.New(0, 0), Registries: []string{host},
		Remote: remote.Options{Credential: nobody},
	})
	// pull asks the mirror for the manifest, as one who logs in.
	pull := func(password string) error {
		t.Helper()
		repo, err := remote.Open(addr+"/m:v1", remote.Options{
			Credential: func(context.Context, string) (auth.Credential, error) {
				return auth.Credential{Username: "user", Password: password}, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = repo.Resolve(t.Context(), "v1")
		return err
	}
	refused := func(err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "docker login "+host) || strings.Contains(err.Error(), "pass") {
			t.Errorf("%v, want what to do", err)
		}
	}

	_, err := a.admit(t.Context(), host+"/m:v1", online)
	refused(err)
	if err := pull("wrong"); err == nil {
		t.Error("a pull with a wrong password is answered")
	}
	_, err = a.admit(t.Context(), host+"/m:v1", online)
	refused(err)

	if err := pull("pass"); err != nil {
		t.Fatal(err)
	}
	admission, err := a.admit(t.Context(), host+"/m:v1", online)
	if err != nil {
		t.Fatal(err)
	}
	blob := admission.Files[0].Descriptor
	read := func() error {
		r, err := admission.repo.Range(t.Context(), blob, 0, 1)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r)
		return errors.Join(err, r.Close())
	}
	_, err = a.admit(t.Context(), host+"/other:v1", online)
	refused(err)

	door.Expire()
	if err := read(); err != nil {
		t.Errorf("the token has expired: %v", err)
	}
	door.Change("user", "pass2")
	door.Expire()
	refused(read())
	if err := pull("pass2"); err != nil {
		t.Fatal(err)
	}
	if err := read(); err != nil {
		t.Errorf("after another pull: %v", err)
	}
}

// TestOwnLogin holds that the agent's user counts without a pull by way of the
// mirror, and once the login of the last one is refused.
func TestOwnLogin(t *testing.T) {
	door := remotetest.NewDoor(map[string]string{"user": "pass", "agent": "own"})
	var (
		mu    sync.Mutex
		asked []string // by whom the token server was asked
	)
	inner := door.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if user, _, ok := req.BasicAuth(); ok {
			mu.Lock()
			asked = append(asked, user)
			mu.Unlock()
		}
		inner.ServeHTTP(w, req)
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	a, addr, _ := running(t, Options{Data: t.TempDir(), Link: link.New(0, 0), Registries: []string{host}, Remote: remote.Options{
		Credential: auth.StaticCredential(host, auth.Credential{Username: "agent", Password: "own"}),
	}})
	repo, err := a.repository(host + "/m:v1")
	if err != nil {
		t.Fatal(err)
	}
	get := func(client interface {
		Do(*http.Request) (*http.Response, error)
	}, url string) {
		t.Helper()
		resp, err := client.Do(try(http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil))(t))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("GET %s: status %d", url, resp.StatusCode)
		}
	}
	as := func(want ...string) {
		t.Helper()
		door.Expire()
		mu.Lock()
		asked = nil
		mu.Unlock()
		get(repo.Client, srv.URL+"/v2/m/tags/list")
		mu.Lock()
		defer mu.Unlock()
		if !slices.Equal(asked, want) {
			t.Errorf("asked as %v, want %v", asked, want)
		}
	}

	as("agent")
	puller := try(remote.Open(addr+"/m", remote.Options{
		Credential: auth.StaticCredential(addr, auth.Credential{Username: "user", Password: "pass"}),
	}))(t)
	get(puller.Client, "http://"+addr+"/v2/m/tags/list")
	as("user")
	door.Change("user", "pass2")
	as("user", "agent")
}
