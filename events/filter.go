package events

import (
	"fmt"
	"strings"
)

// TokenSubjects matches the events of all operations whose subject ends with the token.
func TokenSubjects(token State) string { return "ob.server.*.event.*.*.*." + string(token) }

// EventOperation reads the operation and its cluster from the subject of an event; cluster 0 is unknown.
func EventOperation(subject string) (operationID string, cluster int64, err error) {
	tokens := strings.Split(subject, ".")
	if len(tokens) != 8 || tokens[0] != "ob" || tokens[3] != "event" {
		return "", 0, fmt.Errorf("subject %q: not of the form ob.server.<kind>.event.<operation>.<cluster>.<server>.<state>", subject)
	}
	if tokens[5] == "0" {
		return tokens[4], 0, nil
	}
	if cluster, err = parseID(tokens[5]); err != nil {
		return "", 0, fmt.Errorf("subject %q: cluster %w", subject, err)
	}
	return tokens[4], cluster, nil
}
