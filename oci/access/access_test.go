package access

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/crypto/bcrypt"

	"github.com/spate-project/spate/oci/registry"
)

// htpasswd returns a file's text; each user's password is the name with a 1.
func htpasswd(t testing.TB, users ...string) string {
	t.Helper()
	var b strings.Builder
	for _, u := range users {
		hash, err := bcrypt.GenerateFromPassword([]byte(u+"1"), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s:%s\n", u, hash)
	}
	return b.String()
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A site is a registry with users and rules.
type site struct {
	t            *testing.T
	url          string
	users, rules string // files
	access       *Access
	log, audit   lines
}

// lines collects what is logged.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const rules = `
rules:
- repositories: [public/**]
  users: [anonymous]
  actions: [pull]
- repositories: ["team/*"]
  users: [alice]
  actions: [pull, push]
- repositories: ["**"]
  users: [root]
  actions: [pull, push, delete]
`

func newSite(t *testing.T, rules string) *site {
	t.Helper()
	dir := t.TempDir()
	s := &site{t: t, users: filepath.Join(dir, "users")}
	write(t, s.users, htpasswd(t, "alice", "bob", "root"))
	if rules != "" {
		s.rules = filepath.Join(dir, "rules")
		write(t, s.rules, rules)
	}
	var err error
	if s.access, err = New(Options{Htpasswd: s.users, Rules: s.rules, Logger: slog.New(slog.NewTextHandler(&s.log, nil))}); err != nil {
		t.Fatal(err)
	}
	reg, err := registry.Open(filepath.Join(dir, "store"), registry.Options{Access: s.access, Audit: slog.New(slog.NewJSONHandler(&s.audit, nil))})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(reg)
	t.Cleanup(func() {
		srv.Close()
		if err := reg.Close(); err != nil {
			t.Error(err)
		}
	})
	s.url = srv.URL
	return s
}

// do sends a request as a user, empty for nobody.
func (s *site) do(user, method, path string, body []byte) *http.Response {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if user != "" {
		name, password, wrong := strings.Cut(user, ":")
		if !wrong {
			password = name + "1"
		}
		req.SetBasicAuth(name, password)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	return resp
}

func (s *site) want(status int, user, method, path string, body []byte) *http.Response {
	s.t.Helper()
	resp := s.do(user, method, path, body)
	if resp.StatusCode != status {
		s.t.Errorf("%s %s as %q: %s, want %d", method, path, user, resp.Status, status)
	}
	return resp
}

// push pushes a blob as root.
func (s *site) push(repo string, blob []byte) digest.Digest {
	s.t.Helper()
	d := digest.FromBytes(blob)
	s.want(201, "root", "POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), blob)
	return d
}

// TestAccess goes through who may do what, on each kind of path.
func TestAccess(t *testing.T) {
	s := newSite(t, rules)
	blob := []byte("bytes")
	d := s.push("public/a/b", blob)
	s.push("team/app", blob)
	s.push("team/app/deep", blob)
	s.push("secret", blob)
	at := func(repo string) string { return "/v2/" + repo + "/blobs/" + d.String() }
	for _, c := range []struct {
		status             int
		user, method, path string
	}{
		{200, "", "GET", "/v2/"},
		{200, "bob", "GET", "/v2/"},
		{401, "bob:wrong", "GET", "/v2/"},
		{401, "nobody:x", "GET", "/v2/"},
		{200, "", "GET", at("public/a/b")},
		{200, "bob", "GET", at("public/a/b")},
		{401, "", "GET", at("public")},
		{401, "bob:wrong", "GET", at("public/a/b")},
		{401, "", "POST", "/v2/public/a/blobs/uploads/"},
		{403, "bob", "POST", "/v2/public/a/blobs/uploads/"},
		{401, "", "DELETE", at("public/a/b")},
		{200, "alice", "HEAD", at("team/app")},
		{202, "alice", "POST", "/v2/team/app/blobs/uploads/"},
		{403, "alice", "DELETE", at("team/app")},
		{403, "alice", "GET", at("team/app/deep")},
		{403, "bob", "GET", at("team/app")},
		{403, "alice", "GET", at("secret")},
		{403, "alice", "GET", at("nowhere")}, // nobody learns what there is
		{403, "alice", "GET", "/v2/secret/tags/list"},
		{403, "alice", "GET", "/v2/secret/referrers/" + d.String()},
		{403, "alice", "PUT", "/v2/secret/manifests/v1"},
		{403, "alice", "GET", "/v2/secret/blobs/uploads/x"},
		{403, "alice", "PATCH", "/v2/secret/blobs/uploads/x"},
		{202, "root", "DELETE", at("secret")},
	} {
		resp := s.want(c.status, c.user, c.method, c.path, nil)
		if challenge := resp.Header.Get("WWW-Authenticate"); (challenge != "") != (c.status == 401) {
			t.Errorf("%s %s as %q: WWW-Authenticate %q", c.method, c.path, c.user, challenge)
		}
	}

	// Who knows a digest has no right to it: it is not mounted, but has to be uploaded.
	s.push("secret", blob)
	s.want(202, "alice", "POST", "/v2/team/app2/blobs/uploads/?mount="+d.String()+"&from=secret", nil)
	s.want(201, "alice", "POST", "/v2/team/app2/blobs/uploads/?mount="+d.String()+"&from=team/app", nil)

	// The audit log says who was refused what, and no password.
	if log := s.audit.String(); strings.Contains(log, "alice1") || strings.Contains(log, "wrong") || strings.Contains(log, "Basic") {
		t.Errorf("a credential is in the log: %s", log)
	}
	refused, pushed := 0, 0
	for line := range strings.Lines(s.audit.String()) {
		var e struct {
			User, Action, Repository, Digest string
			Status                           int
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if e.User == "alice" && e.Action == "delete" && e.Repository == "team/app" && e.Status == 403 && e.Digest == d.String() {
			refused++
		}
		if e.User == "root" && e.Action == "push" && e.Status == 201 && e.Digest == d.String() {
			pushed++
		}
	}
	if refused != 1 || pushed != 5 {
		t.Errorf("%d refusals and %d pushes in %s", refused, pushed, s.audit.String())
	}
}

// TestUsersAlone lets every user do everything, and nobody else anything.
func TestUsersAlone(t *testing.T) {
	s := newSite(t, "")
	d := s.push("r", []byte("bytes"))
	s.want(401, "", "GET", "/v2/", nil)
	s.want(401, "", "GET", "/v2/r/blobs/"+d.String(), nil)
	s.want(200, "bob", "GET", "/v2/r/blobs/"+d.String(), nil)
	s.want(202, "bob", "DELETE", "/v2/r/blobs/"+d.String(), nil)
}

// again lets the files be looked at without waiting.
func (s *site) again() {
	s.access.mu.Lock()
	defer s.access.mu.Unlock()
	s.access.looked = time.Time{}
}

// TestReread takes changed files up, and keeps what it has when they are broken.
func TestReread(t *testing.T) {
	s := newSite(t, rules)
	s.want(200, "alice", "GET", "/v2/", nil)
	write(t, s.users, htpasswd(t, "bob", "carol", "root"))
	s.again()
	s.want(401, "alice", "GET", "/v2/", nil) // a login that was right counts no more
	s.want(200, "carol", "GET", "/v2/", nil)
	s.want(403, "carol", "GET", "/v2/x/tags/list", nil)
	write(t, s.rules, strings.ReplaceAll(rules, "root", "carol"))
	s.again()
	s.want(404, "carol", "GET", "/v2/x/tags/list", nil)
	for _, broken := range []string{"", "rules: [", "rules:\n- users: [x]\n"} {
		write(t, s.rules, broken)
		s.again()
		s.want(404, "carol", "GET", "/v2/x/tags/list", nil)
		if !strings.Contains(s.log.String(), "cannot be read") {
			t.Errorf("nothing is said of %q", broken)
		}
	}
	if err := os.Remove(s.users); err != nil {
		t.Fatal(err)
	}
	s.again()
	s.want(200, "carol", "GET", "/v2/", nil)
}

func TestNew(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good"), filepath.Join(dir, "bad")
	write(t, good, htpasswd(t, "alice"))
	for text, part := range map[string]string{
		"alice":                       "line 1 is not USER:HASH",
		"\n# x\n:x":                   "line 3 is not",
		"alice:{SHA}x":                "htpasswd -B",
		htpasswd(t, "alice", "alice"): "listed twice",
	} {
		write(t, bad, text)
		if _, err := New(Options{Htpasswd: bad}); err == nil || !strings.Contains(err.Error(), part) || !strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v, want %q", text, err, part)
		}
	}
	for text, part := range map[string]string{
		"": "no rules",
		"rules:\n- repositories: [a]\n  users: [b]\n":                       "rule 1: it names no actions",
		"rules:\n- repositories: [a]\n  actions: [pull]\n":                  "no users",
		"rules:\n- users: [b]\n  actions: [pull]\n":                         "no repositories",
		"rules:\n- repositories: [a]\n  users: [b]\n  actions: [fly]\n":     `"fly" is no action`,
		"rules:\n- repositories: [a/**/b]\n  users: [b]\n  actions: [pull]": "no pattern",
		"rules:\n- repositories: ['[']\n  users: [b]\n  actions: [pull]":    "no pattern",
		"rules:\n- repository: a\n":                                         "repository",
	} {
		write(t, bad, text)
		if _, err := New(Options{Htpasswd: good, Rules: bad}); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q: %v, want %q", text, err, part)
		}
	}
	if _, err := New(Options{Htpasswd: filepath.Join(dir, "none")}); err == nil {
		t.Error("a missing file is no error")
	}
}

func FuzzParseRules(f *testing.F) {
	f.Add([]byte(rules))
	f.Add([]byte("rules: [{repositories: ['**'], users: ['*'], actions: [pull]}]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRules(b)
		if err == nil && len(r) == 0 {
			t.Error("no rules and no error")
		}
		for _, repo := range []string{"", "a", "a/b/c"} {
			r.allow("alice", repo, registry.Pull)
		}
	})
}

func FuzzParseHtpasswd(f *testing.F) {
	f.Add([]byte(htpasswd(f, "alice", "bob")))
	f.Add([]byte("a:$2y$\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		hashes, err := parseHtpasswd(b)
		if err != nil {
			return
		}
		for user := range hashes {
			if user == "" || strings.ContainsAny(user, ":\n") {
				t.Errorf("user %q", user)
			}
		}
	})
}
