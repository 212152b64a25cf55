package torrent

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// unsent is how much of what is written to a connection may wait in the kernel
// before it is on its way, in bytes. More would only stand before what is
// written later, such as the block that a reader waits for, and be sent all the
// same when the peer has the block from elsewhere by then.
const unsent = 64 << 10

// limitUnsent sets that for a socket (TCP_NOTSENT_LOWAT). Connections that a
// listening socket accepts have it from there.
func limitUnsent(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent)
	}); e != nil {
		return e
	}
	if err != nil {
		return fmt.Errorf("limit what waits to be sent: %w", err)
	}
	return nil
}
