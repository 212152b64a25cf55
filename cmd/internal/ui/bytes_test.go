package ui

import (
	"testing"

	"github.com/spf13/pflag"
)

var _, _ pflag.Value = new(Bytes), new(Rate)

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

func TestRate(t *testing.T) {
	tests := []struct {
		in   string
		want Rate
		text string // what String makes of it
	}{
		{"0", 0, "0"},
		{"0bit", 0, "0"},
		{"unlimited", 0, "0"},
		{"1500", 1500, "12kbit"},
		{"1501", 1501, "1501"},
		{"50MiB", 50 << 20, "50MiB"},
		{"50MB", 50e6, "50MB"},
		{"400mbit", 50e6, "50MB"},
		{"100mbit", 12.5e6, "100mbit"},
		{"100 Mbit", 12.5e6, "100mbit"},
		{"1gbit", 125e6, "1gbit"},
		{"2.5Gbit", 312.5e6, "2500mbit"},
		{"100Mibit", 100 << 20 / 8, "12800KiB"},
		{"8bit", 1, "1"},
		{"15bit", 1, "1"},
		{"1024PiB", 1 << 60, "1024PiB"},
	}
	for _, tt := range tests {
		var r Rate
		if err := r.Set(tt.in); err != nil {
			t.Errorf("Set(%q): %v", tt.in, err)
			continue
		}
		if r != tt.want {
			t.Errorf("Set(%q) gives %d, want %d", tt.in, r, tt.want)
		}
		if got := r.String(); got != tt.text {
			t.Errorf("%d is written %q, want %q", r, got, tt.text)
		}
	}
	for _, in := range []string{
		"", "bit", "mbit", "-1mbit", "7bit", "0.5", "1,5gbit", "100mbps", "100mbit/s", "1bbit", "1mbbit", "unlimitedbit",
		"1025PiB", "99999999999999999999gbit",
	} {
		r := Rate(7)
		if err := r.Set(in); err == nil {
			t.Errorf("Set(%q) gives %d, want an error", in, r)
		} else if r != 7 {
			t.Errorf("Set(%q) failed and changed the value to %d", in, r)
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

func FuzzRate(f *testing.F) {
	for _, s := range []string{"0", "unlimited", "50MiB", "1.5 gbit", "100Mbit", "7bit", "1,5gbit", "9007199254740993bit"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var r Rate
		if r.Set(s) != nil {
			return
		}
		if r < 0 || r > maxBytes {
			t.Fatalf("Set(%q) gives %d", s, r)
		}
		again := Rate(-1)
		if err := again.Set(r.String()); err != nil || again != r {
			t.Fatalf("%d is written %q and read back as %d, %v", r, r.String(), again, err)
		}
	})
}
