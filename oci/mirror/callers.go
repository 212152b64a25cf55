package mirror

import (
	"container/list"
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"sync"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
)

// What callers holds at most of each, and how long an origin's word counts that it lets somebody in.
const (
	maxRealms  = 256
	maxTokens  = 1024
	maxEntries = 4096
	maxLogins  = 1024
	letInFor   = 5 * time.Minute
)

// callers is what the mirror knows of those who ask it: whom a repository let in,
// and by which login. A login counts for a repository once that has let in the
// caller who showed it, or the token that was got with it. It is in memory alone, and
// safe for concurrent use.
type callers struct {
	mu     sync.Mutex
	realms *recent[string, realm]          // token servers, by the last element of the path that stands for each
	tokens *recent[entry, auth.Credential] // who asked a registry, HOST, for a token
	let    *recent[entry, time.Time]       // when a repository, HOST/NAME, let a caller in last
	logins *recent[string, login]          // of the caller let in last, by repository
}

// An entry is what was shown where.
type entry struct {
	where string
	shown [sha256.Size]byte // of the Authorization field
}

// A login is how a caller got in.
type login struct {
	credential auth.Credential
	plain      bool // it went to the registry without TLS
}

func newCallers() *callers {
	return &callers{
		realms: newRecent[string, realm](maxRealms),
		tokens: newRecent[entry, auth.Credential](maxTokens),
		let:    newRecent[entry, time.Time](maxEntries),
		logins: newRecent[string, login](maxLogins),
	}
}

// shown is what c shows at where.
func (c caller) shown(where string) entry {
	return entry{where, sha256.Sum256([]byte(c.authorization))}
}

// issued notes that the token server of registry gave token for cred.
func (c *callers) issued(registry, token string, cred auth.Credential) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tokens.put(caller{authorization: "Bearer " + token}.shown(registry), cred)
}

// letIn notes that o answered with what only those get who may pull from it.
func (c *callers) letIn(o *origin) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.let.put(o.caller.shown(o.repository), time.Now())
	cred, ok := c.tokens.get(o.caller.shown(o.repo.Reference.Registry))
	if !ok {
		cred, ok = basicCredential(o.caller.authorization)
	}
	if ok {
		c.logins.put(o.repository, login{cred, o.repo.PlainHTTP})
	}
}

// basicCredential reads the user and the password of an Authorization field (RFC 7617).
func basicCredential(authorization string) (auth.Credential, bool) {
	req := http.Request{Header: http.Header{"Authorization": {authorization}}}
	user, password, ok := req.BasicAuth()
	return auth.Credential{Username: user, Password: password}, ok && user != "" && password != ""
}

// Credential returns what the caller has logged in with that the registry let in
// last to repository, HOST/NAME; ok is false when there was none since the start.
// What went to the registry through TLS is not for plain, a client without.
func (m *Mirror) Credential(repository string, plain bool) (cred auth.Credential, ok bool) {
	m.callers.mu.Lock()
	defer m.callers.mu.Unlock()
	l, ok := m.callers.logins.get(repository)
	if !ok || plain && !l.plain {
		return auth.EmptyCredential, false
	}
	return l.credential, true
}

// enter returns nil unless the mirror could answer by itself a caller whom o does
// not let in. Where o was not asked of late it is, for what rt names; while it is
// away its last word counts.
func (m *Mirror) enter(ctx context.Context, o *origin, rt route) error {
	accept := http.Header{}
	memory := m.admitted()
	if man := memory.get(o.repository, rt.digest); rt.what == manifests && man != nil {
		accept.Set("Accept", man.desc.MediaType)
	} else if listing, _ := memory.lister(o.repository, rt.digest, false); rt.what != blobs || listing == nil {
		return nil // the origin will be asked anyway
	}
	who := o.caller.shown(o.repository)
	m.callers.mu.Lock()
	last, known := m.callers.let.get(who)
	m.callers.mu.Unlock()
	if known && time.Since(last) < letInFor {
		return nil
	}
	resp, err := o.ask(ctx, http.MethodHead, rt.rest(), accept)
	if err == nil {
		return resp.Body.Close()
	}
	if !known || refuses(err) {
		m.callers.mu.Lock()
		m.callers.let.drop(who)
		m.callers.mu.Unlock()
		return err
	}
	return nil
}

// refuses reports whether err is an origin's answer about the request, not that it has no time for any.
func refuses(err error) bool {
	a := (*answered)(nil)
	return errors.As(err, &a) && a.status < http.StatusInternalServerError && a.status != http.StatusTooManyRequests
}

// A recent holds the values that were put or got last, most of them. It is for one goroutine at a time.
type recent[K comparable, V any] struct {
	most  int
	last  *list.List // of *kept[K, V], the one used last in front
	byKey map[K]*list.Element
}

type kept[K comparable, V any] struct {
	key   K
	value V
}

func newRecent[K comparable, V any](most int) *recent[K, V] {
	return &recent[K, V]{most: most, last: list.New(), byKey: make(map[K]*list.Element)}
}

func (r *recent[K, V]) get(k K) (v V, ok bool) {
	e, ok := r.byKey[k]
	if !ok {
		return v, false
	}
	r.last.MoveToFront(e)
	return e.Value.(*kept[K, V]).value, true
}

func (r *recent[K, V]) put(k K, v V) {
	r.drop(k)
	r.byKey[k] = r.last.PushFront(&kept[K, V]{k, v})
	if r.last.Len() > r.most {
		r.drop(r.last.Back().Value.(*kept[K, V]).key)
	}
}

func (r *recent[K, V]) drop(k K) {
	if e, ok := r.byKey[k]; ok {
		r.last.Remove(e)
		delete(r.byKey, k)
	}
}
