package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const root = "../.."

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// sections are the headings of docs/configuration.md, by the type that they describe.
var sections = map[reflect.Type]string{
	reflect.TypeFor[Config]():     "## The top level",
	reflect.TypeFor[Listener]():   "## listeners",
	reflect.TypeFor[RouteTable](): "## routes",
	reflect.TypeFor[Rule]():       "### routes[].rules",
	reflect.TypeFor[Match]():      "### routes[].rules[].match",
	reflect.TypeFor[Retry]():      "### routes[].rules[].retry",
	reflect.TypeFor[Cluster]():    "## clusters",
	reflect.TypeFor[Endpoint]():   "### clusters[].endpoints",
	reflect.TypeFor[Discovery]():  "### clusters[].discovery",
	reflect.TypeFor[Admin]():      "## admin",
	reflect.TypeFor[AdminTCP]():   "### admin.tcp",
	reflect.TypeFor[TLS]():        "### admin.tcp.tls",
	reflect.TypeFor[Metrics]():    "## metrics",
	reflect.TypeFor[Log]():        "## log",

	reflect.TypeFor[Share]():            "### routes[].rules[].clusters",
	reflect.TypeFor[DirectReply]():      "### routes[].rules[].reply",
	reflect.TypeFor[HeaderEdits]():      "### Header changes",
	reflect.TypeFor[ConnectionFilter](): "## connection_filters",
	reflect.TypeFor[SourceFilter]():     "### connection_filters: source",
	reflect.TypeFor[Filter]():           "## filters",
	reflect.TypeFor[HeaderFilter]():     "### filters: headers",
	reflect.TypeFor[FaultFilter]():      "### filters: fault",
	reflect.TypeFor[Delay]():            "### filters: fault, delay",
	reflect.TypeFor[Abort]():            "### filters: fault, abort",
	reflect.TypeFor[RateLimitFilter]():  "### filters: rate_limit",
	reflect.TypeFor[Workers]():          "## workers",
	reflect.TypeFor[Upgrade]():          "## upgrade",
	reflect.TypeFor[AccessLog]():        "## access_log",
	reflect.TypeFor[Overload]():         "## overload",
}

// derived are the fields whose default is not a constant, or comes from elsewhere in the tree.
var derived = map[string]string{
	"## The top level max_buffered":      "absent: a quarter of the memory limit",
	"## listeners routes":                "the only route table",
	"### routes[].rules name":            "`rule-N`",
	"## The top level admin":             "absent: no REST API",
	"## The top level metrics":           "absent: no metrics",
	"### routes[].rules match":           "absent: everything",
	"### routes[].rules[].match service": "absent: every service",
	"### routes[].rules[].match header":  "absent: any header",
	"## The top level log":               "its fields'",
	"### routes[].rules retry":           "its fields'",
	"### clusters[].discovery servers":   "absent: those of `/etc/resolv.conf`",

	"## The top level workers":          "its fields'",
	"## clusters hash_header":           "absent: the client's address",
	"## The top level upgrade":          "its fields'",
	"## The top level overload":         "its fields'",
	"## overload memory_limit":          "absent: `GOMEMLIMIT`, or the control group's",
	"## overload descriptor_reserve":    "absent: what suits the limit",
	"## The top level runtime_dir":      "absent: `$RUNTIME_DIRECTORY`",
	"## The top level state_dir":        "absent: `$STATE_DIRECTORY`",
	"## The top level access_log":       "absent: no access log",
	"## listeners connection_filters":   "absent: none",
	"## listeners filters":              "absent: none",
	"### routes[].rules headers":        "absent: no change",
	"### routes[].rules filters":        "absent: none",
	"### routes[].rules[].match method": "absent: every method",
	"### Header changes set":            "absent: none",
	"### Header changes add":            "absent: none",
	"### Header changes remove":         "absent: none",
	"### filters: fault match":          "absent: everything",
	"### filters: rate_limit by":        "`listener` at a listener, `route` at a rule",
	"## admin mode":                     "absent: `0660`",
	"## admin group":                    "absent: the process's",
	"### admin.tcp tls":                 "absent: no TLS",
	"### admin.tcp tokens_file":         "absent: no tokens",
	"### admin.tcp.tls client_ca_file":  "absent: no certificate lets anybody in",
	"## workers max":                    "absent: 256 for each CPU",
	"## access_log fields":              "all of them",
}

// listed are the bounds that are too long for a cell. What they stand for is listed elsewhere in the document.
var listed = map[string]string{
	"status": "a status",
	"fields": "those below, each once",
}

func TestDocumentNamesEveryField(t *testing.T) {
	text := read(t, filepath.Join(root, "docs/configuration.md"))
	documented := 0
	for typ, fields := range tree() {
		heading, ok := sections[typ]
		if !ok {
			t.Errorf("no section of docs/configuration.md is known to describe %v", typ)
			continue
		}
		_, section, ok := strings.Cut(text, "\n"+heading+"\n")
		if !ok {
			t.Errorf("docs/configuration.md has no heading %q", heading)
			continue
		}
		section, _, _ = strings.Cut(section, "\n#")
		documented += strings.Count(section, "\n| `")
		for i := range fields {
			f := &fields[i]
			_, row, ok := strings.Cut(section, "\n| `"+f.name+"` | ")
			if !ok {
				t.Errorf("%s: the field %s is missing", heading, f.name)
				continue
			}
			row, _, _ = strings.Cut(row, "\n")
			checkRow(t, heading, f, strings.Split(row, "|"))
			documented--
		}
	}
	if documented != 0 {
		t.Errorf("docs/configuration.md describes %d fields that do not exist", documented)
	}
}

var (
	markdownLink = regexp.MustCompile(`\[([^]]*)\]\([^)]*\)`)
	codeMark     = strings.NewReplacer("`", "")
)

// What the JSON Schema says of each field is what the document says.
func TestMeanings(t *testing.T) {
	text := read(t, filepath.Join(root, "docs/configuration.md"))
	said := map[string]string{}
	for typ, fields := range tree() {
		_, section, _ := strings.Cut(text, "\n"+sections[typ]+"\n")
		for _, f := range fields {
			_, row, _ := strings.Cut(section, "\n| `"+f.name+"` | ")
			row, _, _ = strings.Cut(row, "\n")
			cells := strings.Split(row, "|")
			if len(cells) < 4 {
				t.Fatalf("%s: there is no row of %s", sections[typ], f.name)
			}
			meaning := markdownLink.ReplaceAllString(strings.TrimSpace(cells[3]), "$1")
			meaning = strings.ToUpper(meaning[:1]) + strings.TrimSuffix(meaning[1:], ".") + "."
			meaning = codeMark.Replace(meaning)
			said[typ.Name()+"."+f.name] = meaning
		}
	}
	want, err := json.MarshalIndent(said, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "meanings.json", string(want)+"\n")
}

// Words that a field takes are all in the document, even where its row has no room for them.
func TestDocumentListsWords(t *testing.T) {
	text := read(t, filepath.Join(root, "docs/configuration.md"))
	for typ, fields := range tree() {
		for _, f := range fields {
			for _, word := range f.oneOf {
				if !strings.Contains(text, "`"+word+"`") {
					t.Errorf("docs/configuration.md does not list %s, which %s of %v may be", word, f.name, typ)
				}
			}
		}
	}
}

// Every block of YAML in the document is right where it belongs.
func TestDocumentedExamples(t *testing.T) {
	const frame = "clusters: [{name: order, protocol: bolt, endpoints: [{address: 'a:1'}]}, {name: order-next, protocol: bolt, endpoints: [{address: 'a:1'}]}]\n"
	const listener = "listeners:\n- name: in\n  address: ':0'\n  protocol: bolt\n"
	text := read(t, filepath.Join(root, "docs/configuration.md"))
	tried := 0
	for i, block := range strings.Split(text, "```") {
		block, isYAML := strings.CutPrefix(block, "yaml\n")
		if i%2 == 0 || !isYAML {
			continue
		}
		tried++
		key, _, _ := strings.Cut(block, ":")
		indented := "  " + strings.ReplaceAll(strings.TrimSpace(block), "\n", "\n  ") + "\n"
		var files []string
		switch key {
		case "rules":
			files = []string{frame + listener + "routes:\n- name: r\n" + indented}
		case "match":
			files = []string{frame + listener + "routes: \n- name: r\n  rules:\n  - cluster: order\n  " + indented}
		case "filters":
			files = []string{
				frame + listener + "routes: [{name: r, rules: [{cluster: order}]}]\n",
				frame + listener + "routes: \n- name: r\n  rules:\n  - cluster: order\n  " + strings.ReplaceAll(indented, "\n ", "\n   "),
			}
			files[0] = strings.Replace(files[0], listener, listener+indented, 1)
		case "connection_filters":
			files = []string{frame + listener + indented + "routes: [{name: r, rules: [{cluster: order}]}]\n"}
		default:
			for line := range strings.Lines(block) {
				files = append(files, frame+listener+"routes: [{name: r, rules: [{cluster: order}]}]\n"+line)
			}
		}
		for _, file := range files {
			if _, err := Parse([]byte(file)); err != nil {
				t.Errorf("an example of docs/configuration.md is wrong:\n%v\n%s", err, file)
			}
		}
	}
	if tried < 7 {
		t.Errorf("docs/configuration.md has %d examples, want at least 7", tried)
	}
}

func checkRow(t *testing.T, heading string, f *field, cells []string) {
	t.Helper()
	if len(cells) < 4 {
		t.Errorf("%s: the row of %s has %d cells, want 5", heading, f.name, len(cells)+1)
		return
	}
	kind, def, bounds := cells[0], strings.TrimSpace(cells[1]), strings.TrimSpace(cells[2])
	want, isDerived := derived[heading+" "+f.name]
	switch {
	case isDerived:
	case f.one:
		want = "one of these"
	case f.some:
		want = "at least one of these"
	case f.same != "":
		want = "the same as `" + f.same + "`"
	case f.required && f.when != "":
		want = "required with `" + f.when + ": " + f.is + "`"
	case f.required:
		want = "required"
	default:
		want = "`" + f.def + "`"
	}
	if def != want {
		t.Errorf("%s: the default of %s is given as %s, want %s", heading, f.name, def, want)
	}
	switch {
	case f.most > 0:
		want = "at most " + strconv.Itoa(f.most)
	case len(f.oneOf) > 0 && listed[f.name] != "":
		want = listed[f.name]
	case f.minimum != "":
		want = "`" + f.minimum + "` to `" + f.maximum + "`"
	case len(f.oneOf) > 0:
		want = "`" + strings.Join(f.oneOf, "`, `") + "`"
	default:
		want = bounds
	}
	if bounds != want {
		t.Errorf("%s: the bounds of %s are given as %s, want %s", heading, f.name, bounds, want)
	}
	if got := strings.Contains(kind, "`none`"); got != f.none {
		t.Errorf("%s: %s says that none is allowed: %v, want %v", heading, f.name, got, f.none)
	}
	if only := "Only with `" + f.when + ": " + f.is + "`."; f.when != "" && !strings.Contains(cells[3], only) {
		t.Errorf("%s: the row of %s does not say %q", heading, f.name, only)
	}
}

func TestExamplesLoad(t *testing.T) {
	var files []string
	for _, pattern := range []string{"examples/*", "examples/sidecar/*"} {
		matches, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, matches...)
	}
	loaded := 0
	for _, file := range files {
		if filepath.Ext(file) != ".yaml" {
			continue
		}
		loaded++
		c, err := Load(file)
		if err != nil {
			t.Errorf("an example does not load:\n%v", err)
			continue
		}
		for _, w := range c.Warnings() {
			if filepath.Base(file) == "full.yaml" && strings.HasSuffix(w.Pointer, "/match/method") {
				continue // every field is in there, this one too
			}
			t.Errorf("%s: %v", file, w)
		}
	}
	if loaded < 5 {
		t.Errorf("%d examples loaded, want at least 5", loaded)
	}
}

func TestFullExample(t *testing.T) {
	text := read(t, filepath.Join(root, "examples/full.yaml"))
	full, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}

	var rest []string
	claims := 0
	for line := range strings.Lines(text) {
		if code, comment, _ := strings.Cut(line, "# "); strings.TrimSpace(code) != "" && comment == "" {
			t.Errorf("a line of examples/full.yaml has no comment: %s", line)
		} else if strings.HasPrefix(comment, "default;") {
			claims++
			continue
		}
		rest = append(rest, line)
	}
	if claims < 30 {
		t.Errorf("examples/full.yaml names %d defaults, want all of them", claims)
	}
	defaults, err := Parse([]byte(strings.Join(rest, "")))
	if err != nil {
		t.Fatalf("examples/full.yaml without the lines that claim a default: %v", err)
	}
	if diff := cmp.Diff(defaults, full); diff != "" {
		t.Errorf("examples/full.yaml claims defaults that are none (-default +claimed):\n%s", diff)
	}

	for typ, fields := range tree() {
		for _, f := range fields {
			if !regexp.MustCompile(`(?m)^[ #-]*([^#]*[{ ])?` + f.name + `:`).MatchString(text) {
				t.Errorf("examples/full.yaml lacks %s of %v", f.name, typ)
			}
		}
	}
}
