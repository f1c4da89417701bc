"""Configurations at fault: PPO, evaluation, launch, tracking and `--set` itself. Each with the whole message."""

from tests.bad_inputs.config_case import Case

CASES = [
    Case(
        "a PPO batch that minibatches do not divide",
        ("ppo.batch_size=100",),
        "--set ppo.batch_size=100: ppo: batch_size=100 is not divisible by minibatch_size=32; use "
        "minibatch_size=20, 25, 50",
    ),
    Case(
        "a minibatch that microbatches do not divide",
        (
            "ppo.minibatch_size=16",
            "ppo.microbatch_size=6",
        ),
        "--set ppo.minibatch_size=16 --set ppo.microbatch_size=6: ppo: minibatch_size=16 is not divisible"
        " by microbatch_size=6; use microbatch_size=2, 4, 8",
    ),
    Case(
        "groups that do not divide the batch",
        (
            "ppo.advantage_estimator=grpo",
            "ppo.responses_per_prompt=3",
        ),
        "--set ppo.responses_per_prompt=3: ppo: batch_size=64 is not divisible by responses_per_prompt=3;"
        " use responses_per_prompt=1, 2, 4",
    ),
    Case(
        "groups of one response",
        ("ppo.advantage_estimator=rloo",),
        "--set ppo.advantage_estimator=rloo: ppo: advantage_estimator=rloo compares the responses to one "
        "prompt, but responses_per_prompt=1; use responses_per_prompt=2 or more (4 is usual)",
    ),
    Case(
        "a setting of the critic without a critic",
        (
            "ppo.advantage_estimator=rloo",
            "ppo.responses_per_prompt=4",
            "ppo.gae_lambda=0.9",
        ),
        "--set ppo.advantage_estimator=rloo --set ppo.gae_lambda=0.9: ppo: gae_lambda is set, but "
        "advantage_estimator=rloo does not use it; remove gae_lambda, or use advantage_estimator=gae",
    ),
    Case(
        "a clip range of 1 and more",
        ("ppo.clip_range=1.5",),
        "--set ppo.clip_range=1.5: ppo.clip_range: found 1.5, must be less than 1; correct it, or leave "
        "it out for the default 0.2",
    ),
    Case(
        "a discount above 1",
        ("ppo.gamma=1.5",),
        "--set ppo.gamma=1.5: ppo.gamma: found 1.5, must be at most 1; correct it, or leave it out for the default 1.0",
    ),
    Case(
        "lambda below 0",
        ("ppo.gae_lambda=-0.1",),
        "--set ppo.gae_lambda=-0.1: ppo.gae_lambda: found -0.1, must be at least 0; correct it, or leave "
        "it out for the default 0.95",
    ),
    Case(
        "an adaptive KL without a target",
        ("ppo.kl_controller={type: adaptive}",),
        "--set ppo.kl_controller={type: adaptive}: ppo.kl_controller.target: missing. It is required (KL "
        "per response that is aimed at, in nats); add `ppo.kl_controller.target`",
    ),
    Case(
        "an adaptive KL with target 0",
        ("ppo.kl_controller={type: adaptive, target: 0}",),
        "--set ppo.kl_controller={type: adaptive, target: 0}: ppo.kl_controller.target: found 0, must be "
        "greater than 0; correct it",
    ),
    Case(
        "an unknown KL estimator",
        ("ppo.kl_estimator=k4",),
        "--set ppo.kl_estimator=k4: ppo.kl_estimator: found 'k4', must be 'k1', 'k2' or 'k3'. Did you mean 'k3'?",
    ),
    Case(
        "a dual clip below 1",
        ("ppo.dual_clip=0.5",),
        "--set ppo.dual_clip=0.5: ppo.dual_clip: found 0.5, must be greater than 1; correct it, or leave "
        "it out for the default null",
    ),
    Case(
        "two ways to treat a missing EOS",
        (
            "ppo.missing_eos_score=-1",
            "ppo.missing_eos_penalty=1",
        ),
        "--set ppo.missing_eos_score=-1 --set ppo.missing_eos_penalty=1: ppo: missing_eos_score and "
        "missing_eos_penalty are both set; a missing EOS is either replaced or penalised: drop one of the"
        " two",
    ),
    Case(
        "a score that is a word",
        ("ppo.missing_eos_score=abc",),
        "--set ppo.missing_eos_score=abc: ppo.missing_eos_score: found 'abc', must be a number; correct "
        "it, or leave it out for the default null",
    ),
    Case(
        "a trunk to cache where there is none",
        ("ppo.cache_trunk=true",),
        "--set ppo.cache_trunk=true: ppo.cache_trunk=true, but `model.tuning.layers` is not set: adapters"
        " on all blocks leave no trunk to cache; set `model.tuning.layers: {last: N}`, or "
        "`ppo.cache_trunk: auto`",
    ),
    Case(
        "a cache that is a number",
        ("ppo.cache_trunk=2",),
        "--set ppo.cache_trunk=2: ppo.cache_trunk: found 2, must be true or false or 'auto'; correct it, "
        "or leave it out for the default 'auto'",
    ),
    Case(
        "an unknown start of the critic",
        ("ppo.critic_init=random",),
        "--set ppo.critic_init=random: ppo.critic_init: found 'random', must be 'auto', 'reward_model' or "
        "'zero'. Use one of them",
    ),
    Case(
        "temperature 0",
        ("ppo.rollout.temperature=0",),
        "--set ppo.rollout.temperature=0: ppo.rollout.temperature: found 0, must be at least 0.01; "
        "correct it, or leave it out for the default 1.0",
    ),
    Case(
        "a temperature that vLLM refuses",
        ("ppo.rollout={temperature: 2.5, engine: vllm}",),
        "ppo.rollout.temperature: found 2.5, but vLLM samples at 2 at most; lower it, or use `ppo.rollout.engine: hf`",
    ),
    Case(
        "an unknown engine",
        ("ppo.rollout.engine=trt",),
        "--set ppo.rollout.engine=trt: ppo.rollout.engine: found 'trt', must be 'auto', 'hf', 'vllm' or "
        "'vllm_server'. Use one of them",
    ),
    Case(
        "an importance cap below 1",
        ("ppo.rollout.importance_cap=0",),
        "--set ppo.rollout.importance_cap=0: ppo.rollout.importance_cap: found 0, must be greater than 1; "
        "correct it, or leave it out for the default 2.0",
    ),
    Case(
        "a server without a protocol",
        ("ppo.rollout.server.address=localhost:8000",),
        "--set ppo.rollout.server.address=localhost:8000: ppo.rollout.server.address: found "
        "'localhost:8000', must be an address without a key in it; write it as http://host:8000",
    ),
    Case(
        "a password in an address",
        ("ppo.rollout.server.address=http://me:pw@host/v1",),
        "c.yaml: ppo.rollout.server.address: the value holds a password, key or token (not repeated "
        "here); a configuration is kept with the run and shown by Prefect and W&B, so it holds no "
        "password, key or token: put it into an environment variable instead (HF_TOKEN, WANDB_API_KEY, "
        "the one that `rollout.server.api_key_env` names) and leave it out here",
    ),
    Case(
        "more than all of the memory",
        ("ppo.rollout.vllm.gpu_memory_utilization=1.5",),
        "--set ppo.rollout.vllm.gpu_memory_utilization=1.5: ppo.rollout.vllm.gpu_memory_utilization: "
        "found 1.5, must be less than 1; correct it, or leave it out for the default 0.35",
    ),
    Case(
        "an evaluation of a PPO that is off",
        ("ppo=null",),
        "--set ppo=null: evaluation: compares PPO with SFT, but `ppo: null` switches PPO off; set `evaluation: null`",
    ),
    Case(
        "an evaluation on no prompt",
        ("evaluation.num_prompts=0",),
        "--set evaluation.num_prompts=0: evaluation.num_prompts: found 0, must be at least 2; correct it, "
        "or leave it out for the default 128",
    ),
    Case(
        "a gold scorer of an unknown kind",
        ("evaluation.gold={type: oracle}",),
        "--set evaluation.gold={type: oracle}: evaluation.gold: found type 'oracle', must be 'vader', "
        "'character_share'. Use one of them",
    ),
    Case(
        "a gold scorer as a word",
        ("evaluation.gold=vader",),
        "--set evaluation.gold=vader: evaluation.gold: found 'vader', must be a section (key: value "
        "lines); correct it, or leave it out for the default null",
    ),
    Case(
        "an unknown tracking mode",
        ("tracking.mode=sometimes",),
        "--set tracking.mode=sometimes: tracking.mode: found 'sometimes', must be 'auto', 'offline', "
        "'online' or 'disabled'. Use one of them",
    ),
    Case(
        "a project without a name",
        ("tracking.project=",),
        "--set tracking.project=: tracking.project: found null, must be text; correct it, or leave it out "
        "for the default 'rlhf'",
    ),
    Case(
        "an unknown launcher",
        ("launch.mode=slurm",),
        "--set launch.mode=slurm: launch.mode: found 'slurm', must be 'inline', 'process', 'accelerate' "
        "or 'deepspeed'. Use one of them",
    ),
    Case(
        "two processes without a launcher",
        ("launch.num_processes=2",),
        "--set launch.num_processes=2: launch: num_processes=2 needs `launch.mode: accelerate` or "
        "`deepspeed`, not `process`",
    ),
    Case(
        "ranks that do not divide a batch",
        (
            "launch.mode=accelerate",
            "launch.num_processes=3",
        ),
        "--set launch.num_processes=3: sft.batch_size=32 is not divisible by sft.microbatch_size=8 x "
        "launch.num_processes=3 = 24; use sft.batch_size=24 or 48, or another microbatch_size\n"
        "--set launch.num_processes=3: reward_model.batch_size=32 is not divisible by "
        "reward_model.microbatch_size=8 x launch.num_processes=3 = 24; use reward_model.batch_size=24 or "
        "48, or another microbatch_size\n"
        "--set launch.num_processes=3: ppo.minibatch_size=32 is not divisible by ppo.microbatch_size=8 x "
        "launch.num_processes=3 = 24; use ppo.minibatch_size=24 or 48 (and a ppo.batch_size that it "
        "divides, not 64), or another microbatch_size",
    ),
    Case(
        "a ZeRO stage that does not exist",
        ("launch.zero_stage=4",),
        "--set launch.zero_stage=4: launch.zero_stage: found 4, must be 1, 2 or 3. Use one of them",
    ),
    Case(
        "an unknown device",
        ("launch.device=tpu",),
        "--set launch.device=tpu: launch.device: found 'tpu', must be 'auto', 'cpu' or 'cuda'. Did you mean 'cpu'?",
    ),
    Case(
        "checkpoints every 0 minutes",
        ("launch.checkpoints.every_minutes=0",),
        "--set launch.checkpoints.every_minutes=0: launch.checkpoints.every_minutes: found 0, must be "
        "greater than 0; correct it, or leave it out for the default 10.0",
    ),
    Case(
        "no checkpoint to keep",
        ("launch.checkpoints.keep=0",),
        "--set launch.checkpoints.keep=0: launch.checkpoints.keep: found 0, must be at least 1; correct "
        "it, or leave it out for the default 2",
    ),
    Case(
        "a key written wrongly",
        ("ppo.kl_coeff=1",),
        "--set ppo.kl_coeff=1: ppo.kl_coeff: unknown key. Did you mean ppo.kl_coef?",
    ),
    Case(
        "a section written wrongly",
        ("modell={}",),
        "--set modell={}: modell: unknown key. Did you mean model?",
    ),
    Case(
        "a key that another section has",
        ("ppo.epochs=1",),
        "--set ppo.epochs=1: ppo.epochs: unknown key. Did you mean ppo.num_ppo_epochs?",
    ),
    Case(
        "a key of nothing",
        ("ppo.xyzzy=1",),
        "--set ppo.xyzzy=1: ppo.xyzzy: unknown key. Allowed here: steps, batch_size, minibatch_size, "
        "microbatch_size, microbatch_tokens, share_first_pass, cache_trunk, compile_blocks, "
        "advantage_estimator, responses_per_prompt, num_ppo_epochs, learning_rate, critic_init, "
        "critic_learning_rate, adam_epsilon, max_grad_norm, clip_range, dual_clip, max_approx_kl, "
        "entropy_coef, ptx_coef, value_clip_range, value_coef, gamma, gae_lambda, kl_coef, kl_controller, "
        "kl_estimator, kl_placement, whiten_advantages, whiten_rewards, normalize_scores, rewards, "
        "keep_rollouts, score_clip, missing_eos_score, missing_eos_penalty, max_prompt_tokens, "
        "generate_batch_size, max_bad_steps, max_kl_per_token, gradient_checkpointing, rollout",
    ),
    Case(
        "an option without a value",
        ("nokey",),
        "--set nokey: must read KEY=VALUE with dots in the key, as in --set ppo.steps=10",
    ),
    Case(
        "an option without a key",
        ("=5",),
        "--set =5: must read KEY=VALUE with dots in the key, as in --set ppo.steps=10",
    ),
    Case(
        "an option with an empty part",
        ("a..b=1",),
        "--set a..b=1: must read KEY=VALUE with dots in the key, as in --set ppo.steps=10",
    ),
    Case(
        "an option that is no YAML",
        ("seed=[1",),
        "--set seed=[1:1: expected ',' or ']', but got '<stream end>'; quote it",
    ),
    Case(
        "a key below a value",
        ("seed.x=1",),
        "--set seed.x=1: seed: found {'x': 1}, must be a whole number; correct it, or leave it out for the default 0",
    ),
]
