package mirror

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"oras.land/oras-go/v2/registry/remote/auth"
)

// tokenPath is where callers ask for tokens: below it is an element for each
// token server. noName is in a repository's place, which none can be called.
const (
	noName    = "_"
	tokenPath = "/v2/" + noName + "/" + tokens + "/"
)

var realmID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// A realm is a registry's token server, for which the mirror stands in so that it learns who asks.
type realm struct {
	registry string // HOST
	url      *url.URL
}

// bearerRealm finds the realm in a challenge for a token (RFC 6750).
var bearerRealm = regexp.MustCompile(`^((?i:bearer)\s+(?:[^"]*"[^"]*"\s*,\s*)*?realm=")([^"]+)`)

// standIn returns the challenge with the mirror in place of the token server, or
// as it is where no login may come this way: the caller's connection or the one to the token
// server could be overheard, or the token server is one of this machine's own services.
func (m *Mirror) standIn(req *http.Request, registry string, plain bool, challenge string) string {
	found := bearerRealm.FindStringSubmatch(challenge)
	local, _ := req.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if found == nil || req.TLS == nil && (local == nil || !isLoopback(local.String())) {
		return challenge
	}
	u, err := url.Parse(found[2])
	if err != nil || u.Scheme != "https" && !(plain && u.Scheme == "http") || u.User != nil {
		return challenge
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	if isLoopback(strings.ToLower(u.Host)) && !names(m.local, net.JoinHostPort(u.Hostname(), port)) {
		return challenge
	}
	scheme := "http://"
	if req.TLS != nil {
		scheme = "https://"
	}
	at := scheme + req.Host + tokenPath + m.callers.realm(realm{registry, u})
	return found[1] + at + challenge[len(found[0]):]
}

// realm returns the path element that stands for r.
func (c *callers) realm(r realm) string {
	sum := sha256.Sum256([]byte(r.registry + " " + r.url.String()))
	id := hex.EncodeToString(sum[:16])
	c.mu.Lock()
	defer c.mu.Unlock()
	c.realms.put(id, r)
	return id
}

// What is read of a request for a token and of its answer, in bytes.
const (
	maxTokenRequest = 64 << 10
	maxTokenAnswer  = 1 << 20
)

// getToken hands a caller's request for a token on to the token server (distribution-spec's
// "Token Authentication", by GET, and OAuth2 by POST), and notes who got one.
func (m *Mirror) getToken(w *recorder, req *http.Request, id string) error {
	if req.Method != http.MethodGet && req.Method != http.MethodPost {
		w.Header().Set("Allow", "GET, POST")
		return fail(http.StatusMethodNotAllowed, codeUnsupported, errors.New(req.Method+" is no way to ask for a token"))
	}
	m.callers.mu.Lock()
	r, ok := m.callers.realms.get(id)
	m.callers.mu.Unlock()
	if !ok {
		return fail(http.StatusNotFound, codeUnsupported, errors.New("no challenge of this mirror named that token server; pull again"))
	}
	doing := "ask for a token for " + r.registry
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxTokenRequest))
	if err != nil {
		return fail(http.StatusBadRequest, codeUnsupported, fmt.Errorf("%s: %w", doing, err))
	}
	target := *r.url
	query := target.Query()
	maps.Copy(query, req.URL.Query())
	target.RawQuery = query.Encode()
	out, err := http.NewRequestWithContext(req.Context(), req.Method, target.String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	for _, name := range []string{"Authorization", "Content-Type", "Accept"} {
		if v := req.Header.Values(name); len(v) > 0 {
			out.Header[name] = v
		}
	}
	out.Header.Set("User-Agent", "spate")
	client := &http.Client{Transport: m.transport, CheckRedirect: stay}
	resp, err := client.Do(out)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, reason(err))
	}
	if resp.StatusCode != http.StatusOK {
		return newAnswered(doing, resp)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenAnswer+1))
	var token struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if err == nil {
		err = json.Unmarshal(answer, &token)
	}
	if err != nil || len(answer) > maxTokenAnswer {
		return fmt.Errorf("%s: the token server's answer is broken", doing) // a JSON error may quote the token
	}
	if cred, ok := loginOf(req, body); ok {
		for _, t := range []string{token.Token, token.AccessToken} {
			if t != "" {
				m.callers.issued(r.registry, t, cred)
			}
		}
	}
	maps.Copy(w.Header(), passable(resp.Header))
	w.Header().Set("Cache-Control", "no-store")
	_, err = w.Write(answer)
	return err
}

// loginOf returns who asks for a token; ok is false for nobody in particular.
func loginOf(req *http.Request, body []byte) (auth.Credential, bool) {
	if cred, ok := basicCredential(req.Header.Get("Authorization")); ok {
		return cred, true
	}
	form, err := url.ParseQuery(string(body))
	if err != nil || req.Method != http.MethodPost {
		return auth.EmptyCredential, false
	}
	cred := auth.Credential{Username: form.Get("username"), Password: form.Get("password"), RefreshToken: form.Get("refresh_token")}
	return cred, cred.RefreshToken != "" || cred.Username != "" && cred.Password != ""
}

// stay follows redirects within the token server only: a login is for nobody else.
func stay(req *http.Request, via []*http.Request) error {
	if req.URL.Host != via[0].URL.Host || req.URL.Scheme != via[0].URL.Scheme {
		return errors.New("the token server redirects to another host, which gets no login")
	}
	return checkRedirect(req, via)
}
