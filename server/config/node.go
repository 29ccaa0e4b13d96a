package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v2"
)

type kind uint8

// The kinds of node. The zero node is null.
const (
	nullNode kind = iota
	boolNode
	numberNode
	textNode
	listNode
	objectNode
)

var kindNames = [...]string{"null", "a boolean", "a number", "text", "a list", "a mapping"}

func (k kind) String() string { return kindNames[k] }

// node is a value of a file before anything is known of what it ought to be. A scalar keeps its text as
// written: YAML reads 010 as eight, and the key `on` as a boolean.
type node struct {
	kind   kind
	text   string
	items  []node
	fields map[string]node
	// duplicates are the keys of an object that the file gives more than once, and problems its other keys
	// that are none.
	duplicates []string
	problems   []string
}

// parseNode reads one document of YAML or JSON; an empty one is null. It asks go.yaml.in/yaml for nodes, not sigs.k8s.io/yaml for
// JSON: that would make the key `on` into "true", and leave a second document unread.
func parseNode(data []byte) (node, error) {
	if err := checkMarks(data); err != nil {
		return node{}, err
	}
	// YAML reads nearly all JSON: not the escapes of characters outside the basic plane.
	if json.Valid(data) {
		v, err := parseJSON(data)
		if err != nil {
			return node{}, fmt.Errorf("reading JSON: %w", err)
		}
		return jsonNode(v), nil
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.SetStrict(true)
	var first, second node
	if err := d.Decode(&first); errors.Is(err, io.EOF) {
		return node{}, nil
	} else if err != nil {
		return node{}, yamlError(err)
	}
	if err := d.Decode(&second); err == nil {
		return node{}, errors.New("the file holds more than one YAML document")
	} else if !errors.Is(err, io.EOF) {
		return node{}, yamlError(err)
	}
	return first, nil
}

// maxMarks bounds the characters in front of a value, and so the values: each takes up to 400 bytes of memory while it is read, and no more
// than two of text. 30,000 endpoints have about half a million at most.
const maxMarks = 1_000_000

// checkMarks refuses what has more of them.
func checkMarks(data []byte) error {
	marks := 0
	for _, c := range data {
		switch c {
		case ',', ':', '-', '?', '[', '{':
			marks++
		}
	}
	if marks > maxMarks {
		return fmt.Errorf("there are %d of the characters , : - ? [ { in it; there may be %d", marks, maxMarks)
	}
	return nil
}

func yamlError(err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if strings.HasSuffix(text, "found character that cannot start any token") {
		text += " (a tab, perhaps? YAML is indented by spaces)"
	}
	return fmt.Errorf("reading YAML: %s", strings.Join(strings.Fields(text), " "))
}

var (
	duplicateKey = regexp.MustCompile(`^line [0-9]+: key (".*") already set in map$`)
	faultyKey    = regexp.MustCompile(`^(line [0-9]+): cannot unmarshal .* into string$`)
)

// UnmarshalYAML fills n. It asks for one shape after the other; asking for a wrong one costs little. A null
// does not come here and leaves the zero node.
func (n *node) UnmarshalYAML(unmarshal func(any) error) error {
	if err := unmarshal(&n.text); err == nil {
		return n.scalar(unmarshal)
	} else if !isTypeError(err) {
		return err
	}
	err := unmarshal(&n.fields)
	if !isTypeError(err) && err != nil {
		return err
	}
	if n.fields != nil {
		n.kind = objectNode
		n.faultyKeys(err)
		return nil
	}
	n.kind = listNode
	return unmarshal(&n.items)
}

// UnmarshalText fills n from the text "null" or "~" in quotes, which the decoder holds for nulls at first and so
// does not bring to UnmarshalYAML.
func (n *node) UnmarshalText(text []byte) error {
	n.kind, n.text = textNode, string(text)
	return nil
}

func (n *node) scalar(unmarshal func(any) error) error {
	var v any
	if err := unmarshal(&v); err != nil {
		return err
	}
	switch v.(type) {
	case nil:
	case bool:
		n.kind = boolNode
	case string:
		n.kind = textNode
	default:
		n.kind = numberNode
	}
	return nil
}

func isTypeError(err error) bool {
	_, ok := errors.AsType[*yaml.TypeError](err)
	return ok
}

func (n *node) faultyKeys(err error) {
	typeErr, ok := errors.AsType[*yaml.TypeError](err)
	if !ok {
		return
	}
	for _, text := range typeErr.Errors {
		if m := duplicateKey.FindStringSubmatch(text); m != nil {
			if key, err := strconv.Unquote(m[1]); err == nil {
				n.duplicates = append(n.duplicates, key)
				continue
			}
		}
		n.problems = append(n.problems, faultyKey.ReplaceAllString(text, "$1: a key must be text"))
	}
}

// parseJSON reads one valid JSON value. Its objects keep their order and their duplicate keys.
func parseJSON(data []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	return nextJSON(d)
}

func nextJSON(d *json.Decoder) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch token {
	case json.Delim('{'):
		object := yaml.MapSlice{}
		for d.More() {
			key, err := d.Token()
			if err != nil {
				return nil, err
			}
			value, err := nextJSON(d)
			if err != nil {
				return nil, err
			}
			object = append(object, yaml.MapItem{Key: key, Value: value})
		}
		_, err = d.Token()
		return object, err
	case json.Delim('['):
		list := []any{}
		for d.More() {
			value, err := nextJSON(d)
			if err != nil {
				return nil, err
			}
			list = append(list, value)
		}
		_, err = d.Token()
		return list, err
	}
	return token, nil
}

func jsonNode(v any) node {
	switch v := v.(type) {
	case bool:
		return node{kind: boolNode, text: strconv.FormatBool(v)}
	case json.Number:
		return node{kind: numberNode, text: v.String()}
	case string:
		return node{kind: textNode, text: v}
	case []any:
		n := node{kind: listNode, items: make([]node, len(v))}
		for i := range v {
			n.items[i] = jsonNode(v[i])
		}
		return n
	case yaml.MapSlice:
		n := node{kind: objectNode, fields: make(map[string]node, len(v))}
		for _, item := range v {
			key, _ := item.Key.(string)
			if _, ok := n.fields[key]; ok {
				n.duplicates = append(n.duplicates, key)
				continue
			}
			n.fields[key] = jsonNode(item.Value)
		}
		return n
	}
	return node{}
}
