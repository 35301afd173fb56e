// Command obwarden is the agent and all its tools in one binary. `obwarden --help` lists the commands; each stands in a
// file of its own in this package.
//
// The package parses command lines, wires the agent together and shows what happens. How operations are carried out is
// package agent's business, how requests and events look is package events'.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	_ "time/tzdata" // a policy's windows have time zones, and not every machine has the files for them

	"github.com/spf13/cobra"
)

// Exit codes, a part of the public interface.
const (
	exitFailed      = 1 // the operation, or the command, failed
	exitUsage       = 2 // wrong usage or configuration
	exitRejected    = 3 // rejected, expired or cancelled
	exitGaveUp      = 4 // gave up waiting; the operation goes on
	exitUnreachable = 5 // NATS or OCP cannot be reached
)

// exitError is an error with the exit code that it leads to. If err is nil, nothing is printed.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e exitError) Unwrap() error { return e.err }

// exit gives an error its exit code. A nil error stays nil.
func exit(code int, err error) error {
	if err == nil {
		return nil
	}
	return exitError{code: code, err: err}
}

// exitCode is the exit code of a process that ends with err.
func exitCode(err error) int {
	var e exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.code
	}
	return exitFailed
}

// app is what every command gets from its surroundings.
type app struct {
	stdout, stderr io.Writer
	environ        map[string]string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(execute(ctx, os.Args[1:], os.Stdout, os.Stderr, environment()))
}

// execute runs one command line, prints its error once and returns the exit code.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer, environ map[string]string) int {
	root := newRoot(stdout, stderr, environ)
	root.SetArgs(args)
	command, err := root.ExecuteContextC(ctx)
	var e exitError
	if err == nil || errors.As(err, &e) && e.err == nil {
		return exitCode(err)
	}
	fmt.Fprintf(stderr, "obwarden: %s\n", strings.ReplaceAll(cleanText(err.Error()), "\n", "\n  "))
	var usage usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(stderr, "see %s --help\n", command.CommandPath())
	}
	return exitCode(err)
}

// usageError says why a command line is wrong.
type usageError struct{ error }

func usage(err error) error {
	if err == nil {
		return nil
	}
	return exit(exitUsage, usageError{err})
}

func usagef(format string, args ...any) error { return usage(fmt.Errorf(format, args...)) }

// newRoot is the whole command line.
func newRoot(stdout, stderr io.Writer, environ map[string]string) *cobra.Command {
	a := app{stdout: stdout, stderr: stderr, environ: environ}
	root := &cobra.Command{
		Use:   "obwarden",
		Short: "Stops, starts and restarts OceanBase servers through OCP, safely and observably",
		Long: `obwarden operates OceanBase servers through OCP. It takes requests from NATS, decides
whether they are safe, calls OCP exactly once for each of them, follows OCP's task and
publishes every step as an event.

New here? obwarden demo shows everything, with nothing to set up.

Every command that shows something accepts -o json.`,
		Args:          cobra.ArbitraryArgs, // so that RunE says what is wrong
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return usagef("no command %q; did you mean %s?", args[0], strings.Join(near, " or "))
			}
			return usagef("no command %q", args[0])
		},
	}
	root.SuggestionsMinimumDistance = 2
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	root.AddGroup(
		&cobra.Group{ID: "agent", Title: "The agent:"},
		&cobra.Group{ID: "operate", Title: "Operate servers:"},
		&cobra.Group{ID: "look", Title: "See what happens:"},
	)
	group := func(id string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = id
		}
		root.AddCommand(commands...)
	}
	group("agent", newRun(a), newDemo(a), newSim(a), newCheck(a))
	group("operate", append(newOperate(a), newRetry(a), newCancel(a), newApprove(a), newPause(a), newResume(a))...)
	group("look", newWatch(a), newGet(a), newList(a), newExplain(a))
	root.AddCommand(newVersion(a))
	return root
}

// exactArgs requires these arguments, and names those that are missing or too many.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usagef("%s: missing", strings.Join(names[len(args):], ", "))
		case len(args) > len(names):
			return usagef("%q: one argument too many", args[len(names)])
		}
		return nil
	}
}

// formatFlag adds -o text|json.
func formatFlag(cmd *cobra.Command) *formatValue {
	format := formatValue("text")
	cmd.Flags().VarP(&format, "output", "o", "text or json")
	return &format
}

type formatValue string

func (f *formatValue) String() string { return string(*f) }
func (f *formatValue) Type() string   { return "format" }
func (f *formatValue) Set(s string) error {
	if s != "text" && s != "json" {
		return errors.New("must be text or json")
	}
	*f = formatValue(s)
	return nil
}
func (f formatValue) json() bool { return f == "json" }
