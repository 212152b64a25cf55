package access

import (
	"fmt"
	"io"
	"os"
	"time"
)

// maxFile is the most bytes a file of users or rules may have.
const maxFile = 4 << 20

// A source is a file that is read again when it changes.
type source struct {
	path string
	take func([]byte) error

	size int64
	time time.Time
}

// read takes the file if it is another one than the last time, and reports whether it was.
func (s *source) read() (changed bool, err error) {
	f, err := os.Open(s.path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return false, err
	}
	if fi.Size() == s.size && fi.ModTime().Equal(s.time) {
		return false, nil
	}
	s.size, s.time = fi.Size(), fi.ModTime() // of a broken one too: it is said once
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("it has more than %d bytes", maxFile)
	}
	if err == nil {
		err = s.take(b)
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", s.path, err)
	}
	return true, nil
}
