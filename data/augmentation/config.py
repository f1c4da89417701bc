"""How training records are reworded. Imports pydantic only."""

from typing import Annotated, Literal

from pydantic import Field

from data.endpoint_config import ChatEndpointConfig
from data.schema import Kind
from data.strict import PathText, StrictModel, Text


class _StepConfig(StrictModel):
    kinds: list[Kind] = Field(default=["demonstrations"], min_length=1)
    """Kinds of records that get copies."""

    share: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the training records that get copies; a hash of the prompt chooses them."""


class _WordsConfig(_StepConfig):
    words: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of a prompt's words that is changed, one at least (alpha of Wei and Zou 2019, section 2)."""

    copies: int = Field(default=1, ge=1, le=16)
    """Copies of a record, each changed elsewhere."""


class SynonymsConfig(_WordsConfig):
    """English words in the place of others that mean the same in WordNet."""

    type: Literal["synonyms"] = "synonyms"

    wordnet: PathText | None = None
    """Folder of WordNet's database. Default: NLTK's, or that of the system's package."""


class RandomDeletionConfig(_WordsConfig):
    """Words left out."""

    type: Literal["random_deletion"] = "random_deletion"


class ParaphraseConfig(_StepConfig):
    """A model says the same in other words."""

    type: Literal["paraphrase"] = "paraphrase"

    endpoint: ChatEndpointConfig

    template: PathText | None = None
    """Text file of what is asked, with `{text}`; it has to ask for the answer between `<text>` and `</text>`."""


class BackTranslationConfig(_StepConfig):
    """A model translates into another language and back (Sennrich et al. 2016; as augmentation Yu et al. 2018)."""

    type: Literal["back_translation"] = "back_translation"

    endpoint: ChatEndpointConfig

    language: Text = "English"
    """Language of the prompts, as the model is told it."""

    through: list[Text] = Field(default=["German"], min_length=1, max_length=16)
    """Languages to go through; each gives a copy."""


EndpointStepConfig = ParaphraseConfig | BackTranslationConfig
StepConfig = Annotated[
    SynonymsConfig | RandomDeletionConfig | ParaphraseConfig | BackTranslationConfig, Field(discriminator="type")
]
