package config

import (
	"strings"
	"testing"
)

func TestRuntimeAndStateFolder(t *testing.T) {
	const file = `
listeners: [{name: client, address: "127.0.0.1:12220", protocol: bolt}]
routes: [{name: rpc, rules: [{reply: {status: ERROR}}]}]
clusters: [{name: order, protocol: bolt, endpoints: [{address: "127.0.0.1:12200"}]}]
`
	t.Setenv(RuntimeVariable, "/run/environment") // which loading does not read
	for _, c := range []struct{ line, environment, want string }{
		{"", "", ""},
		{"", "/run/relevo", "/run/relevo"},
		{"", "/run/relevo:/run/other", "/run/relevo"},
		{"", ":/run/other", ""},
		{"", "run/relevo", ""},
		{"", "/", ""},
		{"runtime_dir: none", "/run/relevo", ""},
		{"runtime_dir: none", "", ""},
		{"runtime_dir: /srv/relevo", "/run/relevo", "/srv/relevo"},
		{"runtime_dir: /srv/relevo", "", "/srv/relevo"},
		{"runtime_dir: /srv/none", "", "/srv/none"},
	} {
		tree, err := Parse([]byte(file + c.line))
		if err != nil {
			t.Fatal(err)
		}
		if got := tree.RuntimeFolder(c.environment); got != c.want {
			t.Errorf("%q with %q in the environment: the folder is %q, want %q", c.line, c.environment, got, c.want)
		}
		line := strings.Replace(c.line, "runtime_dir", "state_dir", 1)
		if tree, err = Parse([]byte(file + line)); err != nil {
			t.Fatal(err)
		}
		if got := tree.StateFolder(c.environment); got != c.want {
			t.Errorf("%q with %q in the environment: the folder is %q, want %q", line, c.environment, got, c.want)
		}
	}
	for path, want := range map[string]string{
		"relevo":                           `runtime_dir: "relevo" is neither an absolute path nor none`,
		"None":                             `runtime_dir: "None" is neither an absolute path nor none`,
		"/run/relevo/":                     `runtime_dir: "/run/relevo/" is not the plain path of a folder`,
		"/run/../relevo":                   `runtime_dir: "/run/../relevo" is not the plain path of a folder`,
		"/":                                `runtime_dir: "/" is not the plain path of a folder`,
		`"/run/a\0b"`:                      `runtime_dir: "/run/a\x00b" holds a zero byte`,
		"/" + strings.Repeat("x", maxPath): `runtime_dir: the folder's path has 4096 bytes; the kernel takes 4095`,
	} {
		if _, err := Parse([]byte(file + "runtime_dir: " + path)); err == nil || err.Error() != want {
			t.Errorf("runtime_dir: %.40s gives\n%v, want\n%s", path, err, want)
		}
	}
}
