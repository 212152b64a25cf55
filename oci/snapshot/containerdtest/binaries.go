package containerdtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const (
	containerdModule = "github.com/containerd/containerd/v2"
	containerdModern = "v2.4.2"
	runcModule       = "github.com/opencontainers/runc"
	runcVersion      = "v1.5.2"
)

// Binaries are those of one version of containerd.
type Binaries struct {
	dir string // with containerd, ctr and the shim
	old bool   // 1.x
}

// Modern returns a containerd 2.4, which it builds from the Go module proxy where
// that was not done before.
func Modern(t testing.TB) Binaries {
	t.Helper()
	dir := install(t, "containerd-"+containerdModern, containerdModule+"@"+containerdModern,
		"cmd/containerd", "cmd/ctr", "cmd/containerd-shim-runc-v2")
	if _, err := exec.LookPath("runc"); err != nil {
		// Beside containerd, which looks there first.
		runc := filepath.Join(install(t, "runc-"+runcVersion, runcModule+"@"+runcVersion, ""), "runc")
		if err := os.Symlink(runc, filepath.Join(dir, "runc")); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	return Binaries{dir: dir}
}

// Distribution returns the containerd 1.6 or 1.7 that the distribution has, as Debian 12 does.
func Distribution(t testing.TB) Binaries {
	t.Helper()
	name, err := exec.LookPath("containerd")
	if err != nil {
		t.Fatalf("%v; apt-get install containerd", err)
	}
	out, err := exec.Command(name, "--version").Output()
	if err != nil || !strings.Contains(string(out), " 1.") {
		t.Fatalf("%s --version: %q, %v; want 1.x", name, out, err)
	}
	return Binaries{dir: filepath.Dir(name), old: true}
}

// install builds commands of a module into a folder of their own in the user's
// cache, once, and returns it.
func install(t testing.TB, name, module string, commands ...string) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "spate-tests", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// Tests of several packages run at once.
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	path, version, _ := strings.Cut(module, "@")
	for _, command := range commands {
		pkg := filepath.Join(path, command)
		if _, err := os.Stat(filepath.Join(dir, filepath.Base(pkg))); err == nil {
			continue
		}
		t.Logf("building %s %s", pkg, version)
		cmd := exec.Command("go", "install", pkg+"@"+version)
		cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=-buildvcs=false")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s %s: %v\n%s", pkg, version, err, out)
		}
	}
	return dir
}
