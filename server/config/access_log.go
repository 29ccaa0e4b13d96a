package config

import (
	"errors"
	"fmt"
	"path"
	"reflect"
	"slices"
	"strings"
)

const (
	maxPath     = 4095 // bytes: the kernel's PATH_MAX without the final zero
	maxTemplate = 4096 // bytes
)

// LogFields are all fields that a record of the access log has, in their order. The caller may change the list.
func LogFields() []LogField {
	words := tree().field(reflect.TypeFor[AccessLog](), "fields").oneOf
	fields := make([]LogField, len(words))
	for i, word := range words {
		fields[i] = LogField(word)
	}
	return fields
}

// checkLogPath refuses what a log cannot be written to.
func checkLogPath(p string) error {
	switch {
	case p == PathStderr || p == PathJournal:
		return nil
	case !strings.HasPrefix(p, "/"):
		return fmt.Errorf("%s is neither %s nor %s nor an absolute path%s", quote(p), PathStderr, PathJournal,
			didYouMean(p, []string{PathStderr, PathJournal}))
	default:
		return checkPath(p, "file")
	}
}

// checkFolder refuses what cannot be the absolute path of a folder.
func checkFolder(p string) error {
	if !strings.HasPrefix(p, "/") {
		return fmt.Errorf("%s is neither an absolute path nor %s", quote(p), none)
	}
	return checkPath(p, "folder")
}

// checkFile refuses what cannot be the absolute path of a file.
func checkFile(p string) error {
	if !strings.HasPrefix(p, "/") {
		return fmt.Errorf("%s is not an absolute path", quote(p))
	}
	return checkPath(p, "file")
}

// checkPath refuses an absolute path that could be written shorter or that the kernel does not take.
func checkPath(p, what string) error {
	switch {
	case path.Clean(p) != p || p == "/":
		return fmt.Errorf("%s is not the plain path of a %s", quote(p), what)
	case len(p) > maxPath:
		return fmt.Errorf("the %s's path has %d bytes; the kernel takes %d", what, len(p), maxPath)
	case strings.ContainsRune(p, 0):
		return fmt.Errorf("%s holds a zero byte", quote(p))
	}
	return nil
}

// checkTemplate refuses a template that does not make one line, names a field that there is not or none at all, or has
// a brace that belongs to no name: {{ and }} stand for one.
func checkTemplate(template string) error {
	switch {
	case len(template) > maxTemplate:
		return fmt.Errorf("the template has %d bytes; it may have %d", len(template), maxTemplate)
	case strings.ContainsFunc(template, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
		return errors.New("the template must be one line without control characters")
	}
	known := tree().field(reflect.TypeFor[AccessLog](), "fields").oneOf
	named := false
	for rest := template; ; {
		at := strings.IndexAny(rest, "{}")
		if at < 0 {
			break
		}
		brace := rest[at]
		if rest = rest[at+1:]; rest != "" && rest[0] == brace {
			rest = rest[1:]
			continue
		}
		name, behind, closed := strings.Cut(rest, "}")
		switch {
		case brace == '}' || !closed:
			return fmt.Errorf("the template has a %c without its partner: a field stands in it as {name}, a brace is written twice", brace)
		case !slices.Contains(known, name):
			return fmt.Errorf("there is no field {%s}%s", clip(name), didYouMean(name, known))
		}
		rest, named = behind, true
	}
	if !named {
		return errors.New("the template names no field: a field stands in it as {name}")
	}
	return nil
}
