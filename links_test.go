package relevo_test

import (
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

var (
	codeSpan = regexp.MustCompile("`+[^`]+`+")
	linkText = regexp.MustCompile(`\[([^\[\]]*)\]\([^()]*\)`)
	linkTo   = regexp.MustCompile(`\]\(([^()\s]+)\)`)
)

// A link in a page leads to a file of the tree, or to a folder, and behind its # to a heading there.
func TestLinksLeadSomewhere(t *testing.T) {
	pages := markdown(t)
	for _, page := range slices.Sorted(maps.Keys(pages)) {
		for number, line := range prose(pages[page]) {
			for _, link := range linkTo.FindAllStringSubmatch(codeSpan.ReplaceAllString(line, ""), -1) {
				if err := leads(pages, page, link[1]); err != nil {
					t.Errorf("%s:%d: %s: %v", page, number+1, link[1], err)
				}
			}
		}
	}
}

// leads says what is wrong with a link of the page, if anything is. Whether another host has what it asks of it is not for tests.
func leads(pages map[string]string, page, link string) error {
	to, err := url.Parse(link)
	if err != nil || to.IsAbs() {
		return err
	}
	target := page
	if to.Path != "" {
		target = path.Join(path.Dir(page), to.Path)
	}
	if _, err := os.Stat(filepath.FromSlash(target)); err != nil {
		return err
	}
	if to.Fragment == "" {
		return nil
	}
	text, isPage := pages[target]
	if !isPage {
		return fmt.Errorf("%s has no headings", target)
	}
	if !slices.Contains(anchors(text), to.Fragment) {
		return fmt.Errorf("%s has no heading #%s; it has %v", target, to.Fragment, anchors(text))
	}
	return nil
}

func TestAnchorsAreAsOnGitHub(t *testing.T) {
	page := "# One, two\n## `max_requests` of a *rule*\n```\n# no heading\n```\n## See [the page](x.md)!\n# One two\n#none\n### clusters[].health_check\n"
	want := []string{"one-two", "max_requests-of-a-rule", "see-the-page", "one-two-1", "clustershealth_check"}
	if got := anchors(page); !slices.Equal(got, want) {
		t.Errorf("anchors are %q, want %q", got, want)
	}
}

// anchors are what GitHub calls the headings of a page, in their order.
func anchors(text string) []string {
	var found []string
	seen := map[string]int{}
	for _, line := range prose(text) {
		heading := strings.TrimLeft(line, "#")
		if len(heading) == len(line) || !strings.HasPrefix(heading, " ") {
			continue
		}
		heading = linkText.ReplaceAllString(strings.TrimSpace(heading), "$1")
		anchor := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-', r == '_', unicode.IsLetter(r), unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, heading)
		if times := seen[anchor]; times > 0 {
			found = append(found, fmt.Sprintf("%s-%d", anchor, times))
		} else {
			found = append(found, anchor)
		}
		seen[anchor]++
	}
	return found
}

// prose is the lines of a page; those in a block of code are empty.
func prose(text string) []string {
	lines := strings.Split(text, "\n")
	fenced := false
	for i, line := range lines {
		fence := strings.HasPrefix(strings.TrimSpace(line), "```")
		if fence {
			fenced = !fenced
		}
		if fence || fenced {
			lines[i] = ""
		}
	}
	return lines
}

// markdown is every page of the tree, under its path from the root.
func markdown(t *testing.T) map[string]string {
	t.Helper()
	pages := map[string]string{}
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name != "." && (entry.Name() == "testdata" || strings.HasPrefix(entry.Name(), ".")) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".md") {
			return nil
		}
		text, err := os.ReadFile(name)
		pages[filepath.ToSlash(name)] = string(text)
		return err
	})
	if err != nil {
		t.Fatalf("reading the pages: %v", err)
	}
	if len(pages) == 0 {
		t.Fatal("no page found: their links would all be right")
	}
	return pages
}
