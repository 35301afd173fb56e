// Package bench measures the agent as it is shipped: the real binary, a NATS server
// that flushes every message, and an OCP that answers at once. It holds tests only.
//
// No figure means anything alone. Each stands beside its floor, measured in the same round on the same server: a bare
// loop that does what cannot be left out, with the same payloads, and nothing else.
//
// load_test.go and footprint_test.go are the measurements, table_test.go is the table that they fill and README shows.
// floor_test.go and floorbatch_test.go are the bare loops. process_test.go and agent_test.go run the binary,
// nats_test.go runs NATS servers and clusters, ocp_test.go is the OCP, seed_test.go makes journals that are old
// already. scaleout_test.go has three agents share the work, soak_test.go lets one run for an hour.
//
//	make bench
//	make bench-readme
//	make soak SOAK_TIME=30m
package bench
