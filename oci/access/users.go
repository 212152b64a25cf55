package access

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/spate-project/spate/oci/registry"
)

const (
	// loginCached is how long a right password counts without hashing it again,
	// which takes tens of milliseconds; clients send it with every request.
	loginCached = 5 * time.Minute

	maxCached = 4096
	maxUsers  = 65536
)

// parseHtpasswd reads lines USER:HASH, with bcrypt's hashes alone. Empty lines
// and those that begin with # are passed over.
func parseHtpasswd(b []byte) (map[string][]byte, error) {
	hashes := map[string][]byte{}
	n := 0
	for line := range bytes.Lines(b) {
		n++
		text := strings.TrimSpace(string(line))
		if text == "" || text[0] == '#' {
			continue
		}
		user, hash, ok := strings.Cut(text, ":")
		if !ok || user == "" {
			return nil, fmt.Errorf("line %d is not USER:HASH", n)
		}
		if _, err := bcrypt.Cost([]byte(hash)); err != nil {
			return nil, fmt.Errorf("line %d: the password of %s is not hashed by bcrypt; make it with `htpasswd -B`", n, user)
		}
		if _, again := hashes[user]; again {
			return nil, fmt.Errorf("line %d: %s is listed twice", n, user)
		}
		if hashes[user] = []byte(hash); len(hashes) > maxUsers {
			return nil, fmt.Errorf("more than %d users", maxUsers)
		}
	}
	return hashes, nil
}

// users are names with the hashes of their passwords.
type users struct {
	busy  chan struct{} // bounds what wrong passwords cost
	never []byte        // what nobody's password has, for names that there are not

	mu     sync.Mutex
	hashes map[string][]byte
	cached map[[sha256.Size]byte]time.Time // until when a login counts
}

func newUsers() *users {
	never, err := bcrypt.GenerateFromPassword([]byte("nobody"), bcrypt.DefaultCost)
	if err != nil {
		panic(err) // only for a cost or a password that is out of bounds
	}
	return &users{busy: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)), never: never}
}

func (u *users) replace(hashes map[string][]byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.hashes, u.cached = hashes, map[[sha256.Size]byte]time.Time{}
}

// check returns registry.ErrUnauthorized unless the password is that of name. It
// waits for its turn as long as ctx.
func (u *users) check(ctx context.Context, name, password string) error {
	key := sha256.Sum256(fmt.Appendf(nil, "%d:%s%s", len(name), name, password))
	u.mu.Lock()
	hash, known := u.hashes[name]
	cached := time.Now().Before(u.cached[key])
	u.mu.Unlock()
	if cached {
		return nil
	}
	if !known {
		hash = u.never // takes as long, so that names cannot be guessed
	}
	select {
	case u.busy <- struct{}{}:
		defer func() { <-u.busy }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := bcrypt.CompareHashAndPassword(hash, []byte(password)); err != nil || !known {
		return fmt.Errorf("the user or the password is wrong: %w", registry.ErrUnauthorized)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if !bytes.Equal(u.hashes[name], hash) {
		return registry.ErrUnauthorized // it was changed meanwhile
	}
	if len(u.cached) >= maxCached {
		clear(u.cached)
	}
	u.cached[key] = time.Now().Add(loginCached)
	return nil
}
