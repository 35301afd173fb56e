package main

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/obwarden/obwarden/agent/agenttest"
)

func TestMain(m *testing.M) {
	agenttest.RunRole(map[string]func(string) error{"nats": agenttest.ServeNATS})
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if err := agenttest.RemoveBinary(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}))
}
