package mount

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A record is what a successor must know of a mounted file system and cannot
// compute. It lies in a memory file, which outlives this process where another
// holds its descriptor: a head in JSON after its length (little endian, 32
// bits), and from headSize on the opens of every node, changed in place.
type record struct {
	file *os.File
	head head
	mem  []byte
	all  []opens // in mem, by inode number less one
}

const headSize = 32 << 10

type head struct {
	Dir     string `json:"dir"`     // where it was mounted
	Device  uint64 `json:"device"`  // its device number
	Entries []byte `json:"entries"` // FS.sum
	Request []byte `json:"request"` // the kernel's FUSE_INIT
	Reply   []byte `json:"reply"`   // and what it was answered
}

// opens counts the open files of a node by how they read. The kernel refuses
// to mix the two ways, so a file that is opened lazily becomes a passthrough
// file when it is complete and all have closed it. A server may be killed at
// any time: each count is never less than the kernel's.
type opens struct {
	cached, passthrough atomic.Int32
	backing             atomic.Int32 // the kernel's name of the file that it reads, while passthrough > 0
}

// newRecord makes the record of a file system with so many nodes.
func newRecord(h head, nodes int) (*record, error) {
	b, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	if len(b) > headSize-4 {
		return nil, fmt.Errorf("the directory's name is too long")
	}
	fd, err := unix.MemfdCreate("spate-mount", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make a memory file: %w", err)
	}
	file := os.NewFile(uintptr(fd), "spate-mount")
	if err = file.Truncate(recordSize(nodes)); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, sizeSeals)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("make a memory file: %w", err)
	}
	r := &record{file: file, head: h}
	if err := r.mapFile(nodes); err != nil {
		file.Close()
		return nil, err
	}
	binary.LittleEndian.PutUint32(r.mem, uint32(len(b)))
	copy(r.mem[4:], b)
	return r, nil
}

// sizeSeals keep a memory file from getting shorter under those that have mapped it.
const sizeSeals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

func recordSize(nodes int) int64 { return headSize + int64(nodes)*int64(unsafe.Sizeof(opens{})) }

// openRecord reads the record in file, of a file system that must have so many
// nodes. The file is closed with the record, and stays the caller's when
// openRecord fails.
func openRecord(file *os.File, nodes int) (*record, error) {
	size, err := file.Seek(0, 2)
	if err != nil {
		return nil, err
	}
	if size != recordSize(nodes) {
		return nil, errChanged
	}
	if seals, err := unix.FcntlInt(file.Fd(), unix.F_GET_SEALS, 0); err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		return nil, errors.New("the record is not a memory file of a fixed size")
	}
	r := &record{file: file}
	if err := r.mapFile(nodes); err != nil {
		return nil, err
	}
	if r.head, err = parseHead(r.mem[:headSize]); err != nil {
		unix.Munmap(r.mem)
		return nil, err
	}
	return r, nil
}

var errChanged = errors.New("its files are not those that it was mounted with")

func (r *record) mapFile(nodes int) (err error) {
	if r.mem, err = unix.Mmap(int(r.file.Fd()), 0, int(recordSize(nodes)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("map the record: %w", err)
	}
	r.all = unsafe.Slice((*opens)(unsafe.Pointer(&r.mem[headSize])), nodes)
	return nil
}

// parseHead reads a head as newRecord writes it.
func parseHead(b []byte) (h head, err error) {
	n := binary.LittleEndian.Uint32(b)
	if n > uint32(len(b)-4) {
		return h, errors.New("read the record: its length is wrong")
	}
	if err := json.Unmarshal(b[4:4+n], &h); err != nil {
		return h, fmt.Errorf("read the record: %w", err)
	}
	if !filepath.IsAbs(h.Dir) || len(h.Request) < int(unsafe.Sizeof(fuse.InHeader{})) || len(h.Request) > minRead {
		return h, errors.New("read the record: it is incomplete")
	}
	if _, err := parseInit(h.Reply); err != nil {
		return h, fmt.Errorf("read the record: %w", err)
	}
	return h, nil
}

func (r *record) opens(n *node) *opens { return &r.all[n.ino-1] }

// close ends all use of r; the file lives on where it is held.
func (r *record) close() {
	unix.Munmap(r.mem)
	r.file.Close()
}

// An initReply is a FUSE_INIT reply as far as it matters here, after its header.
type initReply struct {
	Length uint32
	Error  int32
	Unique uint64

	Major, Minor, MaxReadAhead, Flags uint32
	MaxBackground, Congestion         uint16
	MaxWrite, TimeGran                uint32
	MaxPages, MapAlignment            uint16
	Flags2                            uint32
}

func parseInit(b []byte) (r initReply, err error) {
	if err := binary.Read(bytes.NewReader(b), binary.NativeEndian, &r); err != nil {
		return r, fmt.Errorf("the reply to FUSE_INIT: %w", err)
	}
	if r.Error != 0 {
		return r, fmt.Errorf("the reply to FUSE_INIT: %w", unix.Errno(-r.Error))
	}
	return r, nil
}

func (r initReply) passthrough() bool {
	return (uint64(r.Flags2)<<32|uint64(r.Flags))&fuse.CAP_PASSTHROUGH != 0
}
