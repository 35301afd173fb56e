package events

// Codes of reasons and errors, a part of the public interface.
const (
	CodeNotFound        = "NOT_FOUND"         // OCP knows no such cluster or server
	CodeDenied          = "DENIED"            // the policy says never
	CodePaused          = "PAUSED"            // a person paused all clusters or this one
	CodeFailing         = "FAILING"           // too many failures in a row on this cluster
	CodeServerBusy      = "SERVER_BUSY"       // something is under way on the server
	CodeAlreadyStopped  = "ALREADY_STOPPED"   // nothing to do
	CodeAlreadyRunning  = "ALREADY_RUNNING"   // nothing to do
	CodeWrongState      = "WRONG_STATE"       // the operation makes no sense in the server's state
	CodeClusterBusy     = "CLUSTER_BUSY"      // as many operations in the cluster as it may have
	CodeOtherZoneActive = "OTHER_ZONE_ACTIVE" // servers of one zone at a time
	CodeMajorityAtRisk  = "MAJORITY_AT_RISK"  // too few zones would stay whole
	CodeLastRootServer  = "LAST_ROOT_SERVER"  // no root service would stay
	CodeNeedsApproval   = "NEEDS_APPROVAL"    // a person must approve
	CodeOutsideWindow   = "OUTSIDE_WINDOW"    // not at this time
	CodeCooldown        = "COOLDOWN"          // too soon after the one before
	CodeBudget          = "BUDGET"            // too many lately, in the cluster or in all
	CodeSuperseded      = "SUPERSEDED"        // a newer request for the server came
	CodeStaleTopology   = "STALE_TOPOLOGY"    // OCP does not show the cluster

	CodeInvalidRequest          = "INVALID_REQUEST"          // cannot be decoded or breaks a limit
	CodeKeyReused               = "IDEMPOTENCY_KEY_REUSED"   // same key, other content
	CodeExpired                 = "EXPIRED"                  // not submitted by expires_at
	CodeCancelled               = "CANCELLED"                // taken back by a person before it was submitted
	CodeDryRun                  = "DRY_RUN"                  // decided and reported, nothing sent
	CodeOCPUnreachable          = "OCP_UNREACHABLE"          // OCP could not be called; waits
	CodeOCPBudget               = "OCP_BUDGET"               // the request budget is used up; waits
	CodeRecordUnreadable        = "RECORD_UNREADABLE"        // nobody knows what is under way in the cluster; waits
	CodeAlertmanagerUnreachable = "ALERTMANAGER_UNREACHABLE" // the policy wants silences, and Alertmanager takes none; waits
	CodeOCPRefused              = "OCP_REFUSED"              // a definite no of OCP
	CodeUnanswered              = "OCP_UNANSWERED"           // every call went unanswered, none arrived
	CodeSubtaskFailed           = "SUBTASK_FAILED"           // OCP's task failed
	CodeRolledBack              = "ROLLED_BACK"              // OCP's task was undone
	CodeTaskCancelled           = "TASK_CANCELLED"           // OCP's task was cancelled there
	CodeOutcomeUnknown          = "OUTCOME_UNKNOWN"          // a person must look at OCP
	CodeAlreadyDone             = "ALREADY_DONE"             // the server is in the wanted state, no task is to be seen
)
