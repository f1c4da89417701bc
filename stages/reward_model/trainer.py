"""TRL's `RewardTrainer` with the losses of `rewards.bradley_terry` and `rewards.plackett_luce`."""

from typing import Any

import torch
from torch import Tensor
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference
from trl.trainer.utils import pad

from rewards.bradley_terry import bradley_terry_accuracy, bradley_terry_loss
from rewards.plackett_luce import plackett_luce_loss
from stages.length_order import SortsByLength


class WeightedPairCollator(DataCollatorForPreference):  # type: ignore[misc]
    """TRL's collator for tokenised pairs, which hands their weights on too."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad and stack; `weight` [B] is there where the examples have one."""
        batch: dict[str, Any] = super().torch_call(examples)
        if "weight" in examples[0]:
            batch["weight"] = torch.tensor([example["weight"] for example in examples], dtype=torch.float)
        return batch


class RankingCollator(DataCollatorForPreference):  # type: ignore[misc]
    """Pads all sequences of all rankings together."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad and stack, for N sequences of B rankings with K at most.

        Returns:
            `input_ids` and `attention_mask` [N, S]; `places` [B, K], where each response's sequence stands, with 0 for
            what fills; `worse` [B, K, K].
        """
        sequences = [torch.tensor(ids) for example in examples for ids in example["chosen_ids"]]
        widest = max(len(example["chosen_ids"]) for example in examples)
        places = torch.zeros(len(examples), widest, dtype=torch.long)
        worse = torch.zeros(len(examples), widest, widest, dtype=torch.bool)
        first = 0
        for row, example in enumerate(examples):
            count = len(example["chosen_ids"])
            places[row, :count] = torch.arange(first, first + count)
            for better, others in enumerate(example["rejected_ids"]):
                worse[row, better, others] = True
            first += count
        return {
            "input_ids": pad(sequences, padding_value=self.pad_token_id, padding_side="right"),
            "attention_mask": pad([torch.ones_like(ids) for ids in sequences], padding_value=0, padding_side="right"),
            "places": places,
            "worse": worse,
        }


class BradleyTerryTrainer(SortsByLength, RewardTrainer):  # type: ignore[misc]
    """Trains a sequence classifier with one label on pairs; a head of several rows has a score and a loss for each.

    Differs from TRL's in the loss, which is the tested function and knows weights and label smoothing, and in the order
    of pairs inside a batch.
    """

    def __init__(self, *, label_smoothing: float, center_coefficient: float, **arguments: Any) -> None:
        """Keep the two settings that the loss needs; the rest goes to `RewardTrainer`."""
        self._label_smoothing = label_smoothing
        self._center_coefficient = center_coefficient
        super().__init__(**arguments)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Mean loss of the pairs of one microbatch over pairs and heads: chosen rows first, then the rejected ones.

        Every row ends with EOS, which is never the pad token, so the model's own search for the last token
        that is no pad finds the last real one.
        """
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        chosen, rejected = outputs.logits.float().chunk(2)
        losses = [
            bradley_terry_loss(
                *head,
                margin=inputs.get("margin"),
                weight=inputs.get("weight"),
                label_smoothing=self._label_smoothing,
            )
            for head in zip(chosen.unbind(-1), rejected.unbind(-1), strict=True)
        ]
        loss = torch.stack(losses).mean()
        loss = loss + self._center_coefficient * (chosen + rejected).square().mean()
        self._remember(chosen.detach().flatten(), rejected.detach().flatten())
        return (loss, outputs) if return_outputs else loss

    def _remember(self, chosen: Tensor, rejected: Tensor) -> None:
        """Collect accuracy, margin and mean score; the base class averages and logs them."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        figures = {
            "accuracy": bradley_terry_accuracy(chosen, rejected),
            "margin": (chosen - rejected).mean(),
            "mean_score": torch.cat([chosen, rejected]).mean(),
        }
        for name, value in figures.items():
            gathered = self.accelerator.gather_for_metrics(torch.as_tensor(value, device=chosen.device))
            metrics[name].append(gathered.float().mean().item())


class PlackettLuceTrainer(BradleyTerryTrainer):
    """Trains a sequence classifier with one label on rankings."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Mean loss of the rankings of one microbatch over rankings and heads. Their sequences pass together.

        Centering is that of pairs for two responses: the square of twice the mean score.
        """
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        scores, worse = outputs.logits.float()[inputs["places"]], inputs["worse"]
        loss = torch.stack([plackett_luce_loss(head, worse) for head in scores.unbind(-1)]).mean()
        known = (worse.any(dim=-1) | worse.any(dim=-2))[..., None]
        means = (scores * known).sum(dim=1) / known.sum(dim=1)
        loss = loss + self._center_coefficient * (2 * means).square().mean()
        ranking, better, other = worse.nonzero(as_tuple=True)
        self._remember(scores[ranking, better].detach().flatten(), scores[ranking, other].detach().flatten())
        return (loss, outputs) if return_outputs else loss
