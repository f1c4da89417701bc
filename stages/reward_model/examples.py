"""What TRL's trainer takes as data, tokenised: pairs, or rankings."""

from collections.abc import Sequence

from datasets import Dataset

from data.token_table import ids_table
from stages.reward_model.evaluation_pairs import TokenizedPair
from stages.reward_model.rankings import TokenizedRanking


def pair_dataset(pairs: Sequence[TokenizedPair]) -> Dataset:
    """Pairs with their margins and weights, where there are any."""
    table = ids_table(
        {
            "chosen_ids": [[*pair.prompt_ids, *pair.chosen_ids] for pair in pairs],
            "rejected_ids": [[*pair.prompt_ids, *pair.rejected_ids] for pair in pairs],
        }
    )
    dataset = Dataset(table)
    if any(pair.margin is not None for pair in pairs):
        dataset = dataset.add_column("margin", [pair.margin or 0.0 for pair in pairs])
    if any(pair.weight is not None for pair in pairs):
        weights = [1.0 if pair.weight is None else pair.weight for pair in pairs]
        mean = sum(weights) / len(weights)  # scaled to a mean of 1: the learning rate keeps its meaning
        dataset = dataset.add_column("weight", [weight / mean for weight in weights])
    return dataset


def ranking_dataset(rankings: Sequence[TokenizedRanking]) -> Dataset:
    """Rankings. By two columns of these names TRL's trainer knows that nothing is left to tokenise."""
    return Dataset.from_list(
        [
            {"chosen_ids": [list(ids) for ids in each.sequences], "rejected_ids": [list(rows) for rows in each.worse]}
            for each in rankings
        ]
    )
