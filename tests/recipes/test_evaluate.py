"""`hf-rlhf evaluate`: a planted better policy, judges, people, runs that were killed, and wrong input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from compared_models import POSITIONS, held_out_rows, make_happier, make_models, save, write_jsonl
from http_double import HTTPDouble, chat
from pages import HOSTILE, Page
from rollout.vllm.double import VLLMDouble
from tiny import make_judge_tokenizer, make_lora, make_model, make_tokenizer, perturb

from hf_rlhf.cli import main
from hf_rlhf.feedback.store import Event, FeedbackStore, new_uuid
from hf_rlhf.recipes import candidates, evaluate_completions
from hf_rlhf.records import read_json_lines

HAPPY = ["--reward_funcs", "tiny:happy_reward"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    make_models(folder)
    return folder


@pytest.fixture
def place(made, monkeypatch, tmp_path):
    monkeypatch.chdir(made)
    return tmp_path


def evaluate(*more, out, policy="policy", dataset="held_out.jsonl"):
    argv = ["evaluate", policy, "--dataset_name", dataset, "--output_dir", str(out)]
    return main([*argv, "--use_cpu", "true", "--dtype", "float32", *more])


def results_of(out):
    return json.loads((out / "evaluation.json").read_text(encoding="utf-8"))


def completions_of(out, name):
    return [row["completion"] for row in read_json_lines(out / "completions" / f"{name}.jsonl")]


def test_a_planted_better_policy_is_seen_and_its_start_is_the_baseline(place, capsys):
    assert evaluate(*HAPPY, out=place / "out") == 0
    results = results_of(place / "out")
    (found,) = results["comparisons"]
    assert (found["baseline"], found["by"], found["name"]) == ("start", "reward", "happy_reward")
    assert found["win_rate"]["low"] > 0.5
    assert found["length_controlled"]["low"] > 0.5
    assert found["difference"]["low"] > 0
    assert results["kl"]["start"]["per_completion"]["low"] > 0
    assert results["kl"]["start"]["estimator"] == "k1"
    assert results["sampling"]["temperature"] == 0.9, "as in the record of the run"
    assert set(results["measures"]) == {"policy", "start"}
    printed = capsys.readouterr().out
    assert "win_rate/start/happy_reward" in printed
    assert found["n"] == 40
    samples = read_json_lines(place / "out" / "samples.jsonl")
    words = [sample["completions"]["policy"].split().count("happy") for sample in samples]
    assert sum(words) > 3 * sum(sample["completions"]["start"].split().count("happy") for sample in samples)


def test_a_policy_against_itself_wins_half_and_has_no_kl(place):
    assert evaluate(*HAPPY, "--baseline", "policy", out=place / "out") == 0
    results = results_of(place / "out")
    (found,) = results["comparisons"]
    assert found["win_rate"]["ties"] == 40
    assert found["win_rate"]["rate"] == 0.5
    (kl,) = results["kl"].values()
    assert kl["per_completion"]["mean"] == 0.0


def test_completions_do_not_depend_on_the_batch_and_a_rerun_loads_no_model(place, monkeypatch):
    assert evaluate(*HAPPY, out=place / "one") == 0
    assert evaluate(*HAPPY, "--batch_size", "7", out=place / "two") == 0
    assert completions_of(place / "one", "policy") == completions_of(place / "two", "policy")
    first = (place / "one" / "evaluation.json").read_text(encoding="utf-8")

    def refuse(*given):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(evaluate_completions, "_load", refuse)
    assert evaluate(*HAPPY, out=place / "one") == 0
    assert (place / "one" / "evaluation.json").read_text(encoding="utf-8") == first


def test_a_run_that_was_killed_continues_where_it_was(place, monkeypatch):
    assert evaluate(*HAPPY, "--batch_size", "8", out=place / "whole") == 0
    assert evaluate(*HAPPY, "--batch_size", "8", out=place / "killed") == 0
    folder = place / "killed" / "completions"
    text = (folder / "start.jsonl").read_text(encoding="utf-8")
    (folder / "start.jsonl").write_text(text[: len(text) // 2], encoding="utf-8")
    (folder / "start_of_policy.jsonl").unlink()
    asked = []
    before = candidates.TransformersEngine.generate

    def counted(self, prompts, *rest):
        asked.append(len(prompts))
        return before(self, prompts, *rest)

    monkeypatch.setattr(candidates.TransformersEngine, "generate", counted)
    assert evaluate(*HAPPY, "--batch_size", "8", out=place / "killed") == 0
    assert 8 <= sum(asked) < 40, "some were there"
    whole, killed = (results_of(place / name) for name in ("whole", "killed"))
    assert whole["comparisons"] == killed["comparisons"]
    assert whole["kl"] == killed["kl"]


@pytest.mark.slow
def test_a_killed_process_continues(place, made):
    argv = ["evaluate", "policy", "--dataset_name", "held_out.jsonl", "--output_dir", str(place / "out")]
    command = [sys.executable, "-m", "hf_rlhf.cli", *argv, "--use_cpu", "true", "--dtype", "float32", *HAPPY, "--batch_size", "1"]  # fmt: skip
    process = subprocess.Popen(command, cwd=made, env=os.environ | {"PYTHONPATH": ":".join(sys.path)})
    file = place / "out" / "completions" / "policy.jsonl"
    while process.poll() is None and not (file.is_file() and file.stat().st_size > 500):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (place / "out" / "evaluation.json").exists()
    assert evaluate(*HAPPY, "--batch_size", "1", out=place / "out") == 0
    assert evaluate(*HAPPY, "--batch_size", "1", out=place / "fresh") == 0
    assert results_of(place / "out")["comparisons"] == results_of(place / "fresh")["comparisons"]


def test_other_settings_in_the_same_folder_are_refused(place, capsys):
    assert evaluate(*HAPPY, out=place / "out") == 0
    before = (place / "out" / "evaluation.json").read_bytes()
    assert evaluate(*HAPPY, "--temperature", "0.5", out=place / "out") == 2
    assert "temperature 0.9 and not 0.5" in capsys.readouterr().err
    assert evaluate(*HAPPY, "--max_prompts", "20", out=place / "out") == 2
    assert "other prompts" in capsys.readouterr().err
    assert (place / "out" / "evaluation.json").read_bytes() == before
    assert evaluate(*HAPPY, "--baseline", "start", "policy", out=place / "out") == 0, (
        "one more baseline is no other run"
    )


# A judge


def likes_happy(path, body):
    """Answer for the completion with more "happy", and C where both have as many."""
    counts = [body["messages"][0]["content"].split(f"[Reply {letter}]\n")[1].split("\n\n")[0].count("happy") for letter in "AB"]  # fmt: skip
    return chat("C" if counts[0] == counts[1] else "A" if counts[0] > counts[1] else "B")


def judged_by(answer, *more, out):
    with HTTPDouble(answer, get={"data": []}) as server:
        judge = ["--judge_model", "judge-1", "--judge_url", server.url, "--retries", "0", "--timeout", "5"]
        return evaluate(*judge, *more, out=out), server.requests


def test_a_judge_is_asked_in_both_orders_once_and_its_answers_are_kept(place):
    status, requests = judged_by(likes_happy, out=place / "out")
    assert status == 0
    (found,) = results_of(place / "out")["comparisons"]
    different = 40 - found["equal_completions"]
    assert len(requests) == 2 * different
    assert found["win_rate"]["low"] > 0.5
    assert found["unanswered"] == 0
    status, requests = judged_by(likes_happy, out=place / "out")
    assert (status, requests) == (0, []), "all answers were there"


def test_a_judge_who_always_names_the_first_gives_ties_and_that_is_shown(place):
    status, _ = judged_by(chat("A"), out=place / "out")
    assert status == 0
    (found,) = results_of(place / "out")["comparisons"]
    assert found["win_rate"]["rate"] == 0.5
    assert found["agreement"]["survived"] == 0
    assert found["agreement"]["shown_first_share"] == 1.0
    page = Page((place / "out" / "evaluation.html").read_text(encoding="utf-8"))
    assert "pairs are ties, or change with the order" in page.text


def test_what_a_judge_does_not_answer_counts_nowhere_and_is_asked_again(place):
    def sometimes(path, body):
        return likes_happy(path, body) if "happy" in body["messages"][0]["content"] else chat("I cannot say.")

    status, _ = judged_by(sometimes, out=place / "out")
    assert status == 0
    (found,) = results_of(place / "out")["comparisons"]
    assert 0 < found["unanswered"] < 40
    assert found["n"] + found["unanswered"] == 40
    assert found["win_rate"]["losses"] < found["n"] / 4, "no answer is no loss"
    status, requests = judged_by(likes_happy, out=place / "out")
    assert len(requests) == 2 * found["unanswered"]
    assert results_of(place / "out")["comparisons"][0]["unanswered"] == 0


def test_a_judge_without_any_answer_gives_no_win_rate(place, capsys):
    status, _ = judged_by(chat("?"), out=place / "out")
    assert status == 0
    (found,) = results_of(place / "out")["comparisons"]
    assert found["win_rate"] is None or found["win_rate"]["ties"] == found["equal_completions"]
    assert found["unanswered"] == 40 - found["equal_completions"]


def test_a_judge_that_is_loaded_here(place):
    tokenizer = make_judge_tokenizer()
    judge = save(place / "judge", make_model(tokenizer, max_position_embeddings=512), tokenizer)
    assert evaluate("--judge_model", judge, "--max_prompts", "6", out=place / "out") == 0
    (found,) = results_of(place / "out")["comparisons"]
    assert found["n"] == 6
    assert found["agreement"]["pairs"] == 6 - found["equal_completions"]
    (file,) = (place / "out" / "judge").iterdir()
    assert all(0 < row["shown_first"] < 1 for row in read_json_lines(file))


# People


def test_people_answer_in_the_store_and_a_later_run_reads_it(place, capsys):
    out = place / "out"
    assert evaluate("--annotator", "people", out=out) == 0
    printed = capsys.readouterr().out
    assert "comparisons wait for answers" in printed
    assert f"hf-rlhf label --store {out}/feedback.db" in printed
    (found,) = results_of(out)["comparisons"]
    assert (found["by"], found["win_rate"]) == ("people", None)
    with FeedbackStore(out / "feedback.db") as store:
        tasks = list(store.tasks())
        assert {source for task in tasks for source in task.sources} == {"policy", "start"}
        assert {task.sources[0] for task in tasks} == {"policy", "start"}, "the order says nothing"
        for number, task in enumerate(tasks[:20]):
            counts = [text.count("happy") for text in task.texts]
            value = {"preferred": int(counts[1] > counts[0]), "strength": 1}
            for name in ("ann", "bob") if number < 10 else ("ann",):
                store.append(Event(new_uuid(), task.id, name, value=value))
    assert evaluate("--annotator", "people", out=out) == 0
    (found,) = results_of(out)["comparisons"]
    assert found["answers"] == 30
    assert found["annotators"] == 2
    assert found["n"] == 20, "equal completions count once all others are answered"
    assert found["win_rate"]["rate"] > 0.5
    (side,) = [each for each in found["agreement"] if each["what"] == "side"]
    assert side["percent"]["value"] == 1.0
    assert "people prefer" in results_of(out)["headline"]


# Notes, and other models


def test_prompts_of_training_are_counted_and_warned_of(place, made, caplog):
    rows = held_out_rows(40)
    trained = write_jsonl(place / "trained.jsonl", rows[:6])
    record = yaml.safe_load((made / "policy" / "config.yaml").read_text(encoding="utf-8"))
    policy = place / "policy"
    tokenizer = make_tokenizer()
    save(policy, make_happier(make_model(tokenizer, max_position_embeddings=POSITIONS), tokenizer, 1.0), tokenizer)
    for dataset, shared in ((trained, 6), (write_jsonl(place / "other.jsonl", [{"prompt": "hello"}]), 0)):
        (policy / "config.yaml").write_text(yaml.safe_dump(record | {"dataset_name": dataset}), encoding="utf-8")
        caplog.clear()
        assert evaluate(*HAPPY, policy=str(policy), out=place / f"out{shared}") == 0
        notes = " ".join(results_of(place / f"out{shared}")["notes"])
        assert (f"{shared} of 40 prompts are among those" in notes) == bool(shared)
        assert ("not held out" in caplog.text) == bool(shared)


def test_a_reward_that_the_run_was_trained_with_is_named(place, made):
    record = yaml.safe_load((made / "policy" / "config.yaml").read_text(encoding="utf-8"))
    policy = place / "policy"
    tokenizer = make_tokenizer()
    save(policy, make_model(tokenizer, max_position_embeddings=POSITIONS), tokenizer)
    (policy / "config.yaml").write_text(
        yaml.safe_dump(record | {"reward_funcs": ["tiny:happy_reward"]}), encoding="utf-8"
    )
    assert evaluate(*HAPPY, policy=str(policy), out=place / "out") == 0
    assert any(note.startswith("PPO trained against tiny:happy_reward") for note in results_of(place / "out")["notes"])


def test_an_adapter_is_compared_to_its_base(place, made):
    from peft import get_peft_model

    tokenizer = make_tokenizer()
    base = make_model(tokenizer, max_position_embeddings=POSITIONS)
    base.name_or_path = str(made / "start")
    adapter = save(place / "adapter", perturb(get_peft_model(base, make_lora()), only="lora"), tokenizer)
    assert evaluate(*HAPPY, policy=adapter, out=place / "out") == 0
    results = results_of(place / "out")
    assert list(results["models"]) == ["policy", "base"]
    assert results["kl"]["base"]["per_completion"]["mean"] != 0.0


def test_a_model_with_another_template_is_compared_without_a_kl(place):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|> assistant", "<|im_start|> you")
    other = save(place / "other", make_model(tokenizer, max_position_embeddings=POSITIONS), tokenizer)
    assert evaluate(*HAPPY, "--baseline", "start", other, out=place / "out") == 0
    results = results_of(place / "out")
    assert "per_token" in results["kl"]["start"]
    assert "another chat template" in results["kl"]["other"]["reason"]
    assert len(results["comparisons"]) == 2


def test_greedy_completions_have_no_kl_and_the_reason_is_said(place):
    assert evaluate(*HAPPY, "--temperature", "0", out=place / "out") == 0
    results = results_of(place / "out")
    assert "greedy" in results["kl"]["start"]["reason"]
    assert any("greedy" in note for note in results["notes"])


def test_continuous_batching_samples_too(place):
    assert (
        evaluate(*HAPPY, "--use_transformers_continuous_batching", "true", "--max_prompts", "6", out=place / "out") == 0
    )
    assert results_of(place / "out")["comparisons"][0]["win_rate"]


def test_vllm_samples_adapters_and_their_base(place, made):
    from peft import get_peft_model

    tokenizer = make_tokenizer()
    base = make_model(tokenizer, max_position_embeddings=POSITIONS)
    base.name_or_path = str(made / "start")
    adapter = save(place / "adapter", perturb(get_peft_model(base, make_lora()), only="lora"), tokenizer)
    server = VLLMDouble(make_model(tokenizer, max_position_embeddings=POSITIONS), tokenizer).start()
    try:
        served = ["--use_vllm", "true", "--vllm_server_base_url", server.url, "--max_prompts", "6"]
        assert evaluate(*HAPPY, *served, policy=adapter, out=place / "vllm") == 0
    finally:
        server.stop()
    assert evaluate(*HAPPY, "--max_prompts", "6", policy=adapter, out=place / "here") == 0
    for name in ("policy", "base"):
        assert completions_of(place / "vllm", name) == completions_of(place / "here", name)
    assert not list((place / "vllm" / "vllm").glob("policy-*")), "the adapters are removed"


def test_perplexity_of_a_text(place):
    text = place / "text.txt"
    text.write_text("the cat sat on the mat . a dog ran . " * 3, encoding="utf-8")
    assert evaluate("--perplexity_text", str(text), out=place / "out") == 0
    found = results_of(place / "out")["perplexity"]
    assert found["policy"]["tokens"] == found["start"]["tokens"] == 32
    assert found["policy"]["perplexity"] != found["start"]["perplexity"]


# The page


def test_hostile_texts_are_shown_and_not_run(place, made):
    rows = [{"prompt": [{"role": "user", "content": f"{HOSTILE} {i}"}]} for i in range(12)]
    data = write_jsonl(place / "hostile.jsonl", rows)
    assert evaluate(*HAPPY, dataset=data, out=place / "out") == 0
    html = (place / "out" / "evaluation.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not {"script", "a", "link", "img", "b"} & set(page.tags)
    assert f"{HOSTILE} 3" in page.text
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert "://" not in html, "it loads nothing"
    assert page.tags.count("svg") == 2
    assert page.tags.count("article") == 12


# Wrong input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": ""}, "dataset_name is missing"),
        ({"more": ["--annotator", "cat"]}, "annotator=cat is invalid: it must be people"),
        ({"more": ["--judge_url", "http://127.0.0.1:1"]}, "judge_model is missing"),
        ({"more": ["--perplexity_text", "no.txt"]}, "perplexity_text=no.txt is invalid"),
        ({"more": ["--max_completion_length", "9999"]}, "9999 is invalid: with the longest prompt"),
        ({"more": ["--reward_funcs", "tiny:no_reward"]}, "no_reward"),
        ({"policy": "start"}, "baseline is missing"),
        ({"more": ["--baseline", "nowhere/at/all"]}, "nowhere/at/all"),
        ({"dataset": "empty.jsonl"}, "empty.jsonl"),
        ({"more": ["--chat_template_kwargs", "{"]}, "chat_template_kwargs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_input_is_one_message_and_nothing_is_written(place, made, capsys, changes, message):
    Path("empty.jsonl").write_text("", encoding="utf-8")
    more = changes.pop("more", HAPPY) if isinstance(changes, dict) else HAPPY
    status = evaluate(*more, out=place / "out", **{name: value for name, value in changes.items() if name != "more"})
    error = capsys.readouterr().err
    assert status == 2, error
    assert message in error
    assert error.count("error:") == 1
    assert not (place / "out").exists()


def test_a_model_without_a_chat_template_is_named_where_prompts_are_messages(place, capsys):
    tokenizer = make_tokenizer(chat_template=False)
    plain = save(place / "plain", make_model(tokenizer, max_position_embeddings=POSITIONS), tokenizer)
    assert evaluate(*HAPPY, "--baseline", plain, out=place / "out") == 2
    assert "this model's tokenizer has no chat template" in capsys.readouterr().err
    assert not (place / "out").exists()
