"""Configurations whose sections contradict one another. Each with the whole message."""

from tests.bad_inputs.config_case import Case

CASES = [
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
        "a reward and an ensemble",
        (
            "ppo.reward={type: vader}",
            "ppo.reward_ensemble={members: [other]}",
        ),
        "--set ppo.reward={type: vader} --set ppo.reward_ensemble={members: [other]}: ppo: reward and "
        "reward_ensemble are both set, but `reward` judges in place of all reward models: drop one of the"
        " two",
    ),
    Case(
        "a critic from a reward model that does not judge",
        (
            "ppo.reward={type: vader}",
            "ppo.critic_init=reward_model",
        ),
        "--set ppo.reward={type: vader} --set ppo.critic_init=reward_model: ppo: "
        "critic_init=reward_model, but `reward` judges in place of the reward model and in other units; "
        "use `critic_init: zero` or `auto`",
    ),
    Case(
        "the same opinion twice",
        ("ppo.reward_ensemble={members: [one, two, one]}",),
        "--set ppo.reward_ensemble={members: [one, two, one]}: ppo.reward_ensemble: members names one "
        "more than once, but what a model says twice is no second opinion; name each folder once",
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
        ("ppo.reward={type: remote, address: 'http://h/', token_env: 'A=b'}",),
        "--set ppo.reward={type: remote, address: 'http://h/', token_env: 'A=b'}: ppo.reward.token_env: "
        "found 3 characters that are no name of an environment variable (not repeated here: they may be "
        "what it holds); letters, digits and `_` are needed; write the name alone",
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
