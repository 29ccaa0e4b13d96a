//go:build !linux

package main

func misbehave() {} // upgrades are tried on Linux

func serveFleet() {} // so is chaos
