package events

import "slices"

// Codes of reasons and errors, a part of the public interface. Codes tells what each
// of them means.
const (
	CodeInvalidRequest = "INVALID_REQUEST"
	CodeKeyReused      = "IDEMPOTENCY_KEY_REUSED"
	CodeNotFound       = "NOT_FOUND"
	CodeDenied         = "DENIED"
	CodeWrongState     = "WRONG_STATE"

	CodeAlreadyStopped = "ALREADY_STOPPED"
	CodeAlreadyRunning = "ALREADY_RUNNING"
	CodeAlreadyDone    = "ALREADY_DONE"
	CodeDryRun         = "DRY_RUN"

	CodeMajorityAtRisk          = "MAJORITY_AT_RISK"
	CodeLastRootServer          = "LAST_ROOT_SERVER"
	CodeServerBusy              = "SERVER_BUSY"
	CodeClusterBusy             = "CLUSTER_BUSY"
	CodeOtherZoneActive         = "OTHER_ZONE_ACTIVE"
	CodeNeedsApproval           = "NEEDS_APPROVAL"
	CodePaused                  = "PAUSED"
	CodeFailing                 = "FAILING"
	CodeCooldown                = "COOLDOWN"
	CodeBudget                  = "BUDGET"
	CodeOutsideWindow           = "OUTSIDE_WINDOW"
	CodeStaleTopology           = "STALE_TOPOLOGY"
	CodeRecordUnreadable        = "RECORD_UNREADABLE"
	CodeOCPUnreachable          = "OCP_UNREACHABLE"
	CodeOCPBudget               = "OCP_BUDGET"
	CodeAlertmanagerUnreachable = "ALERTMANAGER_UNREACHABLE"

	CodeSuperseded = "SUPERSEDED"
	CodeCancelled  = "CANCELLED"
	CodeExpired    = "EXPIRED"

	CodeOCPRefused     = "OCP_REFUSED"
	CodeUnanswered     = "OCP_UNANSWERED"
	CodeSubtaskFailed  = "SUBTASK_FAILED"
	CodeRolledBack     = "ROLLED_BACK"
	CodeTaskCancelled  = "TASK_CANCELLED"
	CodeOutcomeUnknown = "OUTCOME_UNKNOWN"
)

// Code is one row of the table of codes.
type Code struct {
	Name string // as it stands in the reason or the error of an operation
	// States in which an operation carries the code. One exception is not listed: a code
	// that rejects or delays a first call fails an operation that was called for already,
	// and a retry of a failed one.
	States  []State
	Meaning string // in one sentence
}

// In reports whether an operation in state s carries the code.
func (c Code) In(s State) bool { return slices.Contains(c.States, s) }

// Codes returns the table of all codes, in the order in which documents show them.
// The caller must not change it.
func Codes() []Code { return codes }

// LookupCode finds the row of a code; false where this version knows no such code.
func LookupCode(name string) (Code, bool) {
	if i := slices.IndexFunc(codes, func(c Code) bool { return c.Name == name }); i >= 0 {
		return codes[i], true
	}
	return Code{}, false
}

// codes is never written to.
var codes = []Code{
	{CodeInvalidRequest, []State{Rejected}, "The request cannot be decoded or exceeds a limit."},
	{CodeKeyReused, []State{Rejected}, "The idempotency key belongs to another request."},
	{CodeNotFound, []State{Rejected}, "OCP knows no such cluster or server."},
	{CodeDenied, []State{Rejected}, "The policy denies the operation for good."},
	{CodeWrongState, []State{Rejected}, "The operation makes no sense in the state that the server is in."},

	{CodeAlreadyStopped, []State{Succeeded}, "The server is stopped already, so OCP is not called."},
	{CodeAlreadyRunning, []State{Succeeded}, "The server is running already, so OCP is not called."},
	{CodeAlreadyDone, []State{Succeeded},
		"The answer of OCP was lost and OCP shows no task, but the server is in the wanted state."},
	{CodeDryRun, []State{Succeeded}, "The guard has decided and the agent has reported it; OCP is not called."},

	{CodeMajorityAtRisk, []State{Waiting, Rejected},
		"Fewer zones than the policy demands would remain fully running; " +
			"the operation waits while other operations are the cause, else it is rejected."},
	{CodeLastRootServer, []State{Waiting, Rejected},
		"No other running server has a root service; " +
			"the operation waits while another operation is the cause, else it is rejected."},
	{CodeServerBusy, []State{Waiting}, "Something is under way on the server, whoever started it."},
	{CodeClusterBusy, []State{Waiting},
		"As many operations as the policy allows are under way in the cluster, or other requests came first."},
	{CodeOtherZoneActive, []State{Waiting},
		"Servers of another zone are being operated or are down, and the policy allows one zone at a time."},
	{CodeNeedsApproval, []State{Waiting}, "A person must approve the operation."},
	{CodePaused, []State{Waiting}, "A person has paused this cluster or all clusters."},
	{CodeFailing, []State{Waiting},
		"Too many operations in a row have failed on the cluster: a person must look at it and resume it."},
	{CodeCooldown, []State{Waiting}, "The previous operation was too recent."},
	{CodeBudget, []State{Waiting}, "Too many operations were done lately, in the cluster or in all clusters together."},
	{CodeOutsideWindow, []State{Waiting}, "The policy does not allow the operation at this time."},
	{CodeStaleTopology, []State{Waiting}, "OCP does not show the cluster at the moment."},
	{CodeRecordUnreadable, []State{Waiting},
		"The record of the cluster in OB_CLUSTERS is damaged or missing, so nobody can tell what is under way there."},
	{CodeOCPUnreachable, []State{Waiting}, "OCP could not be called."},
	{CodeOCPBudget, []State{Waiting}, "The agent has used up the number of requests that it may send to OCP."},
	{CodeAlertmanagerUnreachable, []State{Waiting},
		"Alertmanager takes no silences, and the policy says to wait for them."},

	{CodeSuperseded, []State{Cancelled}, "A newer request for the server replaces this one, as the policy says."},
	{CodeCancelled, []State{Cancelled}, "A person cancelled the operation before it was submitted."},
	{CodeExpired, []State{Expired},
		"The operation was not submitted by its expires_at, or waited for longer than the policy allows."},

	{CodeOCPRefused, []State{Failed}, "OCP refused the call for good; the message has its words."},
	{CodeUnanswered, []State{Failed}, "Five calls to OCP went unanswered, and none of them had started a task."},
	{CodeSubtaskFailed, []State{Failed}, "The task failed in OCP; `error` names the subtask."},
	{CodeRolledBack, []State{Failed}, "Somebody rolled the task back in OCP."},
	{CodeTaskCancelled, []State{Failed}, "Somebody cancelled the task in OCP."},
	{CodeOutcomeUnknown, []State{Failed}, "A person must look at OCP, which does not show what became of the call."},
}
