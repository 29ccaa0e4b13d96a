package main

import (
	"encoding/json"
	"testing"
)

func TestSchema(t *testing.T) {
	status, out, errOut := relevo(t, "", "schema")
	var schema struct {
		Schema     string `json:"$schema"`
		Properties map[string]any
	}
	err := json.Unmarshal([]byte(out), &schema)
	if status != exitDone || errOut != "" || err != nil || schema.Schema == "" || schema.Properties["listeners"] == nil {
		t.Errorf("schema: exit status %d, stderr %q, %v; want the JSON Schema", status, errOut, err)
	}
	if status, _, _ := relevo(t, "", "schema", "x"); status != exitUsage {
		t.Errorf("schema with an argument: exit status %d, want %d", status, exitUsage)
	}
}
