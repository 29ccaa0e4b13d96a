package config

import (
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/server/accesslog"
)

// What the configuration says of the access log is what the log knows of itself.
func TestAccessLogAgrees(t *testing.T) {
	var fields []string
	for _, f := range LogFields() {
		fields = append(fields, string(f))
	}
	if diff := cmp.Diff(accesslog.Fields(), fields); diff != "" {
		t.Errorf("the fields differ (-log +configuration):\n%s", diff)
	}
	if got := tree().field(reflect.TypeFor[AccessLog](), "template").def; got != accesslog.DefaultTemplate {
		t.Errorf("the default template is %q, want %q", got, accesslog.DefaultTemplate)
	}
	part := rapid.OneOf(
		rapid.SampledFrom([]string{"{", "}", "{{", "}}", "{time}", "{total}", "{ time}", "{tim}", "{}", "\t", "\n", "\x7f", "\u0085", " "}),
		rapid.String())
	rapid.Check(t, func(t *rapid.T) {
		var template strings.Builder
		for _, p := range rapid.SliceOfN(part, 0, 6).Draw(t, "parts") {
			template.WriteString(p)
		}
		want, got := accesslog.CheckTemplate(template.String()), checkTemplate(template.String())
		if (want == nil) != (got == nil) {
			t.Fatalf("of the template %q the configuration says %v, and the log %v", template.String(), got, want)
		}
	})
}

func TestLogPaths(t *testing.T) {
	for _, path := range []string{"stderr", "journal", "/var/log/relevo/access.log"} {
		if err := checkLogPath(path); err != nil {
			t.Errorf("the path %s is refused: %v", path, err)
		}
	}
	for _, tt := range []struct{ path, want string }{
		{"stdout", `"stdout" is neither stderr nor journal nor an absolute path`},
		{"sdterr", `"sdterr" is neither stderr nor journal nor an absolute path (did you mean stderr?)`},
		{"access.log", `"access.log" is neither stderr nor journal nor an absolute path`},
		{"/", `"/" is not the plain path of a file`},
		{"/var/log/", `"/var/log/" is not the plain path of a file`},
		{"/var/../log", `"/var/../log" is not the plain path of a file`},
		{"/a\x00b", `"/a\x00b" holds a zero byte`},
	} {
		if err := checkLogPath(tt.path); err == nil || err.Error() != tt.want {
			t.Errorf("the path %q: %v, want %s", tt.path, err, tt.want)
		}
	}
}
