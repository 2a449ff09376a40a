import hashlib
import itertools
import os
import signal
import sqlite3
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pytest

from hf_rlhf.errors import InputError
from hf_rlhf.rewards.cache import CACHE_FILE, Kept, RewardCache, content_key
from hf_rlhf.rewards.contract import Rewards
from hf_rlhf.rewards.named import make_reward
from hf_rlhf.rewards.values import Unkept
from hf_rlhf.types import Completion, Trajectory


def trajectories(*texts, **columns):
    """A text prompt with each completion, and a value of each column."""
    return [
        Trajectory(
            {"prompt": "?", **{name: values[b] for name, values in columns.items()}},
            [1],
            Completion([1, 2], [0.0, 0.0], True),
            text,
        )
        for b, text in enumerate(texts)
    ]


class Counted:
    """A reward that counts the completions it was called on, and scores their length."""

    name = "counted"

    def __init__(self, cache_key="1", value=len):
        self.cache_key = cache_key
        self.value = value
        self.seen = []

    def __call__(self, prompts, completions, **columns):
        self.seen += completions
        return [self.value(completion) for completion in completions]


def computed(function, folder, rows, **attributes):
    """The totals of these rows by a cache that is opened anew, and the share that it held."""
    for name, value in attributes.items():
        setattr(function, name, value)
    rewards = Rewards([function])
    cache = RewardCache(folder)
    rewards.use_cache(cache)
    found = rewards.compute(rows)
    cache.close()
    return [reward.total for reward in found.rewards], found.cached.get(rewards.names[0])


def test_what_was_rewarded_once_is_not_computed_again(tmp_path):
    function = Counted()
    assert computed(function, tmp_path, trajectories("a", "bbb")) == ([1.0, 3.0], [0.0, 0.0])
    assert computed(function, tmp_path, trajectories("cc", "a", "bbb")) == ([2.0, 1.0, 3.0], [0.0, 1.0, 1.0])
    assert function.seen == ["a", "bbb", "cc"]


@pytest.mark.parametrize(
    ("other", "row"),
    [
        (Counted("2"), trajectories("a", topic=["x"])),  # another version of the function
        (Counted(), trajectories("b", topic=["x"])),
        (Counted(), trajectories("a", topic=["y"])),  # a column that it gets
        (Counted(), [Trajectory({"prompt": "!", "topic": "x"}, [1], Completion([1], [0.0], True), "a")]),
    ],
)
def test_another_function_prompt_completion_or_column_is_another_key(tmp_path, other, row):
    computed(Counted(), tmp_path, trajectories("a", topic=["x"]))
    assert computed(other, tmp_path, row)[1] == [0.0]
    assert computed(Counted(), tmp_path, trajectories("a", topic=["x"]))[1] == [1.0]


def test_a_function_without_a_cache_key_and_a_reward_by_token_are_never_kept(tmp_path):
    def plain(prompts, completions):
        return [1.0] * len(completions)

    assert computed(plain, tmp_path, trajectories("a")) == ([1.0], None)
    by_token = Counted(value=lambda text: [0.5, 0.25])
    for _ in range(2):
        assert computed(by_token, tmp_path, trajectories("a")) == ([0.75], [0.0])
    assert by_token.seen == ["a", "a"]


def test_none_is_kept_where_the_reward_says_that_it_stays_none_and_a_doubtful_number_never(tmp_path):
    unscored = Counted(value=lambda text: None)
    assert [computed(unscored, tmp_path, trajectories("a")) for _ in range(2)] == [([None], [0.0])] * 2
    certain = [computed(unscored, tmp_path, trajectories("a"), deterministic=True) for _ in range(2)]
    assert certain == [([None], [0.0]), ([None], [1.0])]
    late = Counted(value=lambda text: Unkept(0.0))
    assert [computed(late, tmp_path, trajectories("b"))[1] for _ in range(2)] == [[0.0]] * 2


def test_what_breaks_the_contract_is_an_error_and_never_kept(tmp_path):
    broken = Counted(value=lambda text: float("nan"))
    for _ in range(2):
        with pytest.raises(InputError, match="finite number"):
            computed(broken, tmp_path, trajectories("a"))
    assert len(RewardCache(tmp_path)) == 0


def test_what_a_function_logs_of_a_completion_is_kept_with_its_reward(tmp_path):
    def judge(prompts, completions, log_extra):
        log_extra("reason", [f"because {completion}" for completion in completions])
        return [1.0] * len(completions)

    judge.cache_key = "1"

    def reasons(*texts):
        rewards = Rewards([judge])
        rewards.use_cache(RewardCache(tmp_path))
        return [reward.extra["reason"] for reward in rewards.compute(trajectories(*texts)).rewards]

    assert reasons("a") == ["because a"]
    assert reasons("b", "a") == ["because b", "because a"]


def test_async_functions_and_failures_beside_them_lose_nothing_that_was_returned(tmp_path):
    async def served(prompts, completions):
        return [2.0] * len(completions)

    def failing(prompts, completions):
        raise RuntimeError("the second reward fails")

    served.cache_key, failing.cache_key = "1", "1"
    counted = Counted()
    rewards = Rewards([counted, served, failing])
    rewards.use_cache(RewardCache(tmp_path))
    with pytest.raises(RuntimeError, match="second reward"):
        rewards.compute(trajectories("a"))
    assert computed(counted, tmp_path, trajectories("a"))[1] == [1.0]
    alone = Rewards([served])
    alone.use_cache(RewardCache(tmp_path))
    assert [alone.compute(trajectories("a")).rewards[0].total for _ in range(2)] == [2.0, 2.0]


def test_a_named_rewards_key_has_its_arguments_and_the_column_that_it_reads_only(tmp_path):
    rows = trajectories(r"\boxed{4}", solution=["$4$"], gold=["$5$"], other=["x"])
    assert computed(make_reward("math"), tmp_path, rows) == ([1.0], [0.0])
    changed = trajectories(r"\boxed{4}", solution=["$4$"], gold=["$5$"], other=["y"])
    assert computed(make_reward("math"), tmp_path, changed) == ([1.0], [1.0])
    assert computed(make_reward("math:column=gold"), tmp_path, rows) == ([0.0], [0.0])


def test_two_objects_of_one_class_with_one_cache_key_are_refused_and_one_object_twice_is_not(tmp_path):
    one, other = Counted(), Counted(value=lambda completion: -1.0)
    cache = RewardCache(tmp_path)
    with pytest.raises(InputError, match=r"reward 'counted_2' has the cache_key '1' of 'counted'"):
        Rewards([one, other]).use_cache(cache)
    Rewards([one, one]).use_cache(cache)
    Rewards([one, Counted("another")]).use_cache(cache)


def length(prompts, completions, factor=1.0):
    return [factor * len(completion) for completion in completions]


def minus(prompts, completions, factor=1.0):
    return [-factor * len(completion) for completion in completions]


def test_partials_of_two_functions_are_two_identities(tmp_path):
    functions = [partial(length, factor=2.0), partial(minus, factor=2.0)]
    for function in functions:
        function.cache_key = "1"  # pyright: ignore[reportAttributeAccessIssue]
    rewards = Rewards(functions)
    rewards.use_cache(RewardCache(tmp_path))
    assert [rewards.compute(trajectories("aa")).rewards[0].parts for _ in range(2)] == [
        {"length": 4.0, "minus": -4.0}
    ] * 2


def test_values_that_json_cannot_say_exactly_have_no_key():
    assert content_key("a", "?", "b", {"image": b"1"}) is None
    assert content_key("a", "?", "b", {"x": 1}) != content_key("a", "?", "b", {"x": "1"})
    assert content_key("a", "?b", "", {}) != content_key("a", "?", "b", {})


# The file


def number_of(index):
    return int.from_bytes(hashlib.sha256(str(index).encode()).digest()[:4], "big") / 2**32


def store_until_killed(folder, report):
    cache = RewardCache(folder)
    for start in itertools.count(0, 7):
        rows = range(start, start + 7)
        cache.store({content_key("r", "?", str(row), {}): Kept(number_of(row), {"row": row}) for row in rows})
        os.write(report, f"{start + 7}\n".encode())


@pytest.mark.parametrize("calls", [1, 5, 40])
def test_a_killed_process_loses_no_reward_that_was_stored_and_keeps_none_that_is_wrong(tmp_path, calls):
    said, report = os.pipe()
    process = get_context("fork").Process(target=store_until_killed, args=(tmp_path, report))
    process.start()
    os.close(report)
    with open(said, encoding="utf-8") as lines:
        while int(lines.readline()) < 7 * calls:
            pass
        os.kill(process.pid, signal.SIGKILL)
        stored = int((lines.read().split() or [7 * calls])[-1])
    process.join()
    assert process.exitcode == -signal.SIGKILL
    cache = RewardCache(tmp_path)
    assert len(cache) in (stored, stored + 7)  # whole calls of `store`, the last one said or not
    keys = {content_key("r", "?", str(row), {}): row for row in range(stored + 7)}
    found = cache.find(list(keys))
    assert {keys[key] for key in found} >= set(range(stored))
    assert all(kept == Kept(number_of(keys[key]), {"row": keys[key]}) for key, kept in found.items())


def fill(folder, first):
    cache = RewardCache(folder)
    for row in range(first, first + 60, 3):
        cache.store({content_key("r", "?", str(each), {}): Kept(number_of(each), {}) for each in range(row, row + 3)})


def test_processes_that_open_and_fill_one_file_at_the_same_time_lose_nothing(tmp_path):
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        list(pool.map(fill, [tmp_path] * 8, range(0, 320, 40)))  # overlapping thirds
    keys = [content_key("r", "?", str(row), {}) for row in range(340)]
    found = RewardCache(tmp_path).find(keys)
    assert [found[key].value for key in keys] == [number_of(row) for row in range(340)]


def test_a_damaged_row_is_computed_again(tmp_path):
    function = Counted()
    computed(function, tmp_path, trajectories("a", "bb"))
    with sqlite3.connect(tmp_path / CACHE_FILE) as database:
        database.execute("UPDATE rewards SET kept = replace(kept, '1', '7')")
    assert computed(function, tmp_path, trajectories("a", "bb")) == ([1.0, 2.0], [0.0, 1.0])
    assert computed(function, tmp_path, trajectories("a", "bb")) == ([1.0, 2.0], [1.0, 1.0])


def test_a_damaged_file_is_an_error_that_says_what_to_remove(tmp_path):
    cache = RewardCache(tmp_path)
    cache.store({content_key("r", "?", str(row), {}): Kept(float(row), {}) for row in range(1000)})
    cache.close()
    file = tmp_path / CACHE_FILE
    content = file.read_bytes()
    for damaged in (b"no database" * 100, content[: len(content) // 2], _with_noise(content)):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"reward_cache=.*damaged.*Remove rewards.sqlite"):
            RewardCache(tmp_path)


def _with_noise(content):
    middle = len(content) // 2
    return content[:middle] + bytes(range(256)) * 16 + content[middle + 4096 :]


def test_a_folder_that_cannot_be_used_and_a_later_format_are_errors(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"reward_cache=.* cannot be written to"):
        RewardCache(tmp_path / "file")
    RewardCache(tmp_path).close()
    with sqlite3.connect(tmp_path / CACHE_FILE) as database:
        database.execute("PRAGMA user_version=99")
    with pytest.raises(InputError, match="format 99"):
        RewardCache(tmp_path)
