// Package remotetest is what tests put before a registry to have it ask who comes in.
package remotetest

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// A Door lets those into a registry who have a login, by tokens (distribution-spec,
// "Token Authentication") of a token server of its own, at /token on the registry's
// address, which takes GET and POST. It is safe for concurrent use.
type Door struct {
	mu     sync.Mutex
	logins map[string]string
	valid  []string
	issued []string
}

// NewDoor returns a door for the users of logins, each with a password.
func NewDoor(logins map[string]string) *Door { return &Door{logins: logins} }

// Wrap returns next behind the door.
func (d *Door) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/token" {
			d.issue(w, req)
			return
		}
		token, _ := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
		d.mu.Lock()
		valid := slices.Contains(d.valid, token)
		d.mu.Unlock()
		if !valid {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="door"`, req.Host))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, req)
	})
}

func (d *Door) issue(w http.ResponseWriter, req *http.Request) {
	user, password, _ := req.BasicAuth()
	if req.Method == http.MethodPost {
		user, password = req.PostFormValue("username"), req.PostFormValue("password")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if password == "" || d.logins[user] != password {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	token := rand.Text()
	d.valid, d.issued = append(d.valid, token), append(d.issued, token)
	_ = json.NewEncoder(w).Encode(map[string]string{"access_token": token})
}

// Expire ends all tokens.
func (d *Door) Expire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.valid = nil
}

// Change gives user another password. Tokens stay.
func (d *Door) Change(user, password string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.logins[user] = password
}

// Issued returns all tokens that there were.
func (d *Door) Issued() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.issued)
}
