"""Processes with all that they started, and the end of all of them."""

import os
import subprocess

import psutil


def end_tree(process: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """End a process and all below it: SIGTERM, then SIGKILL for those that are still there.

    The descendants are collected before the first signal: torchrun gives each rank a session of its own, and
    once their parent is gone nothing leads to them.
    """
    tree = tree_of(process.pid)
    if process.poll() is None:
        process.terminate()
        _, alive = psutil.wait_procs(tree, timeout=grace_seconds)
    else:
        _, alive = psutil.wait_procs(tree, timeout=0)
    for member in {*alive, *tree_of(process.pid)}:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=grace_seconds)
    process.wait()


def end_processes(processes: list[psutil.Process], grace_seconds: float) -> None:
    """Wait for processes that were told to end, and kill those that do not."""
    _, alive = psutil.wait_procs(processes, timeout=grace_seconds)
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=grace_seconds)


def tree_of(pid: int) -> list[psutil.Process]:
    """The process, all below it, and all of its session (whose parents may be gone)."""
    members: set[psutil.Process] = set()
    try:
        root = psutil.Process(pid)
        members |= {root, *root.children(recursive=True)}
    except psutil.NoSuchProcess:
        pass
    for candidate in psutil.process_iter():
        try:
            if os.getsid(candidate.pid) == pid:
                members.add(candidate)
        except (ProcessLookupError, PermissionError):
            continue
    return list(members)
