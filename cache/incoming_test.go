package cache

import (
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/spate-project/spate/cache/piece"
)

func receive(t *testing.T, s *Store, d piece.Digest, size int, data []byte) *Incoming {
	t.Helper()
	in, err := s.Receive(d, int64(size))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	for len(data) > 0 {
		n := min(70_000, len(data))
		if _, err := in.Write(data[:n]); err != nil {
			t.Fatal(err)
		}
		data = data[n:]
	}
	return in
}

// left returns what lies below the incoming directory.
func left(t *testing.T, s *Store) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(s.dir, incomingDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func testIncoming(t *testing.T, dir string) {
	s := openStore(t, dir, Options{})
	data := content(1, 3*piece.MinLength-1000)
	d := piece.Digest(sha256.Sum256(data))

	wrong := receive(t, s, d, len(data), content(2, len(data)))
	short := receive(t, s, d, len(data), data[1:])
	if _, err := wrong.Commit(); !isWrong(err) {
		t.Errorf("other bytes: %v", err)
	}
	if _, err := short.Commit(); err == nil {
		t.Error("too few bytes are taken")
	}
	for _, in := range []*Incoming{wrong, short} {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(s.objectPath(d)); !errors.Is(err, fs.ErrNotExist) || len(left(t, s)) > 0 {
		t.Errorf("there is something of what was refused: %v, %v", err, left(t, s))
	}

	// What lies there of another tree gives way.
	other := openObject(t, s, treeNamed(t, d, content(3, len(data)), piece.MinLength), nil)
	putAll(t, other, content(3, len(data)))
	other.Close()
	in := receive(t, s, d, len(data), data)
	tree, err := in.Commit()
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil || len(left(t, s)) > 0 {
		t.Errorf("close: %v, left is %v", err, left(t, s))
	}
	o := openObject(t, s, tree, nil)
	if p := o.Progress(); p.Claimed != 3 || p.Present != 0 {
		t.Errorf("progress is %+v, want three claims", p)
	}
	readAll(t, o, data)
	if !o.Complete() || s.Stats().BadClaims != 0 {
		t.Errorf("complete %v, %+v", o.Complete(), s.Stats())
	}

	// What is open stays as it is.
	in = receive(t, s, d, len(data), data)
	if again, err := in.Commit(); err != nil || again.Object() != tree.Object() {
		t.Errorf("commit beside the open object: %v", err)
	}
	in.Close()
	readAll(t, o, data)

	receive(t, s, d, len(data), data[:1000]) // and the process ends
	o.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, Options{})
	if paths := left(t, s); len(paths) > 0 {
		t.Errorf("a later process finds %v", paths)
	}
	readAll(t, openObject(t, s, tree, nil), data)
}

func isWrong(err error) bool {
	_, ok := errors.AsType[*piece.WrongBytesError](err)
	return ok
}
