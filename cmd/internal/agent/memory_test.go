package agent

import (
	"os"
	"testing"
	"testing/fstest"
)

func mapped(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }

// TestCacheRoom reads the limits of machines and cgroups.
func TestCacheRoom(t *testing.T) {
	const gib = 1 << 30
	machine := func(cgroup string) fstest.MapFS {
		return fstest.MapFS{
			"proc/meminfo":     mapped("MemTotal:       104857600 kB\nMemFree:  1 kB\nMemAvailable:   83886080 kB\n"), // 100 and 80 GiB
			"proc/self/cgroup": mapped(cgroup),
		}
	}
	limited := func(fsys fstest.MapFS, dir, limit, high, used, stat string) fstest.MapFS {
		for name, s := range map[string]string{"memory.max": limit, "memory.high": high, "memory.current": used, "memory.stat": stat} {
			fsys["sys/fs/cgroup/"+dir+name] = mapped(s + "\n")
		}
		return fsys
	}
	for name, c := range map[string]struct {
		fsys fstest.MapFS
		want int64
	}{
		"no cgroup":    {machine(""), 70 * gib},
		"cgroup v1":    {machine("4:memory:/agent\n"), 70 * gib},
		"no limit":     {limited(machine("0::/a/agent\n"), "a/agent/", "max", "max", "1", ""), 70 * gib},
		"own limit":    {limited(machine("0::/a/agent\n"), "a/agent/", "10737418240", "max", "2147483648", "anon 1\nfile 1073741824\nshmem 0\n"), 8 * gib},
		"shared files": {limited(machine("0::/a/agent\n"), "a/agent/", "10737418240", "max", "2147483648", "file 1073741824\nshmem 1073741824\n"), 7 * gib},
		"high":         {limited(machine("0::/a/agent\n"), "a/agent/", "max", "5368709120", "0", ""), 9 * gib / 2},
		"above":        {limited(machine("0::/a/agent\n"), "a/", "10737418240", "max", "0", ""), 9 * gib},
		"full":         {limited(machine("0::/agent\n"), "agent/", "10737418240", "max", "10737418240", ""), -gib},
	} {
		if got, err := cacheRoom(c.fsys); err != nil || got != c.want {
			t.Errorf("%s: %d bytes, %v, want %d", name, got, err, c.want)
		}
	}
	if _, err := cacheRoom(fstest.MapFS{"proc/meminfo": mapped("Mem: 1\n")}); err == nil {
		t.Error("no error without the numbers")
	}
	if got, err := cacheRoom(os.DirFS("/")); err != nil || got <= 0 {
		t.Errorf("this machine: %d bytes, %v", got, err)
	}
}

// TestMemory gives room out once.
func TestMemory(t *testing.T) {
	m := newMemory(fstest.MapFS{"proc/meminfo": mapped("MemTotal: 1000 kB\nMemAvailable: 1100 kB\n"), "proc/self/cgroup": mapped("")})
	for _, c := range []struct {
		order      string
		want, gets int64
	}{
		{"a", 600 << 10, 600 << 10}, {"b", 600 << 10, 400 << 10}, {"a", 700 << 10, 600 << 10}, {"a", 100 << 10, 100 << 10}, {"b", 1 << 30, 900 << 10}, {"c", 1, 0},
	} {
		if got, err := m.take(c.order, c.want); err != nil || got != c.gets {
			t.Errorf("order %s gets %d bytes of %d, %v, should get %d", c.order, got, c.want, err, c.gets)
		}
	}
	m.giveBack("b")
	if got, err := m.take("c", 1<<30); err != nil || got != 900<<10 {
		t.Errorf("gets %d bytes, %v", got, err)
	}
}
