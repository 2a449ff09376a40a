"""The rows that an iteration and an update use."""

import datasets
import pytest

from hf_rlhf.data import prepare_prompts
from hf_rlhf.errors import InputError
from hf_rlhf.ppo.prompts import ShuffledPrompts, StreamedPrompts, TextStream, prompt_stream


def loaded(count):
    return datasets.Dataset.from_dict({"prompt": [f"p{i}" for i in range(count)], "id": list(range(count))})


def streamed(count, read=None):
    """A stream that notes in `read` each row it has given."""

    def generate():
        for row in loaded(count):
            if read is not None:
                read.append(row["id"])
            yield row

    return datasets.IterableDataset.from_generator(generate)


def ids(rows):
    return [row["id"] for row in rows]


def ids_of(stream, batches):
    return [id for number in batches for id in ids(stream.rows(number))]


def on_rank(monkeypatch, rank, world_size):
    monkeypatch.setattr("hf_rlhf.distributed.rank", lambda: rank)
    monkeypatch.setattr("hf_rlhf.distributed.world_size", lambda: world_size)


STREAMS = [
    lambda: prompt_stream(loaded(10), 4, seed=1),
    lambda: prompt_stream(streamed(10), 4, seed=1),
    lambda: prompt_stream(loaded(10).to_iterable_dataset().shuffle(seed=1, buffer_size=5), 4, seed=1),
    lambda: TextStream(loaded(10), 4, seed=1),
]
NAMES = ["loaded", "streamed", "streamed and shuffled", "texts"]


@pytest.mark.parametrize("make", STREAMS, ids=NAMES)
def test_every_pass_has_each_row_once(make):
    numbers = ids_of(make(), range(5))  # 20 positions: two passes, the third batch in both
    assert sorted(numbers[:10]) == sorted(numbers[10:]) == list(range(10))


@pytest.mark.parametrize("make", [STREAMS[0], *STREAMS[2:]], ids=[NAMES[0], *NAMES[2:]])
def test_passes_are_shuffled_differently(make):
    numbers = ids_of(make(), range(5))
    assert numbers[:10] != list(range(10))
    assert numbers[:10] != numbers[10:]


@pytest.mark.parametrize("make", STREAMS, ids=NAMES)
@pytest.mark.parametrize("start", [0, 1, 2, 4])
def test_entering_anywhere_gives_the_rows_of_reading_through(make, start):
    through = make()
    expected = [through.rows(number) for number in range(6)][start:]
    resumed = make()
    assert [resumed.rows(number) for number in range(start, 6)] == expected


@pytest.mark.parametrize("make", STREAMS, ids=NAMES)
def test_asking_again_or_backwards_gives_the_same_rows(make):
    stream = make()
    first, second = stream.rows(0), stream.rows(1)
    assert stream.rows(1) == second
    assert stream.rows(0) == first


def test_rows_come_with_every_column():
    assert prompt_stream(streamed(3), 1, seed=1).rows(1) == [{"prompt": "p1", "id": 1}]
    row = prompt_stream(loaded(3), 1, seed=1).rows(1)[0]
    assert row["prompt"] == f"p{row['id']}"


@pytest.mark.parametrize("make", STREAMS[:3], ids=NAMES[:3])
def test_ranks_share_a_batch_by_position(make, monkeypatch):
    stream = make()
    whole = [ids(stream.rows(number)) for number in range(3)]
    for rank in (0, 1):
        on_rank(monkeypatch, rank, world_size=2)
        stream = make()
        assert [ids(stream.rows(number)) for number in range(3)] == [batch[rank::2] for batch in whole]


def test_texts_are_those_of_all_ranks(monkeypatch):
    whole = TextStream(loaded(10), 4, seed=1).rows(3)
    on_rank(monkeypatch, 1, world_size=2)
    assert TextStream(loaded(10), 4, seed=1).rows(3) == whole


def test_the_kind_of_set_chooses_the_stream():
    chosen = prompt_stream(loaded(3), 2, seed=1)
    assert isinstance(chosen, ShuffledPrompts)
    chosen = prompt_stream(streamed(3), 2, seed=1)
    assert isinstance(chosen, StreamedPrompts)


# --- shuffled ----------------------------------------------------------------------------------------------------


def test_the_seed_and_what_the_rows_are_for_change_the_order():
    orders = {
        tuple(ids_of(stream, range(2)))
        for stream in (
            prompt_stream(loaded(20), 10, seed=1),
            prompt_stream(loaded(20), 10, seed=2),
            TextStream(loaded(20), 10, seed=1),
        )
    }
    assert len(orders) == 3


def test_texts_fewer_than_a_batch_repeat():
    numbers = ids(TextStream(loaded(3), 7, seed=1).rows(0))
    assert sorted(numbers[:3]) == sorted(numbers[3:6]) == [0, 1, 2]
    assert len(numbers) == 7


# --- streamed ----------------------------------------------------------------------------------------------------


def test_a_stream_keeps_the_order_it_is_given_in():
    assert ids_of(prompt_stream(streamed(5), 2, seed=1), range(4)) == [0, 1, 2, 3, 4, 0, 1, 2]


def test_a_prepared_stream_is_shuffled_anew_for_each_pass(tokenizer):
    shuffled = streamed(10).shuffle(seed=3, buffer_size=10)
    prepared = prepare_prompts(shuffled, tokenizer, max_prompt_length=4, source="here", overlong_prompts="filter")
    numbers = ids_of(prompt_stream(prepared, 10, seed=1), range(2))
    assert sorted(numbers[:10]) == sorted(numbers[10:]) == list(range(10))
    assert numbers[:10] != numbers[10:]


def test_a_stream_shorter_than_an_iteration_is_an_error():
    with pytest.raises(InputError, match="gave 2 rows, fewer than the 5 of an iteration"):
        prompt_stream(streamed(2), 5, seed=1).rows(0)


def test_consecutive_iterations_read_each_row_once():
    read = []
    stream = prompt_stream(streamed(10, read), 3, seed=1)
    assert read == []
    stream.rows(0)
    assert read == [0, 1, 2]
    stream.rows(1)
    assert read == [0, 1, 2, 3, 4, 5]


def test_a_stream_without_end_is_read_no_further_than_needed():
    def generate():
        number = 0
        while True:
            yield {"id": number}
            number += 1

    stream = prompt_stream(datasets.IterableDataset.from_generator(generate), 4, seed=1)
    assert ids(stream.rows(100)) == [400, 401, 402, 403]


def test_a_pass_without_rows_is_an_error():
    with pytest.raises(InputError, match="pass 1 over the streamed prompts gave 0 rows"):
        prompt_stream(streamed(0), 2, seed=1).rows(0)
    with pytest.raises(InputError, match="gave 0 rows"):
        prompt_stream(streamed(5).filter(lambda row: False), 2, seed=1).rows(0)


def test_after_a_failure_the_stream_is_opened_again():
    failing = [True]

    def generate():
        yield {"id": 0}
        yield {"id": 1}
        if failing:
            raise ConnectionError("the line is down")
        yield {"id": 2}

    stream = prompt_stream(datasets.IterableDataset.from_generator(generate), 2, seed=1)
    assert ids(stream.rows(0)) == [0, 1]
    for _ in range(2):
        with pytest.raises(ConnectionError):
            stream.rows(1)
    failing.clear()
    assert ids(stream.rows(1)) == [2, 0]
