// Package packaging_test tries what goes into the packages and can be tried without making them.
package packaging_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/relevo-proxy/relevo/server/config"
)

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var metric = regexp.MustCompile(`\brelevo_[a-z_]+\b`)

// Whoever follows an alert or a panel finds in the runbook what the metric counts; a name that is not there may have been
// misspelt, or renamed since.
func TestMetricsOfAlertsAndDashboardAreDocumented(t *testing.T) {
	documented := metric.FindAllString(read(t, "../docs/operations.md"), -1)
	for _, file := range []string{"alerts.yaml", "dashboard.json"} {
		found := metric.FindAllString(read(t, file), -1)
		if len(found) < 10 {
			t.Errorf("%s names %d metrics, want more than 10: it says little", file, len(found))
		}
		slices.Sort(found)
		for _, name := range slices.Compact(found) {
			base := name
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				if cut := strings.TrimSuffix(name, suffix); slices.Contains(documented, cut) {
					base = cut
				}
			}
			if !slices.Contains(documented, base) {
				t.Errorf("%s asks for %s, which docs/operations.md does not list", file, name)
			}
		}
	}
}

// board is what a dashboard has, as far as it is looked at here.
type board struct {
	Panels []struct {
		ID      int
		Title   string
		Type    string
		GridPos struct{ X, Y, W, H int }
		Targets []struct{ Expr string }
	}
}

func dashboard(t *testing.T) (d board) {
	t.Helper()
	if err := json.Unmarshal([]byte(read(t, "dashboard.json")), &d); err != nil {
		t.Fatalf("dashboard.json is not what Grafana reads: %v", err)
	}
	return d
}

// Panels that overlap hide each other, and an id that two share makes Grafana drop one.
func TestDashboardIsWhole(t *testing.T) {
	d := dashboard(t)
	for i, p := range d.Panels {
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		if p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %q ends at column %d, want at most 24", p.Title, p.GridPos.X+p.GridPos.W)
		}
		for _, q := range d.Panels[:i] {
			a, b := p.GridPos, q.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("panels %q and %q overlap", p.Title, q.Title)
			}
			if p.ID == q.ID {
				t.Errorf("panels %q and %q have the same id, %d", p.Title, q.Title, p.ID)
			}
		}
	}
	if len(d.Panels) < 10 {
		t.Errorf("the dashboard has %d panels, want more than 10", len(d.Panels))
	}
}

// Prometheus itself says whether it would take the rules, and what the panels ask for.
func TestAlertsAndPanelsAreQueries(t *testing.T) {
	tool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not here; on Debian it is in the package prometheus")
	}
	rules := filepath.Join(t.TempDir(), "panels.yaml")
	if err := os.WriteFile(rules, panelsAsRules(t), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"alerts.yaml", rules} {
		if out, err := exec.Command(tool, "check", "rules", file).CombinedOutput(); err != nil {
			t.Errorf("promtool refuses %s: %v\n%s", filepath.Base(file), err, out)
		}
	}
}

// panelsAsRules is a file of rules, JSON being YAML, with the expressions of all panels.
func panelsAsRules(t *testing.T) []byte {
	t.Helper()
	type rule struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	var rules []rule
	variables := strings.NewReplacer("$instance", ".*", "$__rate_interval", "5m")
	for _, p := range dashboard(t).Panels {
		for _, q := range p.Targets {
			rules = append(rules, rule{fmt.Sprintf("panel_%d_%d", p.ID, len(rules)), variables.Replace(q.Expr)})
		}
	}
	text, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "panels", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// A package that starts on installation must start, where only the host itself gets in.
func TestInstalledConfigurationIsLocal(t *testing.T) {
	c, err := config.Load("relevo.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if w := c.Warnings(); len(w) > 0 {
		t.Errorf("the configuration that is installed gives warnings: %v", w)
	}
	addresses := []config.Address{c.Admin.Address, c.Metrics.Address}
	for _, l := range c.Listeners {
		addresses = append(addresses, l.Address)
	}
	for _, a := range addresses {
		if s := string(a); !strings.HasPrefix(s, "127.0.0.1:") && !strings.HasPrefix(s, "unix:/run/relevo/") {
			t.Errorf("the configuration that is installed listens at %s, want 127.0.0.1 or a socket under /run/relevo", s)
		}
	}
}

// Scripts of packages end an installation when they cannot be read.
func TestScriptsAreShell(t *testing.T) {
	for _, name := range []string{
		"deb/preinst", "deb/postinst", "deb/prerm", "deb/postrm",
		"rpm/pre", "rpm/post", "rpm/posttrans", "rpm/preun", "rpm/postun",
	} {
		if out, err := exec.Command("sh", "-n", name).CombinedOutput(); err != nil {
			t.Errorf("sh cannot read %s: %v\n%s", name, err, out)
		}
		if strings.Contains(read(t, name), "restart") && !strings.Contains(read(t, name), "never a restart") {
			t.Errorf("%s restarts something: an upgrade of the package closes connections then", name)
		}
	}
}

// The examples are installed beside the manual, and a page that one of them names is there.
func TestPagesThatExamplesNameAreInstalled(t *testing.T) {
	installed := regexp.MustCompile(`(?m)^cp docs/\{(.*)\}\.md `).FindStringSubmatch(read(t, "build"))
	if installed == nil {
		t.Fatal("build installs no pages where they are looked for")
	}
	examples, err := filepath.Glob("../examples/*.yaml")
	if err != nil || len(examples) == 0 {
		t.Fatalf("found the examples %v, %v", examples, err)
	}
	for _, example := range examples {
		for _, page := range regexp.MustCompile(`docs/([a-z-]+)\.md`).FindAllStringSubmatch(read(t, example), -1) {
			if !slices.Contains(strings.Split(installed[1], ","), page[1]) {
				t.Errorf("%s names %s, which is in no package", example, page[0])
			}
		}
	}
}
