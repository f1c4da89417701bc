"""What a stage that gives up says of the state that it leaves."""

from stages.checkpoint import Checkpoints
from stages.contract import StageContext


def tell_kept(context: StageContext) -> str:
    """Where the state is that `rlhf resume` goes on from, and what a changed setting needs; ends a message."""
    run = context.stage_dir.parent.name
    changed = "changed settings need a new run, which takes the stages before this one from the store"
    latest = Checkpoints.of(context).latest()
    if latest is None:
        return f"It has no checkpoint yet: `rlhf resume {run}` starts it anew, with the same settings; {changed}"
    return (
        f"The state after step {latest.step} is kept in {latest.path}: `rlhf resume {run}` goes on from there, with "
        f"the same settings; {changed}"
    )
