"""Configurations at fault: model, data, SFT, preferences and reward model. Each with the whole message."""

from tests.bad_inputs.config_case import Case

CASES = [
    Case(
        "a seed below 0",
        ("seed=-1",),
        "--set seed=-1: seed: found -1, must be at least 0; correct it, or leave it out for the default 0",
    ),
    Case(
        "a seed with a fraction",
        ("seed=1.5",),
        "--set seed=1.5: seed: found 1.5, must be a whole number; correct it, or leave it out for the default 0",
    ),
    Case(
        "a seed that is a word",
        ("seed=abc",),
        "--set seed=abc: seed: found 'abc', must be a whole number; correct it, or leave it out for the default 0",
    ),
    Case(
        "a seed that is true",
        ("seed=true",),
        "--set seed=true: seed: found true, must be a number; correct it, or leave it out for the default 0",
    ),
    Case(
        "a seed of more than 32 bits",
        ("seed=4294967296",),
        "--set seed=4294967296: seed: found 4294967296, must be less than 4294967296; correct it, or "
        "leave it out for the default 0",
    ),
    Case(
        "an empty output folder",
        ("output_dir=",),
        "--set output_dir=: output_dir: found null, must be text; correct it, or leave it out for the "
        "default 'outputs'",
    ),
    Case(
        "a number as output folder",
        ("output_dir=5",),
        "--set output_dir=5: output_dir: found 5, must be text; correct it, or leave it out for the default 'outputs'",
    ),
    Case(
        "no base",
        ("model.base=null",),
        "--set model.base=null: model.base: found null, must be text; correct it",
    ),
    Case(
        "an unknown type",
        ("model.dtype=float64",),
        "--set model.dtype=float64: model.dtype: found 'float64', must be 'bfloat16', 'float32' or "
        "'float16'. Did you mean 'float16'?",
    ),
    Case(
        "rank 0",
        ("model.tuning.rank=0",),
        "--set model.tuning.rank=0: model.tuning.rank: found 0, must be at least 1; correct it, or leave "
        "it out for the default 16",
    ),
    Case(
        "an infinite alpha",
        ("model.tuning.alpha=.inf",),
        "--set model.tuning.alpha=.inf: model.tuning.alpha: found inf, must be a finite number; correct "
        "it, or leave it out for the default 32.0",
    ),
    Case(
        "alpha 0",
        ("model.tuning.alpha=0",),
        "--set model.tuning.alpha=0: model.tuning.alpha: found 0, must be greater than 0; correct it, or "
        "leave it out for the default 32.0",
    ),
    Case(
        "a dropout above 1",
        ("model.tuning.dropout=1.5",),
        "--set model.tuning.dropout=1.5: model.tuning.dropout: found 1.5, must be less than 1; correct "
        "it, or leave it out for the default 0.0",
    ),
    Case(
        "the last 0 blocks",
        ("model.tuning.layers={last: 0}",),
        "--set model.tuning.layers={last: 0}: model.tuning.layers.last: found 0, must be at least 1; correct it",
    ),
    Case(
        "blocks as a number",
        ("model.tuning.layers=5",),
        "--set model.tuning.layers=5: model.tuning.layers: found 5, must be a section (key: value lines); "
        "correct it, or leave it out for the default null",
    ),
    Case(
        "blocks of an unknown kind",
        ("model.tuning.layers={last: 2, first: 1}",),
        "--set model.tuning.layers={last: 2, first: 1}: model.tuning.layers.first: unknown key. Allowed here: last",
    ),
    Case(
        "no module to adapt",
        ("model.tuning.target_modules=[]",),
        "--set model.tuning.target_modules=[]: model.tuning.target_modules: found [], must be "
        "'all-linear' or of length at least 1. Use one of them",
    ),
    Case(
        "modules as a number",
        ("model.tuning.target_modules=5",),
        "--set model.tuning.target_modules=5: model.tuning.target_modules: found 5, must be 'all-linear' "
        "or a list. Use one of them",
    ),
    Case(
        "a method written wrongly",
        ("model.tuning.method=lroa",),
        "--set model.tuning.method=lroa: model.tuning.method: found 'lroa', must be 'lora' or 'qlora'. "
        "Did you mean 'lora'?",
    ),
    Case(
        "an unknown quantisation",
        ("model.quantization=int3",),
        "--set model.quantization=int3: model.quantization: found 'int3', must be 'none' or 'nf4'. Use one of them",
    ),
    Case(
        "an unknown attention",
        ("model.attention=flash",),
        "--set model.attention=flash: model.attention: found 'flash', must be 'sdpa', 'eager', "
        "'flash_attention_2' or 'auto'. Use one of them",
    ),
    Case(
        "trust that is neither true nor false",
        ("model.trust_remote_code=maybe",),
        "--set model.trust_remote_code=maybe: model.trust_remote_code: found 'maybe', must be true or "
        "false; correct it, or leave it out for the default false",
    ),
    Case(
        "qlora without quantisation",
        (
            "model.tuning.method=qlora",
            "model.quantization=none",
        ),
        "--set model.tuning.method=qlora --set model.quantization=none: model: `tuning.method: qlora` "
        "needs `quantization: nf4`; drop one of the two",
    ),
    Case(
        "a revision that is a number",
        ("model.revision=5",),
        "--set model.revision=5: model.revision: found 5, must be text; correct it, or leave it out for "
        "the default null",
    ),
    Case(
        "all rows held out",
        ("data.demonstrations.held_out=1.0",),
        "--set data.demonstrations.held_out=1.0: data.demonstrations.held_out: found 1.0, must be less "
        "than 1; correct it, or leave it out for the default 0.1",
    ),
    Case(
        "a negative share held out",
        ("data.demonstrations.held_out=-0.1",),
        "--set data.demonstrations.held_out=-0.1: data.demonstrations.held_out: found -0.1, must be at "
        "least 0; correct it, or leave it out for the default 0.1",
    ),
    Case(
        "path and hub at once",
        ("data.demonstrations.hub=org/x",),
        "--set data.demonstrations.hub=org/x: data.demonstrations: give exactly one of `path` (file, "
        "folder or glob), `hub` (data set id) and `mix` (several of them)",
    ),
    Case(
        "neither demonstrations nor preferences",
        (
            "data.demonstrations=null",
            "data.preferences=null",
        ),
        "--set data.demonstrations=null --set data.preferences=null: data: neither `demonstrations` nor "
        "`preferences` is given; SFT needs one of the two\n"
        "--set data.preferences=null: reward_model: there are no preferences to train on; give "
        "`data.preferences`, switch on the stage that makes them (`preferences: {}`), or set "
        "`reward_model: null`",
    ),
    Case(
        "a source that is a number",
        ("data.demonstrations=5",),
        "--set data.demonstrations=5: data.demonstrations: found 5, must be a section (key: value lines); "
        "correct it, or leave it out for the default null",
    ),
    Case(
        "an unknown format of rows",
        ("data.demonstrations.format=xml",),
        "--set data.demonstrations.format=xml: data.demonstrations.format: found 'xml', must be 'auto', "
        "'instruction', 'prompt_response', 'text', 'messages', 'sharegpt', 'preference', 'hh', 'ranking', "
        "'labeled' or 'prompt'. Use one of "
        "them",
    ),
    Case(
        "columns as a list",
        ("data.demonstrations.columns=[a]",),
        "--set data.demonstrations.columns=[a]: data.demonstrations.columns: found ['a'], must be a "
        "mapping; correct it, or leave it out for the default",
    ),
    Case(
        "a column that is a list",
        ("data.demonstrations.columns={a: [b]}",),
        "--set data.demonstrations.columns={a: [b]}: data.demonstrations.columns.a: found ['b'], must be "
        "text; correct it",
    ),
    Case(
        "a share above 1",
        ("data.max_skipped_share=2",),
        "--set data.max_skipped_share=2: data.max_skipped_share: found 2, must be at most 1; correct it, "
        "or leave it out for the default 0.05",
    ),
    Case(
        "a share that is a word",
        ("data.max_skipped_share=none",),
        "--set data.max_skipped_share=none: data.max_skipped_share: found 'none', must be a number; "
        "correct it, or leave it out for the default 0.05",
    ),
    Case(
        "no data",
        ("data=null",),
        "--set data=null: data: found null, must be a section (key: value lines); correct it",
    ),
    Case(
        "learning rate 0",
        ("sft.learning_rate=0",),
        "--set sft.learning_rate=0: sft.learning_rate: found 0, must be greater than 0; correct it, or "
        "leave it out for the default 0.0002",
    ),
    Case(
        "a learning rate beyond all numbers",
        ("sft.learning_rate=1e400",),
        "--set sft.learning_rate=1e400: sft.learning_rate: found '1e400', must be a finite number; "
        "correct it, or leave it out for the default 0.0002",
    ),
    Case(
        "a learning rate that is no number",
        ("sft.learning_rate=.nan",),
        "--set sft.learning_rate=.nan: sft.learning_rate: found nan, must be a finite number; correct it, "
        "or leave it out for the default 0.0002",
    ),
    Case(
        "a batch that accumulation does not divide",
        (
            "sft.batch_size=10",
            "sft.microbatch_size=4",
        ),
        "--set sft.batch_size=10 --set sft.microbatch_size=4: sft.batch_size=10 is not divisible by "
        "sft.microbatch_size=4 x launch.num_processes=1 = 4; use sft.batch_size=8 or 12, or another "
        "microbatch_size",
    ),
    Case(
        "a microbatch larger than the batch",
        (
            "sft.microbatch_size=64",
            "sft.batch_size=32",
        ),
        "--set sft.microbatch_size=64 --set sft.batch_size=32: sft.batch_size=32 is not divisible by "
        "sft.microbatch_size=64 x launch.num_processes=1 = 64; use sft.batch_size=64 or 128, or another "
        "microbatch_size",
    ),
    Case(
        "sequences of one token",
        ("sft.max_length=1",),
        "--set sft.max_length=1: sft.max_length: found 1, must be at least 2; correct it, or leave it out "
        "for the default 1024",
    ),
    Case(
        "a warm-up longer than the training",
        ("sft.warmup_fraction=1.5",),
        "--set sft.warmup_fraction=1.5: sft.warmup_fraction: found 1.5, must be less than 1; correct it, "
        "or leave it out for the default 0.03",
    ),
    Case(
        "an unknown schedule",
        ("sft.lr_schedule=exponential",),
        "--set sft.lr_schedule=exponential: sft.lr_schedule: found 'exponential', must be 'linear', "
        "'cosine' or 'constant'. Use one of them",
    ),
    Case(
        "validation every half step",
        ("sft.eval_every_steps=0.5",),
        "--set sft.eval_every_steps=0.5: sft.eval_every_steps: found 0.5, must be a whole number; correct "
        "it, or leave it out for the default null",
    ),
    Case(
        "a section that is a list",
        ("sft=[]",),
        "--set sft=[]: sft: found [], must be a section (key: value lines); correct it, or leave it out "
        "for the default",
    ),
    Case(
        "PPO without a reward model",
        ("reward_model=null",),
        "--set reward_model=null: ppo: needs the reward model that `reward_model: null` switches off; set `ppo: null`",
    ),
    Case(
        "label smoothing beyond one half",
        ("reward_model.label_smoothing=0.6",),
        "--set reward_model.label_smoothing=0.6: reward_model.label_smoothing: found 0.6, must be less "
        "than 0.5; correct it, or leave it out for the default 0.0",
    ),
    Case(
        "normalisation on one prompt",
        ("reward_model.normalization.num_prompts=1",),
        "--set reward_model.normalization.num_prompts=1: reward_model.normalization.num_prompts: found 1, "
        "must be at least 2; correct it, or leave it out for the default 128",
    ),
    Case(
        "a reward model batch that accumulation does not divide",
        (
            "reward_model.batch_size=6",
            "reward_model.microbatch_size=4",
        ),
        "--set reward_model.batch_size=6 --set reward_model.microbatch_size=4: reward_model.batch_size=6 "
        "is not divisible by reward_model.microbatch_size=4 x launch.num_processes=1 = 4; use "
        "reward_model.batch_size=4 or 8, or another microbatch_size",
    ),
    Case(
        "preferences from two places",
        ("preferences={}",),
        "--set preferences={}: preferences: both `data.preferences` and the `preferences` stage would "
        "feed the reward model; drop one of the two",
    ),
    Case(
        "preferences from nowhere",
        ("data.preferences=null",),
        "--set data.preferences=null: reward_model: there are no preferences to train on; give "
        "`data.preferences`, switch on the stage that makes them (`preferences: {}`), or set "
        "`reward_model: null`",
    ),
    Case(
        "one response to compare",
        ("data.preferences=null", "preferences={responses_per_prompt: 1}"),
        "--set preferences={responses_per_prompt: 1}: preferences.responses_per_prompt: found 1, must be "
        "at least 2; correct it, or leave it out for the default 4",
    ),
    Case(
        "an unknown labeler",
        ("data.preferences=null", "preferences={labeler: {type: oracle}}"),
        "--set preferences={labeler: {type: oracle}}: preferences.labeler: found type 'oracle', must be "
        "'simulated', 'human', 'judge'. Use one of them",
    ),
    Case(
        "more labels a prompt than people",
        ("data.preferences=null", "preferences={labeler: {type: human, annotators: [anna], labels_per_prompt: 2}}"),
        "--set preferences={labeler: {type: human, annotators: [anna], labels_per_prompt: 2}}: preferences.labeler: "
        "labels_per_prompt=2, but annotators names 1, and each judges a prompt once; use labels_per_prompt=1 or less, "
        "or name more people",
    ),
    Case(
        "a person who labels twice",
        ("data.preferences=null", "preferences={labeler: {type: human, annotators: [anna, anna]}}"),
        "--set preferences={labeler: {type: human, annotators: [anna, anna]}}: preferences.labeler: annotators names "
        "anna more than once, but a person judges a prompt once; name each person once",
    ),
    Case(
        "two ends of the labeling",
        ("data.preferences=null", "preferences={labeler: {type: human, min_prompts: 4, min_share: 0.5}}"),
        "--set preferences={labeler: {type: human, min_prompts: 4, min_share: 0.5}}: preferences.labeler: "
        "min_prompts=4 and min_share=0.5 both say when the run goes on; drop one of the two",
    ),
    Case(
        "a reward model that would agree with itself",
        ("data.preferences=null", "preferences={selection: {type: ensemble_disagreement, reward_models: [a, a]}}"),
        "--set preferences={selection: {type: ensemble_disagreement, reward_models: [a, a]}}: preferences.selection: "
        "reward_models names a more than once, but a model never disagrees with itself; name each folder once",
    ),
    Case(
        "no reward model to disagree with",
        ("data.preferences=null", "preferences={selection: {type: ensemble_disagreement, reward_models: []}}"),
        "--set preferences={selection: {type: ensemble_disagreement, reward_models: []}}: "
        "preferences.selection.reward_models: found [], must be of length at least 1; correct it",
    ),
    Case(
        "an ensemble of one",
        ("reward_model.ensemble={members: 1}",),
        "--set reward_model.ensemble={members: 1}: reward_model.ensemble.members: found 1, must be at least 2; "
        "correct it",
    ),
    Case(
        "the reward model on the shared base twice",
        ("reward_model.model={base: ./base}",),
        "--set reward_model.model={base: ./base}: reward_model.model: it is the same as `model`, which "
        "would be loaded a second time; a base of its own has to differ: leave it out, and the reward "
        "model starts from SFT on the shared base",
    ),
    Case(
        "a critic from a reward model on another base",
        (
            "reward_model.model={base: ./other}",
            "ppo.critic_init=reward_model",
        ),
        "--set reward_model.model={base: ./other} --set ppo.critic_init=reward_model: "
        "ppo.critic_init=reward_model, but `reward_model.model` gives the reward model another base, "
        "whose adapter and head fit no critic here; use `ppo.critic_init: zero` or `auto`",
    ),
]
