// Package ocp speaks OCP's HTTP API: it asks for stop, start and restart of a
// server, reads tasks and topology, and says of every failure whether the
// request can have had an effect.
//
// It decides nothing and remembers nothing of operations; package agent does.
// It imports nothing of ours. Facts about OCP are marked as documented, observed
// (in published samples and public clients) or unknown; unknown means tolerated.
package ocp
