package server_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/cmd/relevo/call"
	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
)

// limitsPage is docs/limits.md.
func limitsPage(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

// Every reason that the code can name is explained, and nothing is explained that no code names.
func TestReasonsAreDocumented(t *testing.T) {
	page := limitsPage(t)
	reasons := map[string]bool{}
	for _, dir := range []string{"../forwarder", "../forwarder/conn", "../forwarder/wire", "../forwarder/health", "../forwarder/filter/source", "../forwarder/filter/fault", "../forwarder/filter/ratelimit"} {
		for name, reason := range reasonConstants(t, dir) {
			reasons[reason] = true
			if !strings.Contains(page, "`"+reason+"`") {
				t.Errorf("docs/limits.md does not explain the reason %q (%s in %s)", reason, name, dir)
			}
		}
	}
	row := regexp.MustCompile("(?m)^\\| ((?:`[a-z-]+`(?:, )?)+) \\|")
	_, tables, _ := strings.Cut(page, "## Why Relevo answers")
	for _, m := range row.FindAllStringSubmatch(tables, -1) {
		for word := range strings.SplitSeq(m[1], ", ") {
			if reason := strings.Trim(word, "`"); !reasons[reason] {
				t.Errorf("docs/limits.md explains the reason %q, which no code names", reason)
			}
		}
	}
}

// reasonConstants are the string constants of a package whose names begin with Reason.
func reasonConstants(t *testing.T, dir string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, file := range files {
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(tree, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ValueSpec); ok && len(spec.Values) == 1 && strings.HasPrefix(spec.Names[0].Name, "Reason") {
				if lit, ok := spec.Values[0].(*ast.BasicLit); ok {
					value, err := strconv.Unquote(lit.Value)
					if err != nil {
						t.Fatal(err)
					}
					out[spec.Names[0].Name] = value
				}
			}
			return true
		})
	}
	if len(out) == 0 {
		t.Fatalf("no reasons found in %s", dir)
	}
	return out
}

// What is exposed is what Prometheus' own checker accepts.
func TestMetricsPassPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not installed (Debian's package prometheus has it)")
	}
	s, _ := run(t, parse(t, oneHop, startEcho(t, echo.Options{})))
	for _, service := range []string{"com.example.Echo:1.0", "com.example.Nobody:1.0"} { // so that what counts lazily is there too
		if _, err := call.Do(t.Context(), call.Options{Addr: s.Addresses()["in"].String(), Service: service, Timeout: 5 * time.Second}); err != nil {
			t.Fatal(err)
		}
	}
	_, page := get(t, s.MetricsAddress(), "/metrics")
	check := exec.CommandContext(t.Context(), promtool, "check", "metrics")
	check.Stdin = strings.NewReader(page)
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// Every metric that the documents send people to exists.
func TestMetricsInDocumentsExist(t *testing.T) {
	source, err := os.ReadFile("../forwarder/metrics.go")
	if err != nil {
		t.Fatal(err)
	}
	access, err := os.ReadFile("accesslog/accesslog.go") // the server below has none
	if err != nil {
		t.Fatal(err)
	}
	upgrades, err := os.ReadFile("generation.go") // nor does it make upgrades
	if err != nil {
		t.Fatal(err)
	}
	found, err := os.ReadFile("discovery.go") // nor has it discovery
	if err != nil {
		t.Fatal(err)
	}
	known := []string{string(source), string(access), string(upgrades), string(found)}
	s, _ := run(t, parse(t, strings.Replace(oneHop, "cluster: echo}", "cluster: echo, max_requests: 9}", 1), startEcho(t, echo.Options{})))
	for _, sample := range s.Stats().Snapshot() {
		family := sample.Name
		for _, part := range []string{"_bucket", "_sum", "_count"} {
			family = strings.TrimSuffix(family, part)
		}
		known = append(known, strconv.Quote(family))
	}
	known = append(known, `"relevo_recovered_panics_total"`, `"relevo_build_info"`) // the first panic's, and the door's own
	all := strings.Join(known, " ")
	operations, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range regexp.MustCompile(`"relevo_[a-z_]+"`).FindAllString(all, -1) {
		if !strings.Contains(string(operations), "`"+strings.Trim(name, `"`)+"`") {
			t.Errorf("docs/operations.md does not list the metric %s", name)
		}
	}
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("there are no documents: %v", err)
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile(`relevo_[a-z_]+`).FindAllString(string(text), -1) {
			if !strings.Contains(all, strconv.Quote(name)) {
				t.Errorf("%s names the metric %s, which there is not", page, name)
			}
		}
	}
}
