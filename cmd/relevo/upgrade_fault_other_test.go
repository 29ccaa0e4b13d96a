//go:build !linux

package main

func misbehave() {} // upgrades are tried on Linux
