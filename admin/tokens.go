package admin

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode"
)

// A file of tokens has a line for each: its name, its role, the SHA-256 of its secret in hexadecimal, and the paths that it
// is for, none for all. An empty line means nothing, nor does one that begins with #.

// Role is what a token is good for.
type Role string

// The roles.
const (
	RoleRead  Role = "read"
	RoleWrite Role = "write" // and to read
)

const (
	maxTokenLines = 1000
	maxTokenName  = 64
	// secretBytes is how much of a secret is random: more than anybody can try, so that one round of a hash hides it.
	secretBytes = 32
	// secretPrefix lets tools that look for secrets in files find them.
	secretPrefix = "relevo_"
)

// token is one line of the file.
type token struct {
	name  string
	role  Role
	sum   [sha256.Size]byte
	paths [][]string // by their segments; none: everywhere
}

// NewToken makes a secret, and the line that lets it in.
func NewToken(name string, role Role, paths []string) (secret, line string, err error) {
	random := make([]byte, secretBytes)
	_, _ = rand.Read(random) // it never fails
	secret = secretPrefix + base64.RawURLEncoding.EncodeToString(random)
	sum := sha256.Sum256([]byte(secret))
	fields := append([]string{name, string(role), hex.EncodeToString(sum[:])}, paths...)
	if _, errs := parseToken(fields); len(errs) > 0 {
		return "", "", errors.Join(errs...)
	}
	return secret, strings.Join(fields, " "), nil
}

// loadTokens reads a file. The error is a *config.Errors with all that is wrong.
func loadTokens(path string) ([]token, error) {
	var all faults
	add := func(format string, args ...any) { all.add("tokens_file", "%s", fmt.Sprintf(format, args...)) }
	data, info, err := readCredentials(path)
	if err != nil {
		add("%s", err)
		return nil, all.error()
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		add("%s has the mode %04o: others than its owner could let themselves in; chmod go-w", path, mode)
	}
	list, errs := parseTokens(data)
	for _, err := range errs {
		add("%s: %s", path, err)
	}
	return list, all.error()
}

// parseTokens returns an error for each fault, with the number of the line.
func parseTokens(data []byte) (list []token, errs []error) {
	names, sums := map[string]int{}, map[[sha256.Size]byte]int{}
	n := 0
	for text := range bytes.Lines(data) {
		n++
		if n > maxTokenLines {
			return list, append(errs, fmt.Errorf("there are more than %d lines", maxTokenLines))
		}
		line := strings.TrimSpace(string(text))
		if line == "" || line[0] == '#' {
			continue
		}
		t, faults := parseToken(strings.Fields(line))
		for _, err := range faults {
			errs = append(errs, fmt.Errorf("line %d: %w", n, err))
		}
		if len(faults) > 0 {
			continue
		}
		if first, ok := names[t.name]; ok {
			errs = append(errs, fmt.Errorf("line %d: %s is the name of line %d as well", n, t.name, first))
		}
		if first, ok := sums[t.sum]; ok {
			errs = append(errs, fmt.Errorf("line %d: it is the token of line %d", n, first))
		}
		names[t.name], sums[t.sum] = n, n
		list = append(list, t)
	}
	return list, errs
}

// parseToken says of what is wrong where it is, and not what it is: it may be a secret that came into the wrong place.
func parseToken(fields []string) (t token, errs []error) {
	if len(fields) < 3 {
		return t, []error{errors.New("want NAME ROLE SHA256 [PATH...]")}
	}
	t.name, t.role = fields[0], Role(fields[1])
	if t.name == "" || len(t.name) > maxTokenName || strings.Trim(t.name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") != "" {
		errs = append(errs, fmt.Errorf("the name is not valid: 1 to %d of the characters A-Z a-z 0-9 . _ -", maxTokenName))
	}
	if t.role != RoleRead && t.role != RoleWrite {
		errs = append(errs, fmt.Errorf("the role is neither %s nor %s", RoleRead, RoleWrite))
	}
	if n, err := hex.Decode(t.sum[:], []byte(fields[2][:min(len(fields[2]), 2*sha256.Size)])); err != nil || n != sha256.Size || len(fields[2]) != 2*sha256.Size {
		errs = append(errs, fmt.Errorf("the hash is no SHA-256 of %d hexadecimal digits", 2*sha256.Size))
	}
	for i, path := range fields[3:] {
		list, plain := segments(path)
		if !plain || path[0] != '/' || strings.ContainsFunc(path, unicode.IsSpace) {
			errs = append(errs, fmt.Errorf("path %d is not as in /v1/config/clusters/order: with a slash first and none last, no part that is empty, . or .., and no space", i+1))
		}
		t.paths = append(t.paths, list)
	}
	return t, errs
}

// segments are the parts of an escaped path between slashes, each decoded for itself, so that a slash that is a part of a name
// stays one. plain says that nobody can take it for another path: no part is empty, . or .., not even when escaped slashes
// were taken for slashes.
func segments(escaped string) (list []string, plain bool) {
	plain = true
	for part := range strings.SplitSeq(strings.TrimPrefix(escaped, "/"), "/") {
		name, err := url.PathUnescape(part)
		plain = plain && err == nil
		for word := range strings.SplitSeq(name, "/") {
			plain = plain && word != "" && word != "." && word != ".."
		}
		list = append(list, name)
	}
	return list, plain
}

// begins says whether path is prefix, or something below it.
func begins(path, prefix []string) bool {
	return len(path) >= len(prefix) && slices.Equal(path[:len(prefix)], prefix)
}

// covers says whether the token is for a path, which must be plain unless the token is for all.
func (t *token) covers(escaped string) bool {
	if len(t.paths) == 0 {
		return true
	}
	path, plain := segments(escaped)
	return plain && slices.ContainsFunc(t.paths, func(prefix []string) bool { return begins(path, prefix) })
}

// find is the token with this secret. It takes as long whichever it is, and whether there is one.
func find(list []token, secret string) (t token, ok bool) {
	sum := sha256.Sum256([]byte(secret))
	at := -1
	for i := range list {
		at = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(sum[:], list[i].sum[:]), i, at)
	}
	if at < 0 {
		return t, false
	}
	return list[at], true
}
