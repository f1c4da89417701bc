"""Compiles the transformer blocks of a model by `torch.compile`.

Blocks and not the model: all blocks have the same code, so that one graph serves them all. A graph depends on the
active role and on whether gradients are recorded; lengths and numbers of rows are free. Each takes seconds to compile
at its first pass. Results differ from the plain blocks' by rounding: between fused operations nothing is rounded to
the base's type.
"""

import os
import shutil
from typing import Any

import torch

from data.errors import ModelError
from stages.models.loading import find_blocks

# Graphs of one block's code: each role with and without gradients, over inputs with and without, for one row and for
# several, with and without a mask. Beyond the limit torch goes back to the plain blocks.
_MOST_GRAPHS = 128
_COMPILERS = ("g++", "clang++")


def compile_blocks(model: Any) -> None:
    """Have a model's blocks compiled when they first run.

    Args:
        model: A `PreTrainedModel`; its adapters may come later.

    Raises:
        ModelError: The model is on a CPU and there is no C++ compiler.
    """
    if model.device.type == "cpu" and shutil.which(os.environ.get("CXX", "")) is None:
        if not any(shutil.which(name) for name in _COMPILERS):
            raise ModelError(
                f"found no C++ compiler ({', '.join(_COMPILERS)}, or the one that CXX names), which torch.compile "
                f"needs on a CPU; install one (Debian: `apt install g++`), or set `ppo.compile_blocks: false`"
            )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_GRAPHS)
    _, blocks = find_blocks(model)
    for block in blocks:
        vars(block)["forward"] = torch.compile(block.forward, dynamic=True)
