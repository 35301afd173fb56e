// Package chaos attacks the agent and counts what broke. It holds tests only: three
// real agents, a NATS server in a process of its own and a simulated OCP, with faults
// between and inside them, by a schedule that a seed determines.
//
// chaos_test.go is the run. load_test.go says what is asked for, faults_test.go what goes wrong; process_test.go and
// proxy_test.go carry the faults out. history_test.go collects what is left, checker_test.go and outcome_test.go judge
// it: they know the journal's JSON and OCP's log, and import nothing of ours. checks_test.go plants each violation and
// sees that the checker finds it. report_test.go tells people. The package does not make clocks jump: the kernel has no
// namespace for the time of day, and a preloaded library such as faketime does not reach a static binary. A test of
// package agent has an OCP whose clock is wrong and jumps; an agent itself measures durations by the monotonic clock.
//
//	go test ./agent/chaos -run Chaos -chaos.time 2m -v
package chaos
