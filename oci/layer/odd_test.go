package layer

import (
	"archive/tar"
	"strings"
	"testing"
	"time"
)

// putOdd writes entries of every odd kind that containerd unpacks.
func putOdd(t testing.TB, w *tar.Writer) {
	when := time.Unix(1_600_000_000, 123_456_789)
	entry := func(kind byte, name, body string, changes ...func(*tar.Header)) {
		hdr := &tar.Header{Typeflag: kind, Name: name, Mode: 0o644, ModTime: when}
		if kind == tar.TypeDir {
			hdr.Mode = 0o755
		}
		for _, change := range changes {
			change(hdr)
		}
		put(t, w, hdr, []byte(body))
	}
	to := func(target string) func(*tar.Header) { return func(h *tar.Header) { h.Linkname = target } }
	mode := func(mode int64) func(*tar.Header) { return func(h *tar.Header) { h.Mode = mode } }
	owner := func(uid, gid int) func(*tar.Header) { return func(h *tar.Header) { h.Uid, h.Gid = uid, gid } }
	device := func(major, minor int64) func(*tar.Header) {
		return func(h *tar.Header) { h.Devmajor, h.Devminor = major, minor }
	}
	at := func(t time.Time) func(*tar.Header) { return func(h *tar.Header) { h.ModTime = t } }
	gnu := func(h *tar.Header) { h.Format, h.ModTime = tar.FormatGNU, h.ModTime.Truncate(time.Second) }
	xattr := func(name, value string) func(*tar.Header) {
		return func(h *tar.Header) {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+name] = value
		}
	}
	capability := xattr("security.capability", "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	acl := "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x05\x00\xe8\x03\x00\x00" +
		"\x04\x00\x05\x00\xff\xff\xff\xff" + "\x10\x00\x05\x00\xff\xff\xff\xff" + "\x20\x00\x05\x00\xff\xff\xff\xff"
	const reg, dir, link, hard = tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink
	long := strings.Repeat("l", 255)
	deep := strings.Repeat(strings.Repeat("d", 200)+"/", 15)

	put(t, w, &tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "all of it"}}, nil)
	entry(dir, "./", "", mode(0o700), owner(7, 7))
	entry(dir, "./etc/", "")
	entry(reg, "./etc/dotted", "a name with a dot before it", mode(0o640))
	entry(reg, "/etc/absolute", "a name from the root", mode(0o4755))
	entry(reg, "../../etc/outside", "a name that leads out", mode(0o2755))
	entry(reg, "etc/../etc/x/../inside", "a name that goes to and fro")
	entry(reg, "etc/empty", "")
	entry(reg, "etc/block", strings.Repeat("b", 512))
	entry(reg, "etc/blocks", strings.Repeat("c", 8192))
	entry(reg, "etc/more", strings.Repeat("d", 100_001))
	entry(reg, "no/entry/for/parents", "but it has them")
	entry(reg, long, "a long name", gnu)
	entry(reg, deep+long, "a long path")
	entry(reg, deep+"gnu", "a long path", gnu)
	entry(link, "long-link", "", to(strings.Repeat("t/", 2000)))
	entry(link, "long-link-gnu", "", to(strings.Repeat("u/", 500)), gnu)
	entry(reg, "na\xc3\xafve \xff\x01\n", "not all of it is text", gnu)

	entry(dir, "usr/lib", "")
	entry(link, "lib", "", to("usr/lib"), at(when.Add(time.Hour)), owner(1, 2))
	entry(link, "absolute", "", to("/usr/lib"))
	entry(link, "chain", "", to("./lib/../lib"))
	entry(link, "dangling", "", to("not/there"))
	entry(reg, "lib/by-link", "it is in usr/lib")
	entry(reg, "absolute/by-absolute-link", "it is in usr/lib")
	entry(reg, "chain/by-chain", "it is in usr/lib")
	entry(dir, "dangling/dir", "")
	entry(dir, "elsewhere", "")
	entry(link, "elsewhere/absolute", "", to("/usr"))
	entry(link, "elsewhere/relative", "", to("../usr/lib"))
	entry(reg, "elsewhere/absolute/lib/by-absolute-link-2", "it is in usr/lib")
	entry(reg, "elsewhere/relative/by-relative-link", "it is in usr/lib")

	entry(hard, "etc/link", "", to("etc/more"), mode(0o600), owner(5, 6))
	entry(hard, "etc/link2", "", to("/./etc/link"), mode(0o604))
	entry(hard, "hard-by-link", "", to("lib/by-link"))
	entry(hard, "hard-to-link", "", to("lib"), at(when.Add(time.Minute)))
	entry(tar.TypeFifo, "fifo", "", mode(0o622))
	entry(hard, "hard-to-fifo", "", to("fifo"), mode(0o602))
	entry(tar.TypeChar, "null", "", device(1, 3), mode(0o666))
	entry(tar.TypeBlock, "disk", "", device(259, 1_000_000), mode(0o660), owner(0, 6))
	entry(tar.TypeChar, "large", "", device(4095, 1<<20-1))

	entry(reg, "ids/large", "", owner(1<<32-2, 1<<31))
	entry(reg, "ids/negative", "", owner(-2, -5), gnu)
	entry(reg, "ids/none", "", owner(-1, -1), gnu)
	entry(reg, "times/before-1970", "", at(time.Unix(-1, 5)))
	entry(reg, "times/zero", "", at(time.Unix(0, 0)))
	entry(reg, "times/nanosecond", "", at(time.Unix(0, 1)))
	entry(reg, "times/late", "", at(time.Unix(1<<33, 999_999_999)))

	entry(reg, "x/capability", "able", capability, mode(0o755))
	entry(reg, "x/linked", "able", capability)
	entry(hard, "x/linked-unable", "", to("x/linked"))
	entry(reg, "x/relinked", "able", capability)
	entry(hard, "x/relinked-able", "", to("x/relinked"), capability)
	entry(reg, "x/user", "", xattr("user.a", "1"), xattr("user.b", ""), xattr("user.\xc3\xa9", "\x00\xff"), xattr("security.x", "y"))
	entry(reg, "x/large", "", xattr("user.large", strings.Repeat("v", 3000)))
	entry(reg, "x/ignored", "", xattr("trusted.overlay.opaque", "y"), xattr("nothing.known", "y"), xattr("system.other", "y"))
	entry(link, "x/link", "", to("large"), xattr("user.ignored", "y"), xattr("security.kept", "y"))
	entry(reg, "x/acl", "", xattr("system.posix_acl_access", acl), mode(0o755))
	entry(dir, "x/acl-dir", "", xattr("system.posix_acl_default", acl), xattr("user.dir", "y"))

	entry(dir, "twice/dir", "", mode(0o700), xattr("user.first", "y"))
	entry(reg, "twice/dir/kept", "")
	entry(dir, "twice/dir", "", mode(0o711), xattr("user.second", "y"), owner(3, 3), at(when.Add(time.Second)))
	entry(reg, "twice/file", "the first, and the longer", mode(0o600), xattr("user.first", "y"))
	entry(reg, "twice/file", "the second")
	entry(dir, "twice/dir-to-file", "", at(when.Add(time.Second)))
	entry(reg, "twice/dir-to-file/gone", "")
	entry(reg, "twice/dir-to-file", "a file")
	entry(reg, "twice/file-to-dir", "a file")
	entry(dir, "twice/file-to-dir", "")
	entry(reg, "twice/file-to-dir/new", "")
	entry(dir, "twice/dir-to-link", "", at(when.Add(time.Second)))
	entry(link, "twice/dir-to-link", "", to("dir"))
	entry(link, "twice/link-to-dir", "", to("dir"))
	entry(dir, "twice/link-to-dir", "")
	entry(reg, "twice/linked", "of one name in the end")
	entry(hard, "twice/linked2", "", to("twice/linked"))
	entry(reg, "twice/linked2", "another")
	entry(reg, "etc/.wh..wh..opq", "")
	entry(dir, "last", "", at(time.Unix(1, 0)), mode(0o1777))
}
