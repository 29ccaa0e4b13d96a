package admin

import (
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNewToken(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		secret, line, err := NewToken("ci", RoleWrite, []string{"/v1/config", "/v1/log"})
		if err != nil {
			t.Fatal(err)
		}
		if seen[secret] || len(secret) != len(secretPrefix)+43 || strings.Contains(line, secret) {
			t.Errorf("the secret is %q, with the line %q: want 256 new random bits, which are not in the line", secret, line)
		}
		seen[secret] = true
		list, errs := parseTokens([]byte(line))
		if len(errs) > 0 || len(list) != 1 {
			t.Fatalf("the line %q gives %d tokens, %v", line, len(list), errs)
		}
		got, ok := find(list, secret)
		if !ok || got.name != "ci" || got.role != RoleWrite || !got.covers("/v1/log/x") || got.covers("/v1/lo") {
			t.Errorf("the line %q gives %+v, %v", line, got, ok)
		}
	}
	for _, tc := range []struct {
		name string
		role Role
		path string
	}{
		{"a b", RoleRead, "/x"},
		{"", RoleRead, "/x"},
		{"#a", RoleRead, "/x"},
		{strings.Repeat("a", 65), RoleRead, "/x"},
		{"a", "admin", "/x"},
		{"a", RoleRead, "x"},
		{"a", RoleRead, "/"},
		{"a", RoleRead, "/x/"},
		{"a", RoleRead, "/x/../y"},
		{"a", RoleRead, "/x//y"},
		{"a", RoleRead, "/x /y"},
		{"a", RoleRead, "/%zz"},
		{"a", RoleRead, "/%2e%2e"},
	} {
		if _, line, err := NewToken(tc.name, tc.role, []string{tc.path}); err == nil {
			t.Errorf("%+v gives the line %q, want an error", tc, line)
		}
	}
}

func TestParseTokens(t *testing.T) {
	a, b := strings.Repeat("aB", 32), strings.Repeat("cd", 32)
	text := strings.NewReplacer("A64", a, "B64", b).Replace("\n" +
		"# a comment\n" +
		"  one   read\tA64  \r\n" +
		"two write B64 /v1/x /v1/y%2Fz\n" +
		"one read " + strings.Repeat("0", 64) + "\n" +
		"three read B64\n" +
		"four\n" +
		"five all A6 v1\n" +
		"six read " + a + "0\n" +
		"sev/en read " + strings.Repeat("g", 64))
	list, errs := parseTokens([]byte(text))
	var got []string
	for _, err := range errs {
		got = append(got, err.Error())
	}
	const name, hash = "the name is not valid: 1 to 64 of the characters A-Z a-z 0-9 . _ -", "the hash is no SHA-256 of 64 hexadecimal digits"
	want := []string{
		"line 5: one is the name of line 3 as well",
		"line 6: it is the token of line 4",
		"line 7: want NAME ROLE SHA256 [PATH...]",
		"line 8: the role is neither read nor write",
		"line 8: " + hash,
		"line 8: path 1 is not as in /v1/config/clusters/order: with a slash first and none last, no part that is empty, . or .., and no space",
		"line 9: " + hash,
		"line 10: " + name,
		"line 10: " + hash,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the faults differ (-want +got):\n%s", diff)
	}
	if len(list) < 2 || list[1].name != "two" || fmt.Sprint(list[1].paths) != "[[v1 x] [v1 y/z]]" {
		t.Errorf("the tokens are %+v", list)
	}

	lines := func(n int) []byte { return []byte(strings.Repeat("#\n", n)) }
	if _, errs := parseTokens(lines(1000)); len(errs) > 0 {
		t.Errorf("1000 lines give %v, want no fault", errs)
	}
	if _, errs := parseTokens(lines(1001)); len(errs) != 1 {
		t.Errorf("1001 lines give %v, want a fault", errs)
	}
}

func TestTokensFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens")
	for _, tc := range []struct {
		mode os.FileMode
		text string
		want string // a part of the error, or "" for none
	}{
		{0o644, "", ""},
		{0o640, "# nobody\n", ""},
		{0o660, "", "has the mode 0660"},
		{0o602, "", "has the mode 0602"},
		{0o600, strings.Repeat("#", maxCredentials+1), "has more than 1048576 bytes"},
	} {
		if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, tc.mode); err != nil { // whatever the umask
			t.Fatal(err)
		}
		_, err := loadTokens(path)
		if tc.want == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("a file with the mode %v and %d bytes gives %v, want %q", tc.mode, len(tc.text), err, tc.want)
		}
	}
}

// What is presented is only ever compared by its hash.
func TestFind(t *testing.T) {
	secret, line, err := NewToken("last", RoleRead, nil)
	if err != nil {
		t.Fatal(err)
	}
	list, errs := parseTokens([]byte("first read " + strings.Repeat("0", 64) + "\n" + line))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	for what, want := range map[string]string{secret: "last", secret[1:]: "", "": "", strings.Repeat("0", 64): ""} {
		if got, ok := find(list, what); got.name != want || ok != (want != "") {
			t.Errorf("%.8q finds %q, %v; want %q", what, got.name, ok, want)
		}
	}
	if _, ok := find(nil, secret); ok {
		t.Error("in an empty list there is a token, want none")
	}
}

// Whatever a token for a path is let through to is that path or below it, for whoever decodes it, in whichever way.
func FuzzCovers(f *testing.F) {
	const prefix = "/v1/config/clusters/order"
	for _, seed := range []string{
		prefix, prefix + "/endpoints/127.0.0.1:1", prefix + "/..", prefix + "/%2e%2E/pay", prefix + "/..%2F..%2Fpay", prefix + "//x", prefix + "/", prefix + "s",
		"/v1/config%2fclusters/order", "/v1//config/clusters/order", "//v1/config/clusters/order", "v1/config/clusters/order", "/V1/config/clusters/order", prefix + "/%zz", prefix + "/%2F", "",
	} {
		f.Add(seed)
	}
	t0, errs := parseToken([]string{"a", "read", strings.Repeat("0", 64), prefix})
	if len(errs) > 0 {
		f.Fatal(errs)
	}
	f.Fuzz(func(t *testing.T, escaped string) {
		if !strings.HasPrefix(escaped, "/") || !t0.covers(escaped) {
			return
		}
		decoded, err := url.PathUnescape(escaped)
		if err != nil {
			t.Fatalf("%q is covered, and cannot be decoded: %v", escaped, err)
		}
		if clean := path.Clean(decoded); clean != decoded || clean != prefix && !strings.HasPrefix(clean, prefix+"/") {
			t.Errorf("%q is covered, and is %q, clean %q", escaped, decoded, clean)
		}
	})
}
