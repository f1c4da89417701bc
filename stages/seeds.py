"""Seeds of all parts from the one seed of the run, and the order in which prompts are used."""

import hashlib
import random


def derive_seed(seed: int, purpose: str, number: int) -> int:
    """A seed for one purpose and one step: SHA-256 of the three, 63 bits.

    Neighbouring steps get unrelated streams, and a resumed run needs no stored state to find its own.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def row_seeds(seed: int, num_rows: int) -> list[int]:
    """One seed for each row of a batch, so that a response does not depend on where or beside what it is made.

    Args:
        seed: Of the batch, from `derive_seed`.
        num_rows: Rows of the whole batch; ranks take their share of the list.
    """
    return [derive_seed(seed, "row", row) for row in range(num_rows)]


def batch_rows(num_rows: int, batch_size: int, step: int, *, seed: int) -> list[int]:
    """Row numbers of one step's batch: every row once an epoch, freshly shuffled in each.

    A function of the step alone, so that the data position is known after any interruption. A batch may
    reach over the end of an epoch.

    Args:
        num_rows: Rows in all, at least 1.
        batch_size: Rows of the batch.
        step: Number of the step, from 0.
        seed: Seed of the run.
    """
    rows: list[int] = []
    position = step * batch_size
    while len(rows) < batch_size:
        epoch, offset = divmod(position, num_rows)
        order = list(range(num_rows))
        random.Random(derive_seed(seed, "epoch", epoch)).shuffle(order)
        taken = order[offset : offset + batch_size - len(rows)]
        rows += taken
        position += len(taken)
    return rows
