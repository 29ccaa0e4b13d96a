package systemd

import (
	"os"
	"path/filepath"
	"testing"
)

func TestUnitIn(t *testing.T) {
	for groups, want := range map[string]string{
		"0::/system.slice/relevo.service\n":                                "relevo.service",
		"0::/system.slice/system-relevo.slice/relevo@a.service/main\n":     "relevo@a.service",
		"12:cpu:/\n1:name=systemd:/system.slice/relevo.service\n":          "relevo.service",
		"0::/user.slice/user-0.slice/user@0.service/app.slice/x.service\n": "x.service",
		"0::/\n": "",
		"":       "",
	} {
		if got := unitIn(groups); got != want {
			t.Errorf("got the unit %q in %q, want %q", got, groups, want)
		}
	}
}

// TestUnitSum: it changes with what the files say, wherever they are, and with nothing else.
func TestUnitSum(t *testing.T) {
	root := t.TempDir()
	folders := []string{filepath.Join(root, "etc"), filepath.Join(root, "lib")}
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sum := func() string { return unitSum(folders, "a.service") }
	if got := sum(); got != "" {
		t.Errorf("got %q without a file, want nothing", got)
	}
	if got := unitSum(folders, ""); got != "" {
		t.Errorf("got %q without a name, want nothing", got)
	}
	seen := map[string]string{}
	for _, change := range []struct{ file, text string }{
		{"lib/a.service", "[Service]\n"},
		{"lib/a.service", "[Service]\nNice=1\n"},
		{"lib/a.service.d/10.conf", "[Service]\nNice=2\n"},
		{"etc/a.service", "[Service]\n"},
		{"etc/a.service.d/10.conf", "[Service]\nNice=2\n"},
	} {
		write(change.file, change.text)
		got := sum()
		if before, twice := seen[got]; twice || got == "" {
			t.Errorf("got %q behind %v, as behind %q; want another one", got, change, before)
		}
		seen[got] = change.file
	}
	before := sum()
	write("lib/b.service", "[Service]\n")
	write("lib/a.service.d/README", "no drop-in")
	write("lib/a.service", "[Service]\nNice=1\n") // anew, and the same
	if got := sum(); got != before {
		t.Errorf("got %q behind changes of what is not the unit's, want %q", got, before)
	}
}
