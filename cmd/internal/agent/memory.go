package agent

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"math"
	"path"
	"strconv"
	"strings"
	"sync"
)

// memoryMargin is the part of a memory limit that is left alone: 1/memoryMargin.
const memoryMargin = 10

// memory shares out what may be in the page cache for orders that ask for it.
// What the kernel counts as available includes the page cache, so what was given
// out is counted here. It is safe for concurrent use.
type memory struct {
	root fs.FS // the file system's root

	mu    sync.Mutex
	given map[string]int64 // bytes by order
}

func newMemory(root fs.FS) *memory { return &memory{root: root, given: map[string]int64{}} }

// take gives an order as much of want bytes as there is room for, in place of what it had.
func (m *memory) take(order string, want int64) (int64, error) {
	room, err := cacheRoom(m.root)
	if err != nil {
		return 0, fmt.Errorf("see how much memory there is for the page cache: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.given, order)
	for _, n := range m.given {
		room -= n
	}
	got := max(0, min(want, room))
	m.given[order] = got
	return got, nil
}

func (m *memory) giveBack(order string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.given, order)
}

// cacheRoom returns how many bytes the page cache may have of the memory of this
// process: what neither the machine nor a cgroup above the process (cgroup v2,
// memory.max and memory.high) has in use otherwise, without a margin.
func cacheRoom(root fs.FS) (int64, error) {
	b, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return 0, err
	}
	total, ok1 := field(b, "MemTotal:")
	available, ok2 := field(b, "MemAvailable:")
	if !ok1 || !ok2 {
		return 0, fmt.Errorf("/proc/meminfo has no MemTotal or no MemAvailable")
	}
	room := available<<10 - total<<10/memoryMargin
	b, err = fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		own, v2 := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !v2 {
			continue
		}
		for dir := path.Join("sys/fs/cgroup", own); dir != "sys/fs" && dir != "."; dir = path.Dir(dir) {
			room = min(room, cgroupRoom(root, dir))
		}
	}
	return room, nil
}

// cgroupRoom returns the room of one cgroup. One without limits, or whose files
// are not to be seen from here, has any.
func cgroupRoom(root fs.FS, dir string) int64 {
	limit := int64(math.MaxInt64)
	for _, name := range []string{"memory.max", "memory.high"} {
		if n, ok := number(root, path.Join(dir, name)); ok {
			limit = min(limit, n)
		}
	}
	used, ok := number(root, path.Join(dir, "memory.current"))
	if limit == math.MaxInt64 || !ok {
		return math.MaxInt64
	}
	if stat, err := fs.ReadFile(root, path.Join(dir, "memory.stat")); err == nil {
		file, _ := field(stat, "file")
		shared, _ := field(stat, "shmem") // counted in file, and not to be dropped
		used -= file - shared
	}
	return limit - limit/memoryMargin - used
}

// number reads a file with one number; "max" is none.
func number(root fs.FS, name string) (int64, bool) {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n, err == nil
}

// field finds the number behind a line's first word.
func field(b []byte, name string) (int64, bool) {
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		if f := strings.Fields(lines.Text()); len(f) > 1 && f[0] == name {
			n, err := strconv.ParseInt(f[1], 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
