package remote

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
)

// loginFiles returns a lookup in what docker login and podman login write, and
// in the helpers that these files name. Files are read at the first lookup.
func loginFiles() auth.CredentialFunc {
	open := sync.OnceValues(openLoginFiles)
	return func(ctx context.Context, host string) (auth.Credential, error) {
		stores, err := open()
		if err != nil {
			return auth.EmptyCredential, fmt.Errorf("read the credentials for %s: %w", host, err)
		}
		for _, store := range stores {
			cred, err := store.Get(ctx, credentials.ServerAddressFromHostname(host))
			if err != nil {
				return auth.EmptyCredential, fmt.Errorf("read the credentials for %s from %s: %w", host, store.ConfigPath(), lookupError(err))
			}
			if cred != auth.EmptyCredential {
				return cred, nil
			}
		}
		return auth.EmptyCredential, nil
	}
}

// lookupError keeps what may be told of a failed lookup. The text of any other
// error may quote the entry or what a helper printed, that is, the credential.
func lookupError(err error) error {
	if helper := (*exec.Error)(nil); errors.As(err, &helper) {
		return helper
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return errors.New("the entry is broken or its helper failed; log in again")
}

// openLoginFiles opens the files that there are, in the order in which podman and skopeo ask them.
func openLoginFiles() ([]*credentials.DynamicStore, error) {
	var stores []*credentials.DynamicStore
	for _, path := range loginPaths() {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			continue
		}
		store, err := credentials.NewStore(path, credentials.StoreOptions{})
		if err != nil {
			return nil, err
		}
		stores = append(stores, store)
	}
	return stores, nil
}

func loginPaths() []string {
	var paths []string
	add := func(dir string, names ...string) {
		if dir != "" {
			paths = append(paths, filepath.Join(append([]string{dir}, names...)...))
		}
	}
	home, _ := os.UserHomeDir() // empty for a service without a home
	add(os.Getenv("REGISTRY_AUTH_FILE"))
	add(os.Getenv("XDG_RUNTIME_DIR"), "containers", "auth.json")
	if config, err := os.UserConfigDir(); err == nil {
		add(config, "containers", "auth.json")
	}
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		add(dir, "config.json")
	} else {
		add(home, ".docker", "config.json")
	}
	return paths
}
