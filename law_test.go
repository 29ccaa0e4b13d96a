// Package relevo_test holds the laws of the whole tree: who may import whom, how many interfaces there are, and how many
// files one request crosses.
package relevo_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/relevo-proxy/relevo"

// mayImport says which packages of ours a package may import. Imports go one way, from the composition root down to the
// leaves. A package that is not listed fails, and so does an entry whose package is gone: a new room is a decision, and it
// is made here. An entry "x/..." stands for x and everything under it. Tests may import what they like.
var mayImport = map[string][]string{
	"cmd/relevo": {
		"cmd/relevo/bench", "cmd/relevo/call", "cmd/relevo/demo", "cmd/relevo/echo", "cmd/relevo/man",
		"server", "server/config", "server/revision", "admin", "upgrade", "forwarder/wire", "forwarder/wire/bolt",
		"systemd", // whose journal hears why a process ends
	},
	"cmd/relevo/bench":         {"forwarder/wire", "forwarder/wire/bolt"},
	"cmd/relevo/bench/compare": {"cmd/relevo/bench", "cmd/relevo/bench/yard", "forwarder/wire/bolt"},
	"cmd/relevo/bench/floor":   {},
	"cmd/relevo/bench/idle":    {"cmd/relevo/bench", "cmd/relevo/bench/yard", "cmd/relevo/echo", "forwarder/wire/bolt"},
	"cmd/relevo/bench/scale":   {"cmd/relevo/bench", "cmd/relevo/bench/yard", "cmd/relevo/echo", "forwarder/wire/bolt"},
	"cmd/relevo/bench/yard":    {},
	"cmd/relevo/call":          {"forwarder/wire", "forwarder/wire/bolt"},
	"cmd/relevo/demo": {
		"cmd/relevo/bench", "cmd/relevo/echo", "examples", "server/config",
		"forwarder/wire", "forwarder/wire/bolt", "upgrade",
	},
	"cmd/relevo/echo": {"forwarder/wire", "forwarder/wire/bolt"},
	"cmd/relevo/man":  {},
	"examples":        {},
	"examples/filter": {"forwarder/filter", "forwarder/wire"},

	// The composition root: the only place that knows concrete codecs.
	"server":           {"admin", "server/accesslog", "server/config", "server/revision", "forwarder/...", "upgrade/...", "systemd"},
	"server/accesslog": {"forwarder/stats", "systemd"},
	"server/config":    {},
	"server/revision":  {"server/config"},
	"admin":            {"server/config", "server/revision", "forwarder/stats"},
	"admin/contract":   {}, // for tests of whoever asks the admin door

	// The road, in the order in which a byte travels. It knows no concrete codec, nor who configures it.
	"forwarder": {
		"forwarder/conn", "forwarder/wire", "forwarder/stream", "forwarder/filter", "forwarder/route",
		"forwarder/cluster", "forwarder/stats", "forwarder/worker", "forwarder/health",
	},
	"forwarder/worker":    {},
	"forwarder/conn":      {},
	"forwarder/wire":      {},
	"forwarder/wire/bolt": {"forwarder/wire"},
	"forwarder/stream":    {"forwarder/wire", "forwarder/stats"},
	"forwarder/filter":    {"forwarder/wire", "forwarder/stats"},
	"forwarder/route":     {"forwarder/wire", "forwarder/stats"},
	"forwarder/cluster":   {"forwarder/wire", "forwarder/stats"},
	"forwarder/health":    {"forwarder/cluster"}, // whose endpoints it asks; no protocol
	"forwarder/stats":     {},

	// Filters know the contract, and nothing of each other.
	"forwarder/filter/fault":     {"forwarder/filter", "forwarder/wire", "forwarder/route"},
	"forwarder/filter/header":    {"forwarder/filter", "forwarder/wire"},
	"forwarder/filter/ratelimit": {"forwarder/filter", "forwarder/wire"},
	"forwarder/filter/source":    {"forwarder/filter"},

	// Sources of endpoints know the contract, and nothing of each other nor of the road.
	"forwarder/discovery":      {},
	"forwarder/discovery/dns":  {"forwarder/discovery"},
	"forwarder/discovery/file": {"forwarder/discovery"},

	// What only tests need.
	"admin/admintest": {},

	// What only the making of packages needs.
	"packaging/inventory": {},

	// What one generation says to the next knows nothing of what it carries.
	"upgrade":         {"upgrade/handoff"},
	"upgrade/handoff": {},

	// How the process talks to the systemd that has started it. A leaf.
	"systemd": {},
}

// CONTRIBUTING.md says of each room what is in it: under its path, or under its name in the row of the room that it is in.
func TestRoomsAreListed(t *testing.T) {
	page, err := os.ReadFile("CONTRIBUTING.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, room := range slices.Sorted(maps.Keys(mayImport)) {
		if !strings.Contains(string(page), "`"+room+"`") && !strings.Contains(string(page), "`"+path.Base(room)+"`") {
			t.Errorf("CONTRIBUTING.md does not say what is in %s", room)
		}
	}
}

// road is the files that one request and its reply cross, in the order in which they cross them.
var road = []string{
	"forwarder/conn/conn_read.go",
	"forwarder/downstream.go",
	"forwarder/batch.go",
	"forwarder/wire/bolt/decode.go",
	"forwarder/exchange.go",
	"forwarder/route/table.go",
	"forwarder/cluster/balancer_least_request.go",
	"forwarder/pool.go",
	"forwarder/stream/table.go",
	"forwarder/wire/bolt/patch.go",
	"forwarder/conn/conn_write.go",
	"forwarder/upstream.go",
}

const (
	maxRoad       = 12
	maxInterfaces = 25
)

func TestImportsGoOneWay(t *testing.T) {
	imports := map[string][]string{} // package -> packages of ours that it imports, sorted
	for file, tree := range sources(t) {
		pkg := path.Dir(file)
		seen := imports[pkg]
		for _, spec := range tree.Imports {
			target, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatalf("%s: import %s: %v", file, spec.Path.Value, err)
			}
			if target == module {
				target = module + "/."
			}
			if ours, ok := strings.CutPrefix(target, module+"/"); ok {
				seen = append(seen, ours)
			}
		}
		slices.Sort(seen)
		imports[pkg] = slices.Compact(seen)
	}

	for _, pkg := range slices.Sorted(maps.Keys(imports)) {
		allowed, listed := mayImport[pkg]
		if !listed {
			t.Errorf("package %s is not in mayImport: list it, with the packages of ours that it may import", pkg)
			continue
		}
		for _, target := range imports[pkg] {
			if !slices.ContainsFunc(allowed, func(pattern string) bool { return covers(pattern, target) }) {
				t.Errorf("%s imports %s, which the import law does not allow; it allows %v", pkg, target, allowed)
			}
		}
	}
	for _, pkg := range slices.Sorted(maps.Keys(mayImport)) {
		if _, exists := imports[pkg]; !exists {
			t.Errorf("mayImport lists %s, but there is no such package", pkg)
		}
	}
}

// Interfaces are declared where they are used and are few: a tree in which everything is one cannot be read.
func TestInterfacesAreFew(t *testing.T) {
	var found []string
	for file, tree := range sources(t) {
		ast.Inspect(tree, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				if _, ok := spec.Type.(*ast.InterfaceType); ok {
					found = append(found, fmt.Sprintf("%s: %s", file, spec.Name))
				}
			}
			return true
		})
	}
	slices.Sort(found)
	t.Logf("%d interfaces, at most %d:\n%s", len(found), maxInterfaces, strings.Join(found, "\n"))
	if len(found) > maxInterfaces {
		t.Errorf("%d interfaces are declared, want at most %d", len(found), maxInterfaces)
	}
}

func TestRoadOfOneRequestIsShort(t *testing.T) {
	t.Logf("one request crosses %d files, at most %d:\n%s", len(road), maxRoad, strings.Join(road, "\n"))
	if len(road) > maxRoad {
		t.Errorf("one request crosses %d files, want at most %d", len(road), maxRoad)
	}
	for _, file := range road {
		if _, err := os.Stat(filepath.FromSlash(file)); err != nil {
			t.Errorf("the road names %s, which is not there: %v", file, err)
		}
	}
}

// covers reports whether the pattern, a package or "x/..." for x and everything under it, stands for pkg.
func covers(pattern, pkg string) bool {
	if root, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == root || strings.HasPrefix(pkg, root+"/")
	}
	return pkg == pattern
}

// sources parses every Go file of the tree but tests, whatever its build constraints, under its path from the root.
func sources(t *testing.T) map[string]*ast.File {
	t.Helper()
	trees := map[string]*ast.File{}
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			// What the go command passes over, too.
			base := entry.Name()
			if name != "." && (base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_")) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		tree, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		trees[filepath.ToSlash(name)] = tree
		return nil
	})
	if err != nil {
		t.Fatalf("reading the tree: %v", err)
	}
	if len(trees) == 0 {
		t.Fatal("no Go file found: the laws would hold of nothing")
	}
	return trees
}
