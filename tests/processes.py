"""Whether a process is over, for tests of what a run leaves behind."""

import psutil


def has_ended(pid: int) -> bool:
    """Whether a process runs no more; its exit status may still have to be collected (an orphan's by init)."""
    try:
        status: str = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return True
    return status == psutil.STATUS_ZOMBIE
