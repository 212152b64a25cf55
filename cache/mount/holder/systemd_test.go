package holder

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A manager does what systemd does with FDSTORE=1.
type manager struct {
	conn *net.UnixConn
	kept chan []managedFile // the state, held while it changes
}

type managedFile struct {
	name string
	file *os.File
}

func startManager(t *testing.T) *manager {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", socket)
	m := &manager{conn: conn, kept: make(chan []managedFile, 1)}
	m.kept <- nil
	go m.run()
	return m
}

func (m *manager) run() {
	for {
		msg, err := receive(m.conn)
		if err != nil {
			return
		}
		kept := <-m.kept
		lines := strings.Split(string(msg.kind)+msg.text, "\n")
		_, name, _ := strings.Cut(lines[len(lines)-1], "FDNAME=")
		switch lines[0] {
		case "FDSTORE=1":
			kept = append(kept, managedFile{name, msg.files[0]})
		case "FDSTOREREMOVE=1":
			kept = slices.DeleteFunc(kept, func(f managedFile) bool { return f.name == name })
		case "BARRIER=1":
			closeAll(msg.files)
		}
		m.kept <- kept
	}
}

// restart starts the service again, with everything in the opposite order.
func (m *manager) restart(t *testing.T) string {
	t.Helper()
	kept := <-m.kept
	m.kept <- kept
	var names []string
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, self(), "restarted")
	for _, f := range slices.Backward(kept) {
		names = append(names, f.name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, f.file)
	}
	cmd.Env = append(os.Environ(), "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	return string(bytes.TrimSpace(out))
}

func TestSystemd(t *testing.T) {
	t.Setenv("FDSTORE", "20")
	m := startManager(t)
	s, err := Open("unused")
	if err != nil {
		t.Fatal(err)
	}
	testStore(t, s)
	if err := errors.Join(s.Drop("many"), s.Drop(strings.Repeat("x", maxName))); err != nil {
		t.Error(err)
	}
	if err := s.Put("m.1", newFile(t, "x"), newFile(t, "y")); err != nil {
		t.Fatal(err)
	}
	if got := m.restart(t); got != "m.1 x y\none b" {
		t.Errorf("after a restart: %q", got)
	}
	kept := <-m.kept
	m.kept <- slices.DeleteFunc(kept, func(f managedFile) bool { return f.name == part("m.1", 1) })
	if got := m.restart(t); got != "m.1 x\none b" {
		t.Errorf("after a Put that was cut short: %q", got)
	}
	one := newFile(t, "1")
	if err := errors.Join(s.Put("a", slices.Repeat([]*os.File{one}, 8)...), s.Put("b", slices.Repeat([]*os.File{one}, 8)...)); err != nil {
		t.Fatal(err)
	}
	if err := s.Put("c", one, one); err == nil || !strings.Contains(err.Error(), "FileDescriptorStoreMax") {
		t.Errorf("a full store: %v", err)
	}
}

func TestNoSystemd(t *testing.T) {
	for _, env := range [][2]string{{"", "10"}, {"/run/x", ""}} {
		t.Setenv("NOTIFY_SOCKET", env[0])
		t.Setenv("FDSTORE", env[1])
		if s, err := NewSystemd(); s != nil || err != nil {
			t.Errorf("%q: %v, %v", env, s, err)
		}
	}
	t.Setenv("FDSTORE", "many")
	if _, err := NewSystemd(); err == nil || !strings.Contains(err.Error(), "FDSTORE") {
		t.Errorf("a bad number: %v", err)
	}
}
