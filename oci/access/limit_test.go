package access

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spate-project/spate/oci/registry"
)

// passwords lets a user in whose password is its name.
type passwords struct{}

func (passwords) Allow(req *http.Request, _ string, action registry.Action) (string, error) {
	name, password, ok := req.BasicAuth()
	switch {
	case ok && name != password:
		return "", registry.ErrUnauthorized
	case !ok && action != registry.Pull:
		return "", registry.ErrUnauthorized
	}
	return name, nil
}

func ask(l *Limit, addr, user, password string) error {
	req := httptest.NewRequest(http.MethodGet, "/v2/", nil)
	req.RemoteAddr = addr + ":1234"
	if user != "" {
		req.SetBasicAuth(user, password)
	}
	_, err := l.Allow(req, "a", registry.Pull)
	return err
}

func tooMany(t *testing.T, err error) time.Duration {
	t.Helper()
	many, ok := errors.AsType[*registry.TooManyError](err)
	if !ok || many.After <= 0 {
		t.Fatalf("%v", err)
	}
	return many.After
}

// TestLimit: each user, and each address without one, has its own rate.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimit(passwords{}, 2)
		for range 2 * burst {
			if err := ask(l, "10.0.0.1", "alice", "alice"); err != nil {
				t.Fatal(err)
			}
		}
		if after := tooMany(t, ask(l, "10.0.0.2", "alice", "alice")); after > time.Second {
			t.Errorf("one more request after %v", after)
		}
		for _, err := range []error{ask(l, "10.0.0.1", "bob", "bob"), ask(l, "10.0.0.1", "", "")} {
			if err != nil {
				t.Error(err)
			}
		}
		for range 2*burst - 1 {
			ask(l, "10.0.0.1", "", "")
		}
		tooMany(t, ask(l, "10.0.0.1", "", ""))
		if err := ask(l, "10.0.0.3", "", ""); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		for range 2 {
			if err := ask(l, "10.0.0.1", "alice", "alice"); err != nil {
				t.Error(err)
			}
		}
		tooMany(t, ask(l, "10.0.0.1", "alice", "alice"))
		if err := ask(NewLimit(nil, 1), "10.0.0.1", "", ""); err != nil {
			t.Error(err)
		}
	})
}

// TestLimitLogins: an address that sends wrong passwords has to wait, also with a
// right one, and others do not.
func TestLimitLogins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimit(passwords{}, 0)
		for i := range tries {
			if err := ask(l, "10.0.0.1", "alice", fmt.Sprint(i)); !errors.Is(err, registry.ErrUnauthorized) {
				t.Fatal(err)
			}
		}
		tooMany(t, ask(l, "10.0.0.1", "alice", "alice"))
		for _, err := range []error{ask(l, "10.0.0.2", "alice", "alice"), ask(l, "10.0.0.1", "", "")} {
			if err != nil {
				t.Error(err)
			}
		}
		time.Sleep(tryAgain)
		if err := ask(l, "10.0.0.1", "alice", "alice"); err != nil {
			t.Error(err)
		}
		for range 1000 {
			if err := ask(l, "10.0.0.1", "alice", "alice"); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestLimitBounded: however many callers there are, few are known.
func TestLimitBounded(t *testing.T) {
	l := NewLimit(nil, 1)
	for i := range 2 * maxCallers {
		ask(l, fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), "", "")
	}
	if n := l.callers.Len() + l.failed.Len(); n > 2*maxCallers {
		t.Errorf("%d callers are known", n)
	}
}
