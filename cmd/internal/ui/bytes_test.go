package ui

import (
	"testing"

	"github.com/spf13/pflag"
)

var _ pflag.Value = new(Bytes)

func TestBytes(t *testing.T) {
	tests := []struct {
		in   string
		want Bytes
		text string // what String makes of it
	}{
		{"0", 0, "0"},
		{"unlimited", 0, "0"},
		{"1", 1, "1"},
		{"4096", 4096, "4KiB"},
		{"50MiB", 50 << 20, "50MiB"},
		{"50 mib", 50 << 20, "50MiB"},
		{"50Mi", 50 << 20, "50MiB"},
		{"1GiB", 1 << 30, "1GiB"},
		{"1.5GiB", 3 << 29, "1536MiB"},
		{"100MB", 100e6, "100MB"},
		{"100M", 100e6, "100MB"},
		{"1500", 1500, "1500"},
		{"1024PiB", 1 << 60, "1024PiB"},
	}
	for _, tt := range tests {
		var b Bytes
		if err := b.Set(tt.in); err != nil {
			t.Errorf("Set(%q): %v", tt.in, err)
			continue
		}
		if b != tt.want {
			t.Errorf("Set(%q) gives %d, want %d", tt.in, b, tt.want)
		}
		if got := b.String(); got != tt.text {
			t.Errorf("%d is written %q, want %q", b, got, tt.text)
		}
	}
}

func TestBytesRefuses(t *testing.T) {
	for _, in := range []string{
		"", " ", "MiB", "-1", "+1", "1,5GiB", "1e3", "0x10", "NaN", "Inf", "1.2.3", "10 parsecs", "0.5", "0.0001KiB",
		"1025PiB", "99999999999999999999", "٣", "1GiB/s", "Unlimited?",
	} {
		b := Bytes(7)
		if err := b.Set(in); err == nil {
			t.Errorf("Set(%q) gives %d, want an error", in, b)
		} else if b != 7 {
			t.Errorf("Set(%q) failed and changed the value to %d", in, b)
		}
	}
}

func TestBytesFlag(t *testing.T) {
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	link := Bytes(50 << 20)
	flags.Var(&link, "link", "what each process may send and receive a second")
	if err := flags.Parse([]string{"--link=100MB"}); err != nil || link != 100e6 {
		t.Errorf("--link=100MB gives %d, %v", link, err)
	}
	if got := flags.Lookup("link").DefValue; got != "50MiB" {
		t.Errorf("the help shows the default %q", got)
	}
	if err := flags.Parse([]string{"--link=fast"}); err == nil {
		t.Error("--link=fast is accepted")
	}
}

func FuzzBytes(f *testing.F) {
	for _, s := range []string{"0", "unlimited", "50MiB", "1.5 gb", "1024PiB", "1,5GiB", "٣KiB", "9007199254740993"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var b Bytes
		if b.Set(s) != nil {
			return
		}
		if b < 0 || b > maxBytes {
			t.Fatalf("Set(%q) gives %d", s, b)
		}
		again := Bytes(-1)
		if err := again.Set(b.String()); err != nil || again != b {
			t.Fatalf("%d is written %q and read back as %d, %v", b, b.String(), again, err)
		}
	})
}
