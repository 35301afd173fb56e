// Package events is obwarden's language on NATS: subjects, streams, the request
// and operation documents, CloudEvents in both directions, and the embedded
// NATS server.
//
// It decides nothing and keeps no state of operations; package agent does. It
// imports nothing of ours, so that any Go program can speak to the agent with it.
package events
