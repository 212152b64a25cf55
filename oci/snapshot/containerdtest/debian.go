package containerdtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// Package returns path, which the Debian package holds: the package is installed
// where it is missing. It is for packages that start nothing.
func Package(t testing.TB, name, path string) string {
	t.Helper()
	defer lock(t, "apt")()
	if _, err := os.Stat(path); err == nil {
		return path
	}
	t.Logf("installing %s", name)
	apt(t, "", "update", "-qq")
	apt(t, "", "install", "-y", "-qq", "--no-install-recommends", name)
	return path
}

// unpacked returns a folder with what is in a Debian package, which is not
// installed: nothing of it starts.
func unpacked(t testing.TB, name string) string {
	t.Helper()
	defer lock(t, "apt")()
	dir := filepath.Join(cache(t), name)
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	tmp, err := os.MkdirTemp(cache(t), name+"-*")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(tmp)
	t.Logf("downloading %s", name)
	apt(t, tmp, "update", "-qq")
	apt(t, tmp, "download", "-qq", name)
	debs, _ := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if len(debs) != 1 {
		t.Fatalf("apt-get download %s left %v", name, debs)
	}
	root := filepath.Join(tmp, "root")
	if out, err := exec.Command("dpkg-deb", "-x", debs[0], root).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb -x %s: %v\n%s", debs[0], err, out)
	}
	if err := os.Rename(root, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func apt(t testing.TB, dir string, args ...string) {
	t.Helper()
	// As root in a folder that apt's own user may not read, it says so and goes on.
	cmd := exec.Command("apt-get", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

// cache returns the folder in the user's cache where things are kept for the next run.
func cache(t testing.TB) string {
	t.Helper()
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(dir, "spate-tests")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// lock keeps other tests from what the caller does, those of other packages
// too, until the function that it returns is called.
func lock(t testing.TB, name string) (unlock func()) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(cache(t), name+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return func() { f.Close() }
}
