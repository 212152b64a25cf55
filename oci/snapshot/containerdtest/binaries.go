package containerdtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	containerdModule = "github.com/containerd/containerd/v2"
	containerdModern = "v2.4.2"
)

// Binaries are those of one version of containerd.
type Binaries struct {
	dir string // with containerd, ctr and the shim
	old bool   // 1.x
}

// Modern returns a containerd 2.4, which it builds from the Go module proxy where
// that was not done before. runc is Debian's.
func Modern(t testing.TB) Binaries {
	t.Helper()
	Package(t, "runc", "/usr/sbin/runc")
	return Binaries{dir: install(t, "containerd-"+containerdModern, containerdModule, containerdModern,
		"cmd/containerd", "cmd/ctr", "cmd/containerd-shim-runc-v2")}
}

// Distribution returns the containerd 1.6 or 1.7 that the distribution has, as Debian 12 does.
func Distribution(t testing.TB) Binaries {
	t.Helper()
	Package(t, "runc", "/usr/sbin/runc")
	dir := filepath.Join(unpacked(t, "containerd"), "usr", "bin")
	out, err := exec.Command(filepath.Join(dir, "containerd"), "--version").Output()
	if err != nil || !strings.Contains(string(out), " 1.") {
		t.Fatalf("%s/containerd --version: %q, %v; want 1.x", dir, out, err)
	}
	return Binaries{dir: dir, old: true}
}

// BusyBox returns a program that needs no library.
func BusyBox(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(Package(t, "busybox-static", "/bin/busybox"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// install builds commands of a module into a folder of their own in the user's
// cache, once, and returns it.
func install(t testing.TB, name, module, version string, commands ...string) string {
	t.Helper()
	defer lock(t, name)()
	dir := filepath.Join(cache(t), name)
	for _, command := range commands {
		if _, err := os.Stat(filepath.Join(dir, filepath.Base(command))); err == nil {
			continue
		}
		pkg := module + "/" + command + "@" + version
		t.Logf("building %s", pkg)
		cmd := exec.Command("go", "install", pkg)
		cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=-buildvcs=false")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", pkg, err, out)
		}
	}
	return dir
}
