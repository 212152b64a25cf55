package holder

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Client and holder speak over a socket of type SOCK_SEQPACKET, in messages of a
// kind, a text and files (SCM_RIGHTS). The client asks; each answer is one of
// kindDone and kindFailed, after a kindName for each name where it asked for them.
const (
	kindPut    = 'p' // text: the name; files
	kindGet    = 'g' // text: the name
	kindDrop   = 'd' // text: the name
	kindList   = 'l'
	kindDone   = 'k' // files, after kindGet
	kindName   = 'n' // text: a name
	kindFailed = 'e' // text: why
	kindNone   = '0' // text: nothing has that name
)

const maxMessage = 1 << 10

type message struct {
	kind  byte
	text  string
	files []*os.File
}

func send(conn *net.UnixConn, m message) error {
	b := append([]byte{m.kind}, m.text...)
	fds := make([]int, 0, len(m.files))
	return holding(m.files, func(fd int) { fds = append(fds, fd) }, func() error {
		var rights []byte
		if len(fds) > 0 {
			rights = unix.UnixRights(fds...)
		}
		_, _, err := conn.WriteMsgUnix(b[:min(len(b), maxMessage)], rights, nil)
		return err
	})
}

// holding calls add with the descriptor of each file and then do, while all stay open.
func holding(files []*os.File, add func(fd int), do func() error) (err error) {
	if len(files) == 0 {
		return do()
	}
	outer := withFd(files[0], func(fd int) {
		add(fd)
		err = holding(files[1:], add, do)
	})
	return errors.Join(outer, err)
}

// receive returns the next message, whose files are the caller's.
func receive(conn *net.UnixConn) (message, error) {
	b, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, nOOB, flags, _, err := conn.ReadMsgUnix(b, oob) // the files are closed on exec
	if err != nil {
		return message{}, err
	}
	files, err := received(oob[:nOOB])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("the message is too long")
	}
	m := message{kind: b[0], text: string(b[1:max(n, 1)]), files: files}
	if err == nil && n == 0 {
		err = errors.New("the message is empty")
	}
	if err != nil {
		closeAll(files)
		return message{}, err
	}
	return m, nil
}

// received returns the files that came with control messages. On an error it has closed them.
func received(oob []byte) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
			files = nil
		}
	}()
	control, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range control {
		fds, err := unix.ParseUnixRights(&control[i])
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "held"))
		}
	}
	return files, nil
}

// check refuses a request that does not say all, or too much.
func (m message) check() error {
	switch m.kind {
	case kindPut:
		return errors.Join(checkName(m.text), checkFiles(len(m.files)))
	case kindGet, kindDrop:
		if len(m.files) > 0 {
			return fmt.Errorf("%d files came that were not asked for", len(m.files))
		}
		return checkName(m.text)
	case kindList:
		if len(m.text)+len(m.files) > 0 {
			return errors.New("a list takes no name and no files")
		}
		return nil
	}
	return fmt.Errorf("there is no request %q", m.kind)
}
