"""The Plackett-Luce model of rankings: the likelihood of an order of K responses.

Pure, as `rewards.bradley_terry`, which it is for two responses.

Shape legend: B = rankings in the batch, K = responses of the longest of them.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def plackett_luce_loss(scores: Float[Tensor, "B K"], worse: Bool[Tensor, "B K K"]) -> Float[Tensor, ""]:
    """Compute the mean negative log-likelihood of the rankings.

        loss = mean_b sum_i [ log(exp(s_i) + sum_{j worse than i} exp(s_j)) - s_i ]

    A ranking is drawn from the best on, each time among those that are left: Plackett 1975,
    https://doi.org/10.2307/2346567; as the K-wise loss of a reward model Zhu et al. 2023, section 3.2,
    https://arxiv.org/abs/2301.11270. Of K responses in a strict order, i is compared with all that come after it. Tied
    responses are not compared with each other, each is with those that are worse than both; so are responses of which
    nobody said which is better. Two responses give the loss of Bradley and Terry without margin. Equal scores of K
    responses in a strict order give exactly ln K!.

    Args:
        scores: Raw scores (logits); what fills shorter rankings is not compared with anything.
        worse: Whether response j (last dimension) is worse than response i.

    Returns:
        The mean over rankings, in nats, in float32 (float64 for float64 scores).

    Example:
        >>> scores, order = torch.tensor([[2.0, 1.0, 0.0]]), torch.ones(1, 3, 3, dtype=torch.bool).triu(1)
        >>> plackett_luce_loss(scores, order)  # 0.4076 + 0.3133
        tensor(0.7209)
    """
    values = scores if scores.dtype == torch.float64 else scores.float()
    left = worse.clone()
    left.diagonal(dim1=1, dim2=2).fill_(True)
    # A response that is better than none is alone among those left, and adds 0.
    among = values.unsqueeze(1).masked_fill(~left, -torch.inf).logsumexp(dim=2)
    return (among - values).sum(dim=1).mean()
