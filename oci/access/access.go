// Package access decides who may do what in the repositories of a registry:
// users of an htpasswd file, by rules.
package access

import (
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/spate-project/spate/oci/registry"
)

// Options say where users and rules are. Both files are read again when they
// change; one that then cannot be read is logged, and what it said before holds.
type Options struct {
	// Htpasswd is a file of lines USER:HASH, as `htpasswd -B` makes them.
	Htpasswd string

	// Rules is a YAML file, see ParseRules. Without one every user may do
	// everything, and nobody else anything.
	Rules string

	// Logger gets what is wrong with a changed file. Nil discards it.
	Logger *slog.Logger
}

// reread is how often files are looked at for changes, at most.
const reread = time.Second

// An Access is a registry.Access, safe for concurrent use.
type Access struct {
	log   *slog.Logger
	users *users
	rules Rules

	mu      sync.Mutex
	looked  time.Time
	sources []*source
}

// New reads the files.
func New(opts Options) (*Access, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Access{log: opts.Logger, users: newUsers(), rules: allUsers}
	a.sources = append(a.sources, &source{path: opts.Htpasswd, take: func(b []byte) error {
		hashes, err := parseHtpasswd(b)
		if err == nil {
			a.users.replace(hashes)
		}
		return err
	}})
	if opts.Rules != "" {
		a.sources = append(a.sources, &source{path: opts.Rules, take: func(b []byte) error {
			rules, err := ParseRules(b)
			if err == nil {
				a.rules = rules
			}
			return err
		}})
	}
	for _, s := range a.sources {
		if _, err := s.read(); err != nil {
			return nil, fmt.Errorf("read who may use the registry: %w", err)
		}
	}
	return a, nil
}

// current returns the rules, read again where their file changed.
func (a *Access) current() Rules {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.looked) < reread {
		return a.rules
	}
	for _, s := range a.sources {
		switch changed, err := s.read(); {
		case err != nil:
			a.log.Error("who may use the registry stays as it was: the changed file cannot be read", "err", err)
		case changed:
			a.log.Info("who may use the registry was read again", "path", s.path)
		}
	}
	a.looked = time.Now()
	return a.rules
}

// Allow says who sends a request, and whether they may do action in repo; an
// empty repo is the registry as such, which whoever may do anything may ask for.
// Errors are registry.ErrUnauthorized, also for a wrong password, and
// registry.ErrDenied.
func (a *Access) Allow(req *http.Request, repo string, action registry.Action) (user string, err error) {
	rules := a.current()
	name, password, ok := req.BasicAuth()
	if ok {
		if err := a.users.check(req.Context(), name, password); err != nil {
			return "", err
		}
		user = name
	}
	switch {
	case rules.allow(user, repo, action):
		return user, nil
	case user == "":
		return "", registry.ErrUnauthorized
	}
	return user, fmt.Errorf("%s may not %s in %s: %w", user, action, repo, registry.ErrDenied)
}
