package agenttest

import (
	"os/exec"
	"syscall"
)

// DieWithTest has the kernel kill a command's process when this one is gone, however that ends.
func DieWithTest(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
