"""A stage that can go on only when people have done their part."""

from pathlib import Path


class WaitingForPeople(Exception):
    """The stage has done what it can for now, and holds nothing in memory; it is to be executed again later.

    Attributes:
        folder: Where people's part is kept, and what says whether it is done.
    """

    def __init__(self, folder: Path) -> None:
        """Say where to look."""
        super().__init__(f"waiting for people: {folder}")
        self.folder = folder
