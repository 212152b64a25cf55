package mirror

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/spate-project/spate/oci/remote/remotetest"
)

func basicOf(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// token gets a token as the last challenge of the mirror's says, and returns an Authorization field.
func (b *bench) token(t *testing.T, challenge, user, password string) string {
	t.Helper()
	found := bearerRealm.FindStringSubmatch(challenge)
	if found == nil || !strings.HasPrefix(found[2], b.url) {
		t.Fatalf("the mirror does not stand in for the token server: %s", challenge)
	}
	a := b.raw(http.MethodGet, strings.TrimPrefix(found[2], b.url)+"?service=here", "Authorization", basicOf(user, password))
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if a.status != 200 || json.Unmarshal(a.body, &answer) != nil {
		t.Fatalf("no token: status %d, %s", a.status, a.body)
	}
	return "Bearer " + answer.AccessToken
}

// TestCredential holds that the mirror knows by which login a repository lets
// containerd in, of that repository alone, and that no log does.
func TestCredential(t *testing.T) {
	tokens := remotetest.NewDoor(map[string]string{"user": "pass"})
	for name, door := range map[string]func(http.Handler) http.Handler{"basic": basicDoor(t), "bearer": tokens.Wrap} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			b.sign(b.image("v1", random(1000)).desc)
			b.before(door)
			if cred, ok := b.mirror.Credential(b.host+"/team/app", true); ok {
				t.Errorf("before a pull there is %v", cred)
			}
			if _, _, err := b.containerd(b.host + "/team/app:v1"); err != nil {
				t.Fatal(err)
			}
			want := auth.Credential{Username: "user", Password: "pass"}
			if cred, ok := b.mirror.Credential(b.host+"/team/app", true); !ok || cred != want {
				t.Errorf("after a pull there is %v, %t", cred, ok)
			}
			for _, other := range []string{b.host + "/team/other", b.host + "/team", "other.example/team/app", b.host + "/"} {
				if cred, ok := b.mirror.Credential(other, true); ok {
					t.Errorf("for %s there is %v", other, cred)
				}
			}
			b.get("manifests/v1", "Authorization", basicOf("user", "wrong")).want(t, 401, nil)
			if cred, _ := b.mirror.Credential(b.host+"/team/app", true); cred != want {
				t.Errorf("after a refusal there is %v", cred)
			}
			log := b.log.String()
			for _, secret := range append(tokens.Issued(), "user:pass", "password=", basicOf("user", "pass"), "Bearer") {
				if strings.Contains(log, secret) {
					t.Errorf("the log holds %q", secret)
				}
			}
		})
	}
}

// TestPlain holds that a login which went to the registry through TLS is for clients with TLS only.
func TestPlain(t *testing.T) {
	c := newCallers()
	m := &Mirror{callers: c}
	c.logins.put("ghcr.io/a", login{auth.Credential{Username: "user", Password: "pass"}, false})
	if _, ok := m.Credential("ghcr.io/a", true); ok {
		t.Error("a client without TLS gets it")
	}
	if _, ok := m.Credential("ghcr.io/a", false); !ok {
		t.Error("a client with TLS does not get it")
	}
}

// TestStrangers holds that what one caller's login has opened is for those whom
// the origin lets in too: of manifests in memory and blobs in the mesh nobody else gets a byte.
func TestStrangers(t *testing.T) {
	b := newBench(t, nil)
	layer := random(100 << 10)
	img := b.image("v1", layer)
	b.sign(img.desc)
	b.mesh.hold(layer)
	door := remotetest.NewDoor(map[string]string{"user": "pass", "second": "pass2"})
	b.before(door.Wrap)
	challenge := b.get("manifests/v1").header.Get("WWW-Authenticate")
	user := b.token(t, challenge, "user", "pass")
	manifest, blob := "manifests/"+img.desc.Digest.String(), "blobs/"+digest.FromBytes(layer).String()
	right := b.get("manifests/v1", "Authorization", user)
	b.get(manifest, "Authorization", user).want(t, 200, right.body)
	b.get(blob, "Authorization", user).want(t, 200, layer)

	opened := len(b.mesh.asked)
	for _, stranger := range []string{"", "Bearer guessed", basicOf("user", "wrong"), basicOf("user", "pass"), "Basic broken"} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			for _, rest := range []string{manifest, blob} {
				a := b.do(method, rest, "Authorization", stranger)
				if a.status != 401 || len(a.body) > 0 || a.header.Get("WWW-Authenticate") == "" {
					t.Errorf("%s %s as %q: status %d, %d bytes", method, rest, stranger, a.status, len(a.body))
				}
			}
		}
	}
	if n := len(b.mesh.asked) - opened; n > 0 {
		t.Errorf("the mesh was asked %d times for strangers", n)
	}
	second := b.token(t, challenge, "second", "pass2")
	b.get(blob, "Authorization", second).want(t, 200, layer)
	if cred, _ := b.mirror.Credential(b.host+"/team/app", true); cred.Username != "second" {
		t.Errorf("the one let in last is %q", cred.Username)
	}

	// The origin's word counts for a time, and after it while the origin is away.
	door.Expire()
	b.get(blob, "Authorization", user).want(t, 200, layer)
	longAgo := func(authorization string) {
		b.mirror.callers.let.put(caller{authorization: authorization}.shown(b.host+"/team/app"), time.Now().Add(-letInFor))
	}
	longAgo(user)
	b.get(blob, "Authorization", user).want(t, 401, nil)
	longAgo(second)
	b.server.Close()
	b.get(blob, "Authorization", second).want(t, 200, layer)
	for _, stranger := range []string{"", user} {
		b.get(blob, "Authorization", stranger).want(t, 502, []byte("connection refused"))
	}
}

// TestToken asks the mirror for tokens in the ways that it refuses, and of token servers that misbehave.
func TestToken(t *testing.T) {
	reached := false
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer elsewhere.Close()
	b := newBench(t, func(_ *bench, opts *Options) {
		opts.Local = append(opts.Local, strings.TrimPrefix(elsewhere.URL, "http://"))
	})
	b.image("v1", random(10))
	var answer http.HandlerFunc
	b.before(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/token" {
				answer(w, req)
				return
			}
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token?kept=yes",service="here"`, req.Host))
			w.WriteHeader(http.StatusUnauthorized)
		})
	})
	at := strings.TrimPrefix(bearerRealm.FindStringSubmatch(b.get("manifests/v1").header.Get("WWW-Authenticate"))[2], b.url)

	b.raw(http.MethodGet, tokenPath+strings.Repeat("0", 32)).want(t, 404, []byte("pull again"))
	b.raw(http.MethodGet, tokenPath+"x").want(t, 400, []byte("no repository name"))
	b.raw(http.MethodPut, at).want(t, 405, []byte("no way to ask for a token"))

	var asked url.Values
	answer = func(w http.ResponseWriter, req *http.Request) {
		asked = req.URL.Query()
		_, _ = w.Write([]byte(`{"token":"nobody's"}`))
	}
	b.raw(http.MethodGet, at+"?scope=a&scope=b").want(t, 200, []byte(`{"token":"nobody's"}`))
	if asked.Get("kept") != "yes" || !slices.Equal(asked["scope"], []string{"a", "b"}) {
		t.Errorf("the token server was asked with %v", asked)
	}
	if n := b.mirror.callers.tokens.last.Len(); n != 0 {
		t.Errorf("%d logins are known, and nobody has logged in", n)
	}
	for what, tt := range map[string]struct {
		answer http.HandlerFunc
		status int
		text   string
	}{
		"refusal":  {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no such user", http.StatusUnauthorized) }, 401, "no such user"},
		"failure":  {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "closed", http.StatusServiceUnavailable) }, 503, "closed"},
		"no JSON":  {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"token":"secret`)) }, 502, "answer is broken"},
		"endless":  {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, maxTokenAnswer+2)) }, 502, "answer is broken"},
		"redirect": {http.RedirectHandler(elsewhere.URL+"/?secret", http.StatusTemporaryRedirect).ServeHTTP, 502, "gets no login"},
	} {
		answer = tt.answer
		a := b.raw(http.MethodGet, at, "Authorization", basicOf("user", "pass"))
		if a.status != tt.status || !strings.Contains(string(a.body), tt.text) {
			t.Errorf("%s: status %d, %.200s; want %d, %s", what, a.status, a.body, tt.status, tt.text)
		}
	}
	if reached {
		t.Error("a login went to another host")
	}
	if log := b.log.String(); strings.Contains(log, "secret") || strings.Contains(log, basicOf("user", "pass")) {
		t.Errorf("the log holds a secret: %s", log)
	}
}

// TestStandIn holds where the mirror takes a token server's place, and that the rest of the challenge stays.
func TestStandIn(t *testing.T) {
	m := newBench(t, nil).mirror
	loopback, lan := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5050}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 5050}
	const at = "http://mirror" + tokenPath
	for _, tt := range []struct {
		what, challenge string
		plain           bool
		local           net.Addr
		in              bool
	}{
		{"ordinary", `Bearer realm="https://auth.example/token",service="x",scope="repository:a:pull"`, false, loopback, true},
		{"realm last", `bearer service="a, b",realm="https://auth.example/token"`, false, loopback, true},
		{"plain registry", `Bearer realm="http://auth.example/token"`, true, loopback, true},
		{"downgrade", `Bearer realm="http://auth.example/token"`, false, loopback, false},
		{"caller in the clear", `Bearer realm="https://auth.example/token"`, false, lan, false},
		{"own service", `Bearer realm="https://127.0.0.1:6443/token"`, false, loopback, false},
		{"user in it", `Bearer realm="https://user@auth.example/token"`, false, loopback, false},
		{"basic", `Basic realm="https://auth.example/token"`, false, loopback, false},
		{"no address", `Bearer realm="%zz"`, false, loopback, false},
	} {
		req := httptest.NewRequestWithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, tt.local), http.MethodGet, "http://mirror/v2/", nil)
		got := m.standIn(req, "registry.example", tt.plain, tt.challenge)
		if (got != tt.challenge) != tt.in {
			t.Errorf("%s: %s", tt.what, got)
		}
		if i := strings.Index(got, at); tt.in && (i < 0 || len(got[i+len(at):]) < 33 || strings.ReplaceAll(got, got[i:i+len(at)+32], "") != strings.NewReplacer("https://auth.example/token", "", "http://auth.example/token", "").Replace(tt.challenge)) {
			t.Errorf("%s: %s", tt.what, got)
		}
	}
}

// TestRecent holds the bound, and that what is used stays.
func TestRecent(t *testing.T) {
	r := newRecent[int, string](2)
	r.put(1, "a")
	r.put(2, "b")
	r.put(1, "c")
	r.put(3, "d")
	if _, ok := r.get(2); ok || r.last.Len() != 2 || len(r.byKey) != 2 {
		t.Errorf("2 is there: %t; %d values", ok, r.last.Len())
	}
	if v, _ := r.get(1); v != "c" {
		t.Errorf("1 is %q", v)
	}
	r.put(4, "e")
	if _, ok := r.get(3); ok {
		t.Error("3 is there, and 1 was used later")
	}
	r.drop(1)
	if _, ok := r.get(1); ok || r.last.Len() != 1 {
		t.Error("1 is there")
	}
}
