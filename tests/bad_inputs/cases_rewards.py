"""Rewards at fault: components that cannot judge, or contradict themselves. Each with the whole message."""

from tests.bad_inputs.config_case import Case

CASES = [
    Case(
        "a reward function without a name",
        ("ppo.rewards=[{type: python, source: own.py}]",),
        "--set ppo.rewards=[{type: python, source: own.py}]: ppo.rewards.0.source: found 'own.py', must "
        "name a file or module and a function in it; write it as path/to/file.py:name or "
        "package.module:name",
    ),
    Case(
        "a reward function that is not there",
        ('ppo.rewards=[{type: python, source: "own.py:score"}]',),
        "ppo.rewards[python].source='own.py:score': no file at own.py or own.py; a Python file beside the"
        " configuration file or in the working directory is needed: correct the path",
    ),
    Case(
        "a reward server by FTP",
        ("ppo.rewards=[{type: remote, address: ftp://x}]",),
        "--set ppo.rewards=[{type: remote, address: ftp://x}]: ppo.rewards.0.address: found 'ftp://x', "
        "must be an address without a key in it; write it as http://host:8080/score",
    ),
    Case(
        "a health check that is no path",
        ("ppo.rewards=[{type: remote, address: 'http://h/', health: up}]",),
        "--set ppo.rewards=[{type: remote, address: 'http://h/', health: up}]: ppo.rewards.0.health: "
        "found 'up', must be a path on the same host or an address without a key in it; write it as "
        "/health or http://host:8080/health",
    ),
    Case(
        "a judge by FTP",
        ("ppo.rewards=[{type: judge, endpoint: {address: 'ftp://h/v1', model: m}}]",),
        "--set ppo.rewards=[{type: judge, endpoint: {address: 'ftp://h/v1', model: m}}]: "
        "ppo.rewards.0.endpoint.address: found 'ftp://h/v1', must be an address without a key in it; write it "
        "as http://host:8000/v1",
    ),
    Case(
        "a judge whose scale is upside down",
        ("ppo.rewards=[{type: judge, lowest: 5, highest: 5, endpoint: {address: 'http://h/v1', model: m}}]",),
        "--set ppo.rewards=[{type: judge, lowest: 5, highest: 5, endpoint: {address: 'http://h/v1', model: "
        "m}}]: ppo.rewards.0: lowest=5 is not below highest=5; a scale of two grades or more is needed; "
        "lower the one or raise the other",
    ),
    Case(
        "a judge whose question is not there",
        ("ppo.rewards=[{type: judge, template: q.txt, endpoint: {address: 'http://h/v1', model: m}}]",),
        "ppo.rewards[judge].template='q.txt': no file at q.txt or q.txt; a text file with {prompt}, "
        "{response} is needed: correct the path, or leave it out for the question of the package",
    ),
    Case(
        "a judge as labeler without its token",
        (
            "data.preferences=null",
            "preferences={labeler: {type: judge, judge: {endpoint: {address: 'http://h/v1', model: m, token_env: "
            "NO_SUCH_TOKEN}}}}",
        ),
        "preferences.labeler.judge.endpoint.token_env=NO_SUCH_TOKEN: this environment variable is not set; "
        "put the chat endpoint's token there, or remove the setting",
    ),
    Case(
        "a reward of an unknown kind",
        ("ppo.rewards=[{type: lenght}]",),
        "--set ppo.rewards=[{type: lenght}]: ppo.rewards.0: found type 'lenght', must be 'learned', "
        "'ensemble', 'length', 'regex', 'format', 'repetition', 'exact_match', 'math', 'sentiment', "
        "'toxicity', 'refusal', 'python', 'remote', 'judge', 'character_share'. Did you mean 'length'?",
    ),
    Case(
        "a reward without a kind",
        ("ppo.rewards=[{weight: 2}]",),
        "--set ppo.rewards=[{weight: 2}]: ppo.rewards.0: found {'weight': 2}, needs the key 'type', which"
        " says what is meant; add `type` with 'character_share' or 'ensemble' or 'exact_match' or "
        "'format' or 'judge' or 'learned' or 'length' or 'math' or 'python' or 'refusal' or 'regex' or 'remote' or "
        "'repetition' or 'sentiment' or 'toxicity'",
    ),
    Case(
        "a reward that is no list",
        ("ppo.rewards={type: learned}",),
        "--set ppo.rewards={type: learned}: ppo.rewards: found {'type': 'learned'}, must be a list; "
        "correct it, or leave it out for the default null",
    ),
    Case(
        "a reward of nothing",
        ("ppo.rewards=[]",),
        "--set ppo.rewards=[]: ppo.rewards: found [], must be of length at least 1; correct it, or leave "
        "it out for the default null",
    ),
    Case(
        "the one reward of earlier versions",
        ("ppo.reward={type: vader}",),
        "--set ppo.reward={type: vader}: ppo.reward: a key of earlier versions, now an entry of "
        "`rewards`; write `rewards: [{type: python, source: ...}]` for a function, `[{type: remote, "
        "address: ...}]` for a server, `[{type: sentiment}]` for vader",
    ),
    Case(
        "the ensemble of earlier versions",
        ("ppo.reward_ensemble={members: [other]}",),
        "--set ppo.reward_ensemble={members: [other]}: ppo.reward_ensemble: a key of earlier versions, "
        "now an entry of `rewards`; write `rewards: [{type: ensemble, members: [...]}]`",
    ),
    Case(
        "an ensemble of nobody",
        ("ppo.rewards=[{type: ensemble, with_own: false}]",),
        "--set ppo.rewards=[{type: ensemble, with_own: false}]: ppo.rewards.0: with_own=false leaves no member; name "
        "reward models, or drop `with_own`",
    ),
    Case(
        "the same opinion twice",
        ("ppo.rewards=[{type: ensemble, members: [one, two, one]}]",),
        "--set ppo.rewards=[{type: ensemble, members: [one, two, one]}]: ppo.rewards.0: members names one"
        " more than once, but what a model says twice is no second opinion; name each folder once",
    ),
    Case(
        "a key of another component",
        ("ppo.rewards=[{type: learned, pattern: x}]",),
        "--set ppo.rewards=[{type: learned, pattern: x}]: ppo.rewards.0.pattern: unknown key. Another "
        "type of ppo.rewards.0 has it. Allowed here: type, name, weight, threshold, normalize, clip, path",
    ),
    Case(
        "two components of one name",
        ("ppo.rewards=[{type: length}, {type: regex, name: length, pattern: x}]",),
        "--set ppo.rewards=[{type: length}, {type: regex, name: length, pattern: x}]: ppo: rewards has 2 "
        "components called `length`, but each has curves and a column of its own; give them different "
        "names (`name: ...`)",
    ),
    Case(
        "a name that is no curve's",
        ("ppo.rewards=[{type: length, name: so long}]",),
        "--set ppo.rewards=[{type: length, name: so long}]: ppo.rewards.0.name: found 'so long', must "
        "name a curve: at most 64 letters, digits, `_`, `.` and `-`, the first a letter or digit; write "
        "it as brevity, say",
    ),
    Case(
        "a weight beside a threshold",
        ("ppo.rewards=[{type: length, weight: 2, threshold: {at_most: 9}}]",),
        "--set ppo.rewards=[{type: length, weight: 2, threshold: {at_most: 9}}]: ppo.rewards.0: weight=2 "
        "and `threshold` are both set, but the multiplier of a threshold is its weight; drop one of the "
        "two",
    ),
    Case(
        "a threshold in units that are taken away",
        ("ppo.rewards=[{type: learned}, {type: length, normalize: batch, threshold: {at_most: 9}}]",),
        "--set ppo.rewards=[{type: learned}, {type: length, normalize: batch, threshold: {at_most: 9}}]: "
        "ppo.rewards.1: normalize=batch takes the units away in which `threshold` is given; use "
        "`normalize: none`, or a weight",
    ),
    Case(
        "a threshold without a bound",
        ("ppo.rewards=[{type: length, threshold: {multiplier_max: 2}}]",),
        "--set ppo.rewards=[{type: length, threshold: {multiplier_max: 2}}]: ppo.rewards.0.threshold: "
        "exactly one of `at_least` and `at_most` is needed, but neither of them is given; give one (two "
        "bounds are two components)",
    ),
    Case(
        "a threshold of two bounds",
        ("ppo.rewards=[{type: length, threshold: {at_least: 1, at_most: 2}}]",),
        "--set ppo.rewards=[{type: length, threshold: {at_least: 1, at_most: 2}}]: "
        "ppo.rewards.0.threshold: exactly one of `at_least` and `at_most` is needed, but both are given; "
        "give one (two bounds are two components)",
    ),
    Case(
        "a multiplier that starts above its end",
        ("ppo.rewards=[{type: length, threshold: {at_most: 2, multiplier_init: 20}}]",),
        "--set ppo.rewards=[{type: length, threshold: {at_most: 2, multiplier_init: 20}}]: "
        "ppo.rewards.0.threshold: multiplier_init=20 is above multiplier_max=10; lower the one or raise "
        "the other",
    ),
    Case(
        "a range without room",
        ("ppo.rewards=[{type: learned, clip: [1, 1]}]",),
        "--set ppo.rewards=[{type: learned, clip: [1, 1]}]: ppo.rewards.0: clip=[1, 1] leaves no room; "
        "write it as [low, high]",
    ),
    Case(
        "a range of one end",
        ("ppo.rewards=[{type: learned, clip: [1]}]",),
        "--set ppo.rewards=[{type: learned, clip: [1]}]: ppo.rewards.0.clip: found [1], must be of length"
        " at least 2; correct it, or leave it out for the default null",
    ),
    Case(
        "a range of three ends",
        ("ppo.rewards=[{type: learned, clip: [1, 2, 3]}]",),
        "--set ppo.rewards=[{type: learned, clip: [1, 2, 3]}]: ppo.rewards.0.clip: found [1, 2, 3], must "
        "be of length at most 2; correct it, or leave it out for the default null",
    ),
    Case(
        "a weight that is true",
        ("ppo.rewards=[{type: learned}, {type: length, weight: true}]",),
        "--set ppo.rewards=[{type: learned}, {type: length, weight: true}]: ppo.rewards.1.weight: found "
        "true, must be a number; correct it, or leave it out for the default 1.0",
    ),
    Case(
        "lengths the wrong way round",
        ("ppo.rewards=[{type: length, minimum: 9, maximum: 2}]",),
        "--set ppo.rewards=[{type: length, minimum: 9, maximum: 2}]: ppo.rewards.0: minimum=9 is above "
        "maximum=2; nothing is between; swap them",
    ),
    Case(
        "a template without bounds",
        ("ppo.rewards=[{type: format, template: {type: count, of: lines}}]",),
        "--set ppo.rewards=[{type: format, template: {type: count, of: lines}}]: ppo.rewards.0.template: "
        "minimum and maximum are both null, so that every response fits; give one",
    ),
    Case(
        "a template of an unknown kind",
        ("ppo.rewards=[{type: format, template: {type: yaml}}]",),
        "--set ppo.rewards=[{type: format, template: {type: yaml}}]: ppo.rewards.0.template: found type "
        "'yaml', must be 'json', 'tags', 'count'. Use one of them",
    ),
    Case(
        "an element twice",
        ("ppo.rewards=[{type: format, template: {type: tags, names: [a, b, a]}}]",),
        "--set ppo.rewards=[{type: format, template: {type: tags, names: [a, b, a]}}]: "
        "ppo.rewards.0.template: names has a more than once, but each element stands once; name each once",
    ),
    Case(
        "an element with a space",
        ("ppo.rewards=[{type: format, template: {type: tags, names: ['a b']}}]",),
        "--set ppo.rewards=[{type: format, template: {type: tags, names: ['a b']}}]: "
        "ppo.rewards.0.template.names.0: found 'a b', must be the name of an element, without brackets; "
        "write it as answer for <answer>...</answer>",
    ),
    Case(
        "a pattern that is none",
        ("ppo.rewards=[{type: regex, pattern: '(a'}]",),
        "ppo.rewards[regex].pattern='(a': no regular expression (missing ) at position 2); one in the "
        "syntax of the package `regex` is needed; correct it (in YAML, single quotes leave backslashes "
        "alone)",
    ),
    Case(
        "an answer in two groups",
        ("ppo.rewards=[{type: exact_match, extract: '(a)(b)'}]",),
        "ppo.rewards[exact_match].extract='(a)(b)': it has 2 groups, but 1 is needed: what is in it is "
        "the answer; put it into brackets, and write `(?:...)` for others",
    ),
    Case(
        "an answer in no group",
        ("ppo.rewards=[{type: math, extract: 'a'}]",),
        "ppo.rewards[math].extract='a': it has 0 groups, but 1 is needed: what is in it is the answer; "
        "put it into brackets, and write `(?:...)` for others",
    ),
    Case(
        "words that are not there",
        ("ppo.rewards=[{type: toxicity, words: bad.txt}]",),
        "ppo.rewards[toxicity].words='bad.txt': no file at bad.txt or bad.txt; a text file with a word or"
        " phrase a line is needed: correct the path, or leave it out for the list of the package",
    ),
    Case(
        "a critic from a reward model that does not judge alone",
        (
            "ppo.rewards=[{type: learned}, {type: length}]",
            "ppo.critic_init=reward_model",
        ),
        "--set ppo.rewards=[{type: learned}, {type: length}] --set ppo.critic_init=reward_model: ppo: "
        "critic_init=reward_model, but `rewards` gives scores in other units than the run's reward model "
        "alone (weight 1, neither normalised nor clipped); use `critic_init: zero` or `auto`",
    ),
    Case(
        "a reward model that is not there",
        ("ppo.rewards=[{type: learned, path: nowhere}]",),
        "ppo.rewards[learned].path='nowhere': no adapter at nowhere. A folder with adapter_config.json is"
        " needed, `outputs/RUN/reward_model` for instance. Correct the path or remove the setting.",
    ),
]
