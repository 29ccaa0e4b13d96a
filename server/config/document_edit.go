package config

import (
	"maps"
	"slices"
)

// Put makes value, one of YAML or JSON, the part at path, whether there was one or not. Mappings on the way that are
// not there are made; a new item goes behind the last of its list. An item that does not say its key gets it from the
// path; one that says another is refused. Its error is a *PathError, or an *Errors where value cannot be read.
func (d *Document) Put(path string, value []byte) (*Document, error) {
	s, err := d.locate(path)
	if err != nil {
		return nil, err
	}
	n, err := parseValue(value)
	if err != nil {
		return nil, err
	}
	if n.kind == nullNode {
		return nil, s.fault(NotEditable, "null is no value: delete it instead")
	}
	if n, err = s.keyed(n, true); err != nil {
		return nil, err
	}
	return s.set(n)
}

// Patch changes the part at path as patch says, a JSON merge patch (RFC 7386) in YAML or JSON: what it gives replaces,
// null deletes, lists are replaced as a whole. A field that is not there is made, an item must be there and may not
// change its key. Errors are those of Put.
func (d *Document) Patch(path string, patch []byte) (*Document, error) {
	s, err := d.locate(path)
	if err != nil {
		return nil, err
	}
	if len(s.steps) > 0 && !s.exists && s.steps[len(s.steps)-1].index >= 0 {
		return nil, s.absentItem()
	}
	p, err := parseValue(patch)
	if err != nil {
		return nil, err
	}
	if p.kind == nullNode {
		return nil, s.fault(NotEditable, "the patch is null, which deletes: delete it instead")
	}
	n, err := s.keyed(mergePatch(s.node, p), false)
	if err != nil {
		return nil, err
	}
	return s.set(n)
}

// Delete takes away the part at path, so that its default holds again. Its error is a *PathError.
func (d *Document) Delete(path string) (*Document, error) {
	s, err := d.find(path)
	if err != nil {
		return nil, err
	}
	if len(s.steps) == 0 {
		return nil, s.fault(NotEditable, "the whole configuration cannot be deleted")
	}
	last := s.steps[len(s.steps)-1]
	s.steps = s.steps[:len(s.steps)-1]
	return s.set(last.without())
}

// parseValue reads one value of YAML or JSON.
func parseValue(data []byte) (node, error) {
	if len(data) > maxFile {
		return node{}, wrong("the value is larger than %v", Size(maxFile))
	}
	n, err := parseNode(data)
	if err != nil {
		return node{}, wrong("%s", err)
	}
	return n, nil
}

// keyed is n with the key that the path names, where n is to be an item of a list that has keys. It is given the key if
// fill, and refused where it has another.
func (s *spot) keyed(n node, fill bool) (node, error) {
	if len(s.steps) == 0 {
		return n, nil
	}
	last := s.steps[len(s.steps)-1]
	f := keyField(last.element)
	if f == nil {
		return n, nil
	}
	if n.kind != objectNode {
		return n, s.fault(KeyDiffers, "must be a mapping of fields to values, not %s", n.kind)
	}
	if _, given := n.fields[f.name]; !given && fill {
		if key, ok := itemKey(n, last.element, last.index); !ok || key != last.key {
			n.fields = with(n.fields, f.name, node{kind: textNode, text: last.key})
		}
	}
	if key, ok := itemKey(n, last.element, last.index); !ok || key != last.key {
		said := "none"
		if name, given := n.fields[f.name]; given {
			said = clip(name.text)
		}
		return n, s.fault(KeyDiffers, "the %s in the value is %s: it must be that of the path", f.name, said)
	}
	return n, nil
}

// set is the document with n where s is.
func (s *spot) set(n node) (*Document, error) {
	for _, step := range slices.Backward(s.steps) {
		n = step.with(n)
	}
	return newDocument(n)
}

// with is the step's container with child in the step's place.
func (s *step) with(child node) node {
	c := s.container
	if s.index < 0 {
		c.kind = objectNode
		c.fields = with(c.fields, s.key, child)
		return c
	}
	c.kind = listNode
	c.items = slices.Clone(c.items)
	if s.index == len(c.items) {
		c.items = append(c.items, child)
	} else {
		c.items[s.index] = child
	}
	return c
}

// without is the step's container without what is in the step's place.
func (s *step) without() node {
	c := s.container
	if s.index < 0 {
		c.fields = maps.Clone(c.fields)
		delete(c.fields, s.key)
		return c
	}
	c.items = slices.Delete(slices.Clone(c.items), s.index, s.index+1)
	return c
}

func with(fields map[string]node, key string, value node) map[string]node {
	fields = maps.Clone(fields)
	if fields == nil {
		fields = map[string]node{}
	}
	fields[key] = value
	return fields
}

// mergePatch is target changed as RFC 7386 says. Faults of the patch's own keys stay, to be found when the result is
// checked.
func mergePatch(target, patch node) node {
	if patch.kind != objectNode {
		return patch
	}
	result := node{kind: objectNode, fields: map[string]node{}}
	if target.kind == objectNode {
		result = target
		result.fields = maps.Clone(target.fields)
		if result.fields == nil {
			result.fields = map[string]node{}
		}
	}
	result.duplicates = slices.Concat(result.duplicates, patch.duplicates)
	result.problems = slices.Concat(result.problems, patch.problems)
	for key, value := range patch.fields {
		if value.kind == nullNode {
			delete(result.fields, key)
			continue
		}
		result.fields[key] = mergePatch(result.fields[key], value)
	}
	return result
}
