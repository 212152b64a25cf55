package containerdtest

import (
	"fmt"
	"os"
	"path/filepath"
)

// Mirror has what CRI pulls from now on come by way of the mirror at url, from every registry.
func (c *Containerd) Mirror(url string) {
	c.t.Helper()
	dir := filepath.Join(c.dir, "certs.d", "_default")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		c.t.Fatal(err)
	}
	toml := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", url, url)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o600); err != nil {
		c.t.Fatal(err)
	}
}
