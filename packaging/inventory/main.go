// Command inventory says what a program was built from: a software bill of materials in CycloneDX, and the licenses of all
// modules. It reads the module versions out of the program itself, so that it names what is inside and nothing else.
package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

func main() {
	version := flag.String("version", "", "of the program")
	out := flag.String("out", ".", "folder to write to")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: inventory -version V -out DIR PROGRAM")
		os.Exit(2)
	}
	if err := run(flag.Arg(0), *version, *out); err != nil {
		fmt.Fprintf(os.Stderr, "inventory: %v\n", err)
		os.Exit(1)
	}
}

func run(program, version, out string) error {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return fmt.Errorf("reading what %s was built from: %w", program, err)
	}
	code, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	made, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("reading SOURCE_DATE_EPOCH: %w", err)
	}
	text, err := json.MarshalIndent(bill(info, version, sha256.Sum256(code), time.Unix(made, 0)), "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(out, "sbom.cdx.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	licenses, err := licenses(info)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "third-party-licenses"), licenses, 0o644)
}

// The parts of a CycloneDX 1.6 document that are used here.
type (
	document struct {
		Format       string       `json:"bomFormat"`
		Spec         string       `json:"specVersion"`
		Serial       string       `json:"serialNumber"`
		Version      int          `json:"version"`
		Metadata     metadata     `json:"metadata"`
		Components   []component  `json:"components"`
		Dependencies []dependency `json:"dependencies"`
	}
	metadata struct {
		Timestamp string    `json:"timestamp"`
		Component component `json:"component"`
	}
	component struct {
		Ref        string     `json:"bom-ref"`
		Type       string     `json:"type"`
		Name       string     `json:"name"`
		Version    string     `json:"version"`
		PURL       string     `json:"purl"`
		Hashes     []hash     `json:"hashes,omitempty"`
		Properties []property `json:"properties,omitempty"`
	}
	hash struct {
		Algorithm string `json:"alg"`
		Content   string `json:"content"`
	}
	property struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	dependency struct {
		Ref string   `json:"ref"`
		On  []string `json:"dependsOn"`
	}
)

// bill is the document. Its serial number follows from the program, so that the same program gives the same bytes.
func bill(info *debug.BuildInfo, version string, sum [sha256.Size]byte, made time.Time) document {
	main := module(info.Main.Path, version)
	main.Type, main.Hashes = "application", []hash{{"SHA-256", hex.EncodeToString(sum[:])}}
	for _, s := range info.Settings {
		main.Properties = append(main.Properties, property{"go:build:" + s.Key, s.Value})
	}
	d := document{
		Format: "CycloneDX", Spec: "1.6", Version: 1, Serial: uuid(sum),
		Metadata:   metadata{Timestamp: made.UTC().Format(time.RFC3339), Component: main},
		Components: []component{module("std", strings.TrimPrefix(info.GoVersion, "go"))},
	}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		c := module(m.Path, m.Version)
		if m.Sum != "" {
			c.Properties = []property{{"go:sum", m.Sum}}
		}
		d.Components = append(d.Components, c)
	}
	all := dependency{Ref: main.Ref}
	for _, c := range d.Components {
		all.On = append(all.On, c.Ref)
	}
	d.Dependencies = []dependency{all}
	return d
}

func module(path, version string) component {
	purl := "pkg:golang/" + path + "@" + version
	return component{Ref: purl, Type: "library", Name: path, Version: version, PURL: purl}
}

// uuid is a UUID of version 8, whose bits are the maker's business.
func uuid(sum [sha256.Size]byte) string {
	sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}

// licenses are the texts of the licenses of Go and of all modules: most of them ask for being passed on with a program.
func licenses(info *debug.BuildInfo) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("What is compiled into relevo beside its own code, and under which terms.\n")
	root, err := goList("env", "GOROOT")
	if err != nil {
		return nil, err
	}
	if err := copyTexts(&b, "Go, "+info.GoVersion+", its library and runtime", root); err != nil {
		return nil, err
	}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		dir, err := goList("list", "-m", "-f", "{{.Dir}}", m.Path)
		if err != nil {
			return nil, err
		}
		if err := copyTexts(&b, m.Path+" "+m.Version, dir); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// goList is what the Go tool says, of which it is one line.
func goList(args ...string) (string, error) {
	out, err := exec.Command("go", args...).Output()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return "", fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(e.Stderr))
	}
	return strings.TrimSpace(string(out)), err
}

// copyTexts writes what a folder has of license texts and notices. A module without any cannot be passed on.
func copyTexts(b *bytes.Buffer, title, dir string) error {
	names, err := texts(dir)
	if err != nil {
		return fmt.Errorf("looking for the license of %s: %w", title, err)
	}
	if len(names) == 0 {
		return fmt.Errorf("%s, in %s, has no license text", title, dir)
	}
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		fmt.Fprintf(b, "\n%s\n%s: %s\n\n%s\n", strings.Repeat("=", 78), title, name, bytes.TrimSpace(text))
	}
	return nil
}

func texts(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		upper := strings.ToUpper(e.Name())
		for _, word := range []string{"LICENSE", "LICENCE", "COPYING", "NOTICE", "PATENTS"} {
			if strings.HasPrefix(upper, word) && e.Type().IsRegular() {
				names = append(names, e.Name())
				break
			}
		}
	}
	return names, nil
}
