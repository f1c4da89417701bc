"""Cases, table and ratios of the throughput benchmark, from made-up seconds."""

from dataclasses import replace

from benchmarks.ppo_throughput import Case, _seconds, make_ablations, make_cases, ratios, table
from benchmarks.throughput_job import Job

JOB = Job(base="b", prompts=["p"])


def _steps(cases: list[Case]) -> dict[str, list[dict[str, float]]]:
    seconds = {"peer": [40.0, 32.0, 36.0], "ours": [15.0, 18.0, 16.0], "floor": [14.0, 16.0, 15.0]}
    return {case.name: [{"step": value} for value in seconds[case.side]] for case in cases}


def test_the_cases_do_the_same_job_but_for_what_their_names_say() -> None:
    cases = make_cases(JOB, peer=True, last=10)
    assert [(case.side, case.job.last) for case in cases] == [
        (side, last) for last in (None, 10) for side in ("peer", "peer", "ours", "ours", "floor")
    ]
    assert [case.side for case in make_cases(JOB, peer=False, last=10)] == ["ours", "ours", "floor"] * 2
    assert len({case.name for case in cases}) == 10
    for case in cases:
        assert (case.job.batch_size, case.job.max_new_tokens, case.job.num_ppo_epochs) == (32, 24, 2)
    defaults, fast, ours, compiled, floor = cases[:5]
    assert (defaults.job.dtype, defaults.job.autocast) == ("float32", True)
    assert (fast.job.dtype, fast.job.autocast, ours.job.dtype) == ("bfloat16", False, "bfloat16")
    assert compiled.job == replace(ours.job, ppo={"compile_blocks": True}) and floor.job == ours.job


def test_our_job_is_one_optimizer_step_an_epoch() -> None:
    config = JOB.ppo_config
    assert config.batch_size == config.minibatch_size == config.microbatch_size == 32
    assert config.shares_first_pass and config.num_ppo_epochs == 2 and config.rollout.max_new_tokens == 24
    assert JOB.model.tuning.layers is None and JOB.model.tuning.rank == 16


def test_ratios_compare_within_the_same_blocks() -> None:
    cases = make_cases(JOB, peer=True, last=10)
    lines = ratios(cases, _steps(cases))
    # Medians 36, 16 and 15; worst pairs 32 / 18 and 18 / 14.
    assert lines[0] == "- all blocks: ours: 2.25 times as fast as all blocks: peer, its defaults (worst pair 1.78)"
    assert lines[2] == "- all blocks: ours: a step takes 1.07 of its floor (worst pair 1.29)"
    assert len(lines) == 10 and all(line.count("last 10 blocks") in (0, 1, 2) for line in lines)
    assert not [line for line in lines if "all blocks" in line and "last 10" in line]


def test_each_ablation_takes_one_thing_away() -> None:
    cases = make_ablations(JOB, last=10)
    plain = {case.job.last: case.job for case in cases if case.name.endswith("ours")}
    assert plain.keys() == {None, 10} and len(cases) == 6
    for case in cases:
        own = plain[case.job.last]
        changed = [name for name in vars(own) if getattr(case.job, name) != getattr(own, name)]
        assert len(changed) == (0 if case.name.endswith("ours") else 1), case.name
        assert case.job.ppo_config.has_critic


def test_the_table_has_medians_ranges_and_rates() -> None:
    cases = make_cases(JOB, peer=False, last=10)[:1]
    rows = [{"step": 15.0, "generate": 3.0}, {"step": 18.0, "generate": 5.0}, {"step": 16.0, "generate": 4.0}]
    line = table(cases, {cases[0].name: rows}).splitlines()[2]
    assert line == "| all blocks: ours | 16.0 (15.0 to 18.0) | 2.00 | 4.0 |  |  |  |  | 3 |"


def test_rows_of_all_sides_are_read() -> None:
    assert _seconds(3.5) == {"step": 3.5}
    assert _seconds({"generate": 1.0, "passes": 2.0, "step": 3.0}) == {"generate": 1.0, "passes": 2.0, "step": 3.0}
    row = {"time/update_seconds": 2.0, "time/step_seconds": 5.0, "objective/kl": 1.0}
    assert _seconds(row) == {"update": 2.0, "step": 5.0}
