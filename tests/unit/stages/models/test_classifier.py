"""Ready sequence classifiers as reward models: transformers' own logits for the same text, whatever is beside it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from data.errors import ConfigError, ModelError
from data.schema import Message, Prompt
from stages.models.classifier import ClassifierScoreModel
from stages.models.classifier_config import ClassifierConfig
from stages.models.scalar_head import ScoreNormalization
from stages.models.sources import check_classifier
from tests.tiny import tiny_model_dir

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
TURNS = (
    Message(role="user", content="Hi"),
    Message(role="assistant", content="Yes?"),
    Message(role="user", content="Why"),
)
EPISODES: list[tuple[Prompt, str]] = [
    ("One:", " a long answer with many, many words in it"),
    (TURNS, "b"),
    ("Two, which is longer:", " 好的"),
    ("", " c"),
]


def save_encoder(folder: Path, *, labels: int) -> Path:
    """A random BERT of two blocks with a tokenizer that marks the two texts of a pair."""
    specials = ["[PAD]", "[CLS]", "[SEP]"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*specials, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=128, num_labels=labels, pad_token_id=0, initializer_range=0.5,
        id2label={number: f"kind_{number}" for number in range(labels)},
    )  # fmt: skip
    torch.manual_seed(labels)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_decoder(folder: Path, *, template: str | None = None, pad: bool = True) -> Path:
    """A random Llama with one label."""
    base = tiny_model_dir("llama", folder / "causal")
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id = 3 if pad else None
    model.save_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def loaded(folder: Path | str, *, batch_size: int = 3, shift: float = 0.0, scale: float = 1.0, **settings: Any) -> Any:
    config = ClassifierConfig.model_validate({"base": str(folder), **settings})
    return ClassifierScoreModel(
        config, ScoreNormalization(shift, scale, 2), batch_size=batch_size, device="cpu", config_dir=None
    )


def scored(judge: Any, episodes: list[tuple[Prompt, str]]) -> list[float]:
    found: list[float] = judge.score_texts(
        [prompt for prompt, _ in episodes], [text for _, text in episodes], [True] * len(episodes)
    )
    return found


def by_transformers(folder: Path, texts: list[tuple[str, ...]], label: int = 0, **options: Any) -> list[float]:
    """One text, or pair of texts, at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [float(model(**tokenizer(*text, return_tensors="pt", **options)).logits[0, label]) for text in texts]


PLAIN = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why\n\nAssistant:"
QUESTIONS = ["One:", PLAIN, "Two, which is longer:", ""]


@pytest.mark.parametrize(("labels", "label", "number"), [(1, None, 0), (2, 1, 1), (3, "kind_2", 2)])
@pytest.mark.parametrize("form", ["text", "pair", "auto"])
def test_encoders(form: str, labels: int, label: Any, number: int, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "judge", labels=labels)
    texts = [
        (question, text) if form == "pair" else (question + text,)
        for question, (_, text) in zip(QUESTIONS, EPISODES, strict=True)
    ]
    expected = by_transformers(folder, texts, number)
    found = scored(loaded(folder, form=form, label=label), EPISODES)
    assert found == pytest.approx(expected, abs=1e-4)
    assert len({round(score, 4) for score in expected}) == 4, "it tells them apart"


@pytest.mark.parametrize("pad", [True, False], ids=["pad", "no_pad"])
def test_decoders_read_conversations_by_their_template(pad: bool, tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "judge", template=TEMPLATE, pad=pad)
    texts = [
        ("<user>One:<assistant> a long answer with many, many words in it",),
        ("<user>Hi<assistant>Yes?<user>Why<assistant>b",),
        ("<user>Two, which is longer:<assistant> 好的",),
        ("<user><assistant> c",),
    ]
    expected = by_transformers(folder, texts, add_special_tokens=False)
    judge = loaded(folder)
    assert scored(judge, EPISODES) == pytest.approx(expected, abs=1e-5)
    assert scored(judge, EPISODES[::-1]) == pytest.approx(expected[::-1], abs=1e-5), "whatever is beside it"
    normalised = scored(loaded(folder, shift=0.5, scale=2.0), EPISODES)
    assert normalised == pytest.approx([(score - 0.5) / 2.0 for score in expected], abs=1e-5)


def test_a_template_of_the_users_own(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "judge")
    (tmp_path / "own.jinja").write_text("Q{{ messages[0].content }}A{{ messages[-1].content }}", encoding="utf-8")
    expected = by_transformers(folder, [("QOne:Ab",)], add_special_tokens=False)
    found = scored(loaded(folder, chat_template=str(tmp_path / "own.jinja")), [("One:", "b")])
    assert found == pytest.approx(expected, abs=1e-5)


def test_what_cannot_be_a_judge(tmp_path: Path) -> None:
    two = save_encoder(tmp_path / "two", labels=2)
    with pytest.raises(ConfigError, match=r"has 2 labels; .* set `reward_model\.pretrained\.label` to one of 0 \(kind"):
        loaded(two)
    with pytest.raises(ConfigError, match=r"label='good': .* has no such label; it has 0 \(kind_0\), 1 \(kind_1\)"):
        loaded(two, label="good")
    with pytest.raises(ConfigError, match=r"form=chat, but .* brings no chat template; one is needed"):
        loaded(two, label=0, form="chat")
    causal = tiny_model_dir("llama", tmp_path / "causal")
    with pytest.raises(ModelError, match=r"score\.weight"):
        loaded(causal)
    check_classifier(ClassifierConfig(base=str(two)).as_model())
    with pytest.raises(ModelError, match=r"names the architecture LlamaForCausalLM, whose head gives no score"):
        check_classifier(ClassifierConfig(base=str(causal)).as_model())
    with pytest.raises(ModelError, match=r"reward_model\.pretrained\.base='./nowhere': no folder at"):
        loaded("./nowhere")


@pytest.mark.parametrize(("settings", "limit"), [({}, 128), ({"max_length": 20}, 20)])
def test_episodes_that_are_too_long_end_the_stage(settings: dict[str, int], limit: int, tmp_path: Path) -> None:
    judge = loaded(save_encoder(tmp_path / "judge", labels=1), **settings)
    assert judge.max_length == limit
    assert len(scored(judge, [("a" * (limit - 4), "bc")])) == 1  # and two special tokens
    with pytest.raises(ModelError, match=rf"an episode has {limit + 1} tokens in its tokenizer, and it reads {limit}"):
        scored(judge, [("a" * (limit - 4), "bcd")])
