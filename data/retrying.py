"""How long to wait before a failed request is sent again."""

_FIRST_SECONDS = 1.0
_LONGEST_SECONDS = 30.0


def backoff_seconds(retry: int) -> float:
    """Seconds before a retry: 1, 2, 4, 8, 16, then 30 each, so that a server that restarts is found again soon.

    Args:
        retry: Its number, from 0.
    """
    return float(min(_FIRST_SECONDS * 2.0 ** min(retry, 10), _LONGEST_SECONDS))
