"""The members of a reward model that was trained as an ensemble: their files, without torch.

    reward_model/                  of adapters: the first member; of heads: the adapter, with their mean
        members/2, members/3, ...  of adapters: adapter and normalisation of each other member
        score_heads.safetensors    of heads: `weight` [N, D], `shift` [N], `scale` [N]

A reward model of one member is the folder alone.
"""

from pathlib import Path

from data.errors import ModelError
from stages.models.safetensors_files import check_safetensors, first_not_finite

HEADS_FILE = "score_heads.safetensors"

_MEMBERS = "members"
_HEAD_TENSORS = ("weight", "shift", "scale")


def member_folder(folder: Path, number: int) -> Path:
    """Where a member's adapter lies.

    Args:
        folder: Of the reward model.
        number: From 1.
    """
    return folder if number == 1 else folder / _MEMBERS / str(number)


def member_folders(folder: Path) -> list[Path]:
    """The folders of all adapters of a reward model, its own first.

    Raises:
        ModelError: One is missing between them.
    """
    found = sorted(int(path.name) for path in (folder / _MEMBERS).glob("*") if path.name.isdigit())
    if found != list(range(2, len(found) + 2)):
        raise ModelError(
            f"{folder / _MEMBERS}: holds {', '.join(map(str, found))}. The members of an ensemble are numbered from 2 "
            "without a gap. Run the stage `reward_model` again."
        )
    return [member_folder(folder, number) for number in range(1, len(found) + 2)]


def check_heads(folder: Path) -> int:
    """How many heads an adapter carries; 1 where it has no file of them.

    Raises:
        ModelError: The file is damaged, or its tensors are not those of heads.
    """
    path = folder / HEADS_FILE
    if not path.is_file():
        return 1
    tensors = check_safetensors(path, f"{folder}: no readable heads")
    shapes = [tensors[name].shape if name in tensors else () for name in _HEAD_TENSORS]
    count = shapes[0][0] if len(shapes[0]) == 2 else 0
    if count < 1 or shapes[1:] != [(count,), (count,)] or first_not_finite(path, tensors) is not None:
        raise ModelError(
            f"{path}: holds {', '.join(f'{name} {each.shape}' for name, each in tensors.items())}. Finite `weight` "
            "[N, D], `shift` [N] and `scale` [N] are needed. Run the stage `reward_model` again."
        )
    return count


def num_members(folder: Path) -> int:
    """How many scores a reward model gives an episode.

    Raises:
        ModelError: Its files are damaged.
    """
    return sum(check_heads(each) for each in member_folders(folder))
