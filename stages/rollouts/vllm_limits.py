"""Numbers that vLLM sets, for the engine in process and for the server. Does not import it."""

MAX_LOGPROBS = 20
"""Likeliest tokens that a request may ask for; a server's own default."""

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def max_lora_rank(rank: int) -> int:
    """The smallest rank that vLLM can be started for and that holds an adapter of this rank.

    Raises:
        ValueError: There is none; the model section allows up to 512.
    """
    for possible in _LORA_RANKS:
        if possible >= rank:
            return possible
    raise ValueError(f"vLLM serves adapters of rank {_LORA_RANKS[-1]} at most, not {rank}; use a smaller rank")
