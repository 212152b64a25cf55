package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestTree(t *testing.T) {
	a := (&origin{data: content(1, 1000)}).open(t, patient)
	b := (&origin{data: nil}).open(t, patient)
	when := time.Unix(1700000000, 5e8)
	entries := []Entry{
		{Path: "config.json", Mode: 0o644, ModTime: when, File: a.into},
		{Path: "bin/run.sh", Mode: 0o755, File: a.into},
		{Path: "-first", File: b.into},
		{Path: "bin/deep/er/x", Mode: 0o400, File: b.into},
	}
	for i := range 3000 { // more than one reply lists
		entries = append(entries, Entry{Path: fmt.Sprintf("many/file-%04d-%s", i, strings.Repeat("x", 40)), File: b.into})
	}
	m := mountAt(t, Options{}, entries...)

	got := map[string]string{}
	if err := fs.WalkDir(os.DirFS(m.dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		got[path] = info.Mode().String()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]string{
		".": "dr-xr-xr-x", "bin": "dr-xr-xr-x", "bin/deep/er": "dr-xr-xr-x", "config.json": "-r--r--r--",
		"bin/run.sh": "-r-xr-xr-x", "-first": "-r--r--r--", "bin/deep/er/x": "-r--------",
	} {
		if got[path] != mode {
			t.Errorf("%s has mode %q, want %q", path, got[path], mode)
		}
	}
	if want := 3000 + 9; len(got) != want {
		t.Errorf("%d names are listed, want %d", len(got), want)
	}
	info, err := os.Stat(m.path("config.json"))
	if err != nil || info.Size() != 1000 || !info.ModTime().Equal(when) {
		t.Errorf("config.json: %v, %v", info, err)
	}
	for _, name := range []string{"nothing", "bin/nothing", "config.json/x", strings.Repeat("x", 256)} {
		for range 2 {
			if _, err := os.Stat(m.path(name)); err == nil {
				t.Errorf("%s is there", name)
			}
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(m.dir, &st); err != nil || st.Bavail != 0 || st.Namelen != 255 {
		t.Errorf("statfs: %+v, %v", st, err)
	}
	if _, err := unix.Getxattr(m.path("config.json"), "user.x", make([]byte, 9)); err != unix.ENODATA {
		t.Errorf("getxattr: %v", err)
	}
	if n, err := unix.Listxattr(m.path("config.json"), make([]byte, 9)); n != 0 || err != nil {
		t.Errorf("listxattr: %d, %v", n, err)
	}
	for name, err := range map[string]error{
		"create": os.WriteFile(m.path("new"), nil, 0o600), "write": os.WriteFile(m.path("config.json"), nil, 0),
		"mkdir": os.Mkdir(m.path("dir"), 0o700), "remove": os.Remove(m.path("config.json")),
		"rename": os.Rename(m.path("config.json"), m.path("x")), "chmod": os.Chmod(m.path("config.json"), 0o600),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", name, err)
		}
	}

	// A successor that knows the same paths gives them the same numbers.
	rand.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
	again, err := New(entries, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range again.nodes {
		if m.nodes[i].path != n.path || m.nodes[i].ino != n.ino {
			t.Fatalf("inode %d is %q, was %q", n.ino, n.path, m.nodes[i].path)
		}
	}
	if again.nodes[0].path != "" {
		t.Error("the root is not inode 1")
	}
}

func TestNewRefuses(t *testing.T) {
	f := (&origin{data: nil}).open(t, patient).into
	for name, entries := range map[string][]Entry{
		"absolute":            {{Path: "/a", File: f}},
		"outside":             {{Path: "../a", File: f}},
		"within":              {{Path: "a/../b", File: f}},
		"root":                {{Path: ".", File: f}},
		"empty":               {{Path: "", File: f}},
		"nul":                 {{Path: "a\x00b", File: f}},
		"twice":               {{Path: "a", File: f}, {Path: "a", File: f}},
		"file then directory": {{Path: "a", File: f}, {Path: "a/b", File: f}},
		"directory then file": {{Path: "a/b", File: f}, {Path: "a", File: f}},
		"long":                {{Path: strings.Repeat("n", 256), File: f}},
		"no file":             {{Path: "a"}},
	} {
		if _, err := New(entries, Options{}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
