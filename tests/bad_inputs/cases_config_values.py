"""Values that would be taken for others, or are beyond what can be meant. Each with the whole message."""

from tests.bad_inputs.config_case import Case

CASES = [
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
    Case(
        "a target of a fixed KL",
        ("ppo.kl_controller={type: fixed, target: 6}",),
        "--set ppo.kl_controller={type: fixed, target: 6}: ppo.kl_controller.target: unknown key. Another"
        " type of ppo.kl_controller has it. Allowed here: type",
    ),
    Case(
        "a controller without a type",
        ("ppo.kl_controller={target: 6}",),
        "--set ppo.kl_controller={target: 6}: ppo.kl_controller: found {'target': 6}, needs the key "
        "'type', which says what is meant; add `type` with 'adaptive' or 'fixed'",
    ),
    Case(
        "a temperature that vLLM would raise",
        ("evaluation.rollout.temperature=0.001",),
        "--set evaluation.rollout.temperature=0.001: evaluation.rollout.temperature: found 0.001, must be"
        " at least 0.01; correct it, or leave it out for the default 1.0",
    ),
    Case(
        "a key where its variable's name is needed",
        ("ppo.rollout.server.api_key_env='no name'",),
        "--set ppo.rollout.server.api_key_env='no name': ppo.rollout.server.api_key_env: found 7 "
        "characters that are no name of an environment variable (not repeated here: they may be what it "
        "holds); letters, digits and `_` are needed; write the name alone",
    ),
    Case(
        "a token's variable with an equals sign",
        ("ppo.rewards=[{type: remote, address: 'http://h/', token_env: 'A=b'}]",),
        "--set ppo.rewards=[{type: remote, address: 'http://h/', token_env: 'A=b'}]: ppo.rewards.0.token_env: "
        "found 3 characters that are no name of an environment variable (not repeated here: they may be "
        "what it holds); letters, digits and `_` are needed; write the name alone",
    ),
    Case(
        "an unknown way to reword",
        ("data.augmentation=[{type: synonym}]",),
        "--set data.augmentation=[{type: synonym}]: data.augmentation.0: found type 'synonym', must be "
        "'synonyms', 'random_deletion', 'paraphrase', 'back_translation'. Did you mean 'synonyms'?",
    ),
    Case(
        "all words left out",
        ("data.augmentation=[{type: random_deletion, words: 1}]",),
        "--set data.augmentation=[{type: random_deletion, words: 1}]: data.augmentation.0.words: found 1, "
        "must be less than 1; correct it, or leave it out for the default 0.1",
    ),
    Case(
        "synonyms without a database",
        ("data.augmentation=[{type: synonyms, wordnet: nowhere}]",),
        "data.augmentation.0: no database of WordNet in nowhere; its files `index.noun`, `data.noun` and so "
        "on are needed: install Debian's package `wordnet-base`, or run `python -m nltk.downloader wordnet` "
        "and unpack it, or name the folder by `wordnet`",
    ),
    Case(
        "a paraphrase without its token",
        (
            "data.augmentation=[{type: paraphrase, endpoint: {address: 'http://h/v1', model: m, token_env: "
            "NO_SUCH_TOKEN}}]",
        ),
        "data.augmentation.0.endpoint.token_env=NO_SUCH_TOKEN: this environment variable is not set; put the "
        "chat endpoint's token there, or remove the setting",
    ),
    Case(
        "label smoothing of rankings",
        ("reward_model.loss=plackett_luce", "reward_model.label_smoothing=0.1"),
        "--set reward_model.loss=plackett_luce --set reward_model.label_smoothing=0.1: reward_model: "
        "label_smoothing=0.1 is the share of turned pairs, and loss=plackett_luce is learned from whole "
        "rankings; use label_smoothing=0, or loss=bradley_terry",
    ),
    Case(
        "a ready reward model that is to be trained",
        ("reward_model.pretrained={base: ./judge}", "reward_model.epochs=2"),
        "--set reward_model.pretrained={base: ./judge} --set reward_model.epochs=2: reward_model: epochs is "
        "set, and `pretrained` names a ready reward model, which is not trained; remove one of the two",
    ),
]
