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
	var api struct {
		OpenAPI string
		Paths   map[string]any
	}
	status, out, errOut = relevo(t, "", "schema", "--openapi")
	err = json.Unmarshal([]byte(out), &api)
	if status != exitDone || errOut != "" || err != nil || api.OpenAPI != "3.1.0" || api.Paths["/v1/config"] == nil {
		t.Errorf("schema --openapi: exit status %d, stderr %q, %v; want the OpenAPI document", status, errOut, err)
	}
	if status, _, _ := relevo(t, "", "schema", "x"); status != exitUsage {
		t.Errorf("schema with an argument: exit status %d, want %d", status, exitUsage)
	}
}
