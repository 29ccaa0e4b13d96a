package config

import (
	"errors"
	"testing"
)

// No path and no value makes an edit panic, or makes a document whose canonical forms are not its own.
func FuzzEdit(f *testing.F) {
	for _, seed := range [][2]string{
		{"clusters/order/endpoints/b:1", "{weight: 1}"},
		{"routes/rpc/rules/rule-2", "cluster: spare"},
		{"", `{"log":null}`},
		{"listeners/in/filters/2", "[~, ~]"},
		{"routes/rpc/rules/orders/match/service", "regex: x"},
		{"%2F//%", "&a [*a]"},
		{"log/level", "0x10"},
		{"clusters/order", `{"name":"order","name":"order"}`},
		{"access_log/fields/0", "!!binary gIE="},
	} {
		f.Add(seed[0], []byte(seed[1]))
	}
	d := document(f, order)
	before := string(d.JSON())
	f.Fuzz(func(t *testing.T, path string, value []byte) {
		put, putErr := d.Put(path, value)
		patched, patchErr := d.Patch(path, value)
		deleted, deleteErr := d.Delete(path)
		_, getErr := d.Get(path)
		for _, err := range []error{putErr, patchErr, deleteErr, getErr} {
			_, isPath := errors.AsType[*PathError](err)
			_, isFaults := errors.AsType[*Errors](err)
			if err != nil && !isPath && !isFaults {
				t.Fatalf("the error is %v, want a *PathError or an *Errors", err)
			}
		}
		if getErr == nil && path != "" && path != "/" && path != "//" && deleteErr != nil {
			t.Fatalf("there is something at %q, but it cannot be deleted: %v", path, deleteErr)
		}
		for _, edited := range []*Document{put, patched, deleted} {
			if edited == nil {
				continue
			}
			again := document(t, string(edited.JSON()))
			if _, err := edited.Config(); err != nil {
				continue
			}
			if string(again.JSON()) != string(edited.JSON()) {
				t.Fatalf("the canonical form\n%s\nhas another:\n%s", edited.JSON(), again.JSON())
			}
			if _, err := again.Config(); err != nil {
				t.Fatalf("a valid document's canonical form is not valid: %v", err)
			}
			checkChanges(t, d, edited)
		}
		if string(d.JSON()) != before {
			t.Fatal("an edit changed the document before")
		}
	})
}
