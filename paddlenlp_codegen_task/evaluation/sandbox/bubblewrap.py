"""The same namespaces and files by bubblewrap, where that is installed."""

from __future__ import annotations

from paddlenlp_codegen_task.evaluation.sandbox.limits import Limits
from paddlenlp_codegen_task.evaluation.sandbox.view import View

NAME = "bwrap"
_UNSHARED = ("user", "ipc", "pid", "net", "uts")


def arguments(view: View, limits: Limits) -> list[str]:
    """Its options, before the command; they go over a pipe, where nobody inside can read them."""
    options = [f"--unshare-{name}" for name in _UNSHARED]
    options += ["--unshare-cgroup-try", "--hostname", "sandbox", "--uid", "1000", "--gid", "1000"]
    options += ["--cap-drop", "ALL", "--die-with-parent", "--new-session"]
    options += ["--perms", "0700", "--size", str(limits.file_bytes), "--tmpfs", "/tmp"]
    for source, target in view.shown:
        options += ["--ro-bind", source, target]
    for target in view.hidden:
        options += ["--tmpfs", target, "--remount-ro", target]
    for device in view.devices:
        options += ["--dev-bind", device, device]
    return [*options, "--remount-ro", "/", "--chdir", "/tmp"]
