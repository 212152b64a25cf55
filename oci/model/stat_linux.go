package model

import (
	"io/fs"
	"syscall"
)

// An inode tells a file from the one that replaced it under the same name, and
// from itself after its times were set back.
type inode struct {
	device, number uint64
	changed        syscall.Timespec
}

func inodeOf(info fs.FileInfo) inode {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return inode{device: s.Dev, number: s.Ino, changed: s.Ctim}
	}
	return inode{}
}
