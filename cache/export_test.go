package cache

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func testExport(t *testing.T, dir string) {
	data := content(1, 5*small+77)
	o := openObject(t, openStore(t, filepath.Join(dir, "cache"), Options{}), treeOf(t, data, small), nil)
	out := filepath.Join(dir, "out")
	if err := os.Mkdir(out, 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(out)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := root.WriteFile("old", []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	put(t, o, data, 0)
	if err := o.Export(t.Context(), root, "old", 0o640); err == nil || !strings.Contains(err.Error(), "1 of 6 pieces") {
		t.Errorf("an object with gaps was exported: %v", err)
	}
	putAll(t, o, data)
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if err := o.Export(stopped, root, "old", 0o640); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped export: %v", err)
	}
	if got, _ := root.ReadFile("old"); string(got) != "before" {
		t.Error("a failed export changed the file")
	}
	long := strings.Repeat("n", 255)
	for _, name := range []string{"old", "new", "a/b/c", "a/b/" + long} {
		if err := o.Export(t.Context(), root, name, 0o640); err != nil {
			t.Fatal(err)
		}
		if got, err := root.ReadFile(name); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: exported other bytes: %v", name, err)
		}
		if info, err := root.Stat(name); err != nil || info.Mode() != 0o640 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if err := root.WriteFile("old", bytes.Repeat([]byte{1}, len(data)), 0); err != nil {
		t.Fatal(err)
	}
	readAll(t, o, data)
	noPartsIn(t, root)
	testExportStaysInside(t, o, root)

	o.Close()
	if err := o.Export(t.Context(), root, "new", 0o640); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("export of a closed object: %v", err)
	}
}

// testExportStaysInside plants what would lead out of root.
func testExportStaysInside(t *testing.T, o *Object, root *os.Root) {
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	if err := os.WriteFile(victim, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"dir": outside, "dangling": filepath.Join(outside, "none"), "file": victim} {
		if err := root.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"dir/victim", "dir/new", "dir/sub/new", "dangling/new", "../out2", "/etc/spate-test", ".", "", "a/../../x"} {
		if err := o.Export(t.Context(), root, name, 0o640); err == nil {
			t.Errorf("exported to %q", name)
		}
	}
	if err := o.Export(t.Context(), root, "file", 0o640); err != nil { // the link is replaced, not followed
		t.Error(err)
	}
	if info, err := root.Lstat("file"); err != nil || !info.Mode().IsRegular() {
		t.Errorf("the link is still there: %v", err)
	}
	if got, err := os.ReadFile(victim); err != nil || string(got) != "before" {
		t.Errorf("a file outside was changed: %v", err)
	}
	if names, err := os.ReadDir(outside); err != nil || len(names) != 1 {
		t.Errorf("outside there are %v, %v", names, err)
	}
	if err := root.Mkdir("taken", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := o.Export(t.Context(), root, "taken", 0o640); err == nil {
		t.Error("a directory was replaced")
	}
	noPartsIn(t, root)
}

func noPartsIn(t *testing.T, root *os.Root) {
	t.Helper()
	err := fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && name != "." && strings.HasPrefix(d.Name(), ".") {
			t.Errorf("left behind: %s", name)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
