"""AI feedback as a whole: against a real local server that is killed, fails and comes back, and with a tiny model."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from http_double import HTTPDouble, Late, Status, chat
from tiny import make_judge_tokenizer, make_model

from hf_rlhf.cli import main
from hf_rlhf.endpoints import client
from hf_rlhf.endpoints.client import EndpointError
from hf_rlhf.errors import InputError
from hf_rlhf.feedback.ai.results import PREFERENCES_FILE, REPORT_FILE, SFT_FILE
from hf_rlhf.recipes.ai_feedback import write_ai_feedback
from hf_rlhf.recipes.ai_feedback_arguments import AIFeedbackArguments
from hf_rlhf.records import read_json_lines

FILES = (SFT_FILE, PREFERENCES_FILE)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(client, "_PAUSE_SECONDS", 0.01)


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [*({"prompt": f"the cat {number}"} for number in range(6)), {"prompt": "the cat 0"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def answer(path, body):
    """Write a text that depends on the request alone; as a judge, prefer the longer reply."""
    asked = body["messages"][-1]["content"]
    if "[Reply A]" in asked:
        a, b = (asked.split(f"[Reply {letter}]\n")[1].split("\n\n")[0] for letter in "AB")
        return chat("A" if len(a) > len(b) else "B" if len(a) < len(b) else "C")
    digest = hashlib.sha256(json.dumps([body["messages"], body["seed"]]).encode()).hexdigest()
    return chat(digest[: 3 + int(digest[:2], 16) % 5])


def flags(prompts, folder, server, **others):
    given = {
        "dataset_name": prompts,
        "output_dir": str(folder),
        "model_name_or_path": "writer",
        "url": server.url,
        "num_completions": 3,
        "batch_size": 4,
        "retries": 0,
        **others,
    }
    return AIFeedbackArguments(**given)


def rows_of(folder, name):
    return read_json_lines(folder / name)


def test_replies_critiques_revisions_and_preferences(prompts, tmp_path):
    folder = tmp_path / "run"
    with HTTPDouble(answer) as server:
        result = write_ai_feedback(flags(prompts, folder, server, system_prompt="Be kind."))
    demonstrations, preferences = rows_of(folder, SFT_FILE), rows_of(folder, PREFERENCES_FILE)
    report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    assert len(demonstrations) == 6  # the seventh prompt is the first again
    first = demonstrations[0]
    assert first["prompt"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "the cat 0"}]
    revision = next(
        body for _, body in server.requests if len(body["messages"]) == 6 and body["messages"][:2] == first["prompt"]
    )
    assert revision["messages"][2]["content"] == first["original"]
    assert revision["messages"][4]["content"] == first["critique"]
    assert first["completion"] == [answer("", revision)["choices"][0]["message"]]
    for row in preferences:
        assert len(row["chosen"][0]["content"]) > len(row["rejected"][0]["content"])
        assert {name: row[name] for name in ("annotator", "judge", "survived_swap", "confidence")} == {
            "annotator": "ai", "judge": "writer", "survived_swap": True, "confidence": 1.0,
        }  # fmt: skip
        assert "margin" not in row  # which the loss of a reward model would take
    agreement = report["judge_agreement"]
    assert agreement["survived"] == len(preferences) == result.metrics["preferences"]
    assert agreement["survived"] + agreement["ties"] == agreement["pairs"]
    assert agreement["pairs"] + report["pairs_equal_or_empty"] == 6 * 3
    assert sum(each["pairs"] for each in report["by_principle"].values()) == agreement["pairs"]


def test_a_run_that_is_killed_asks_nothing_twice_and_ends_in_the_same_files(prompts, tmp_path):
    with HTTPDouble(answer) as server:
        write_ai_feedback(flags(prompts, tmp_path / "whole", server))
    whole = [json.dumps(request) for request in server.requests]
    with HTTPDouble(lambda path, body: Late(0.02, answer(path, body))) as server:
        given = flags(prompts, tmp_path / "killed", server, concurrency=4)
        command = [f"--{name}={value}" for name, value in vars(given).items() if value is not None]
        process = subprocess.Popen([sys.executable, "-m", "hf_rlhf.cli", "ai-feedback", *command], env={**os.environ})
        end = time.monotonic() + 120
        while len(server.requests) < 30 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        time.sleep(0.1)
        before = len(server.requests)
        assert 30 <= before < len(whole)
        given.resume = "last"
        write_ai_feedback(given)
    asked = [json.dumps(request) for request in server.requests]
    assert set(asked) == set(whole)
    assert len(asked) - len(whole) <= given.batch_size  # the part under way
    for name in FILES:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_server_that_fails_ends_the_run_and_a_resumed_one_goes_on(prompts, tmp_path, capsys):
    planned = {"left": 9}

    def fails_after(path, body):
        planned["left"] -= 1
        return answer(path, body) if planned["left"] >= 0 else Status(500, "out of memory")

    with HTTPDouble(fails_after) as server:
        argv = [f"--{name}={value}" for name, value in vars(flags(prompts, tmp_path / "run", server)).items() if value is not None]  # fmt: skip
        assert main(["ai-feedback", *argv]) == 1
        assert "status 500: out of memory" in capsys.readouterr().err
        assert not (tmp_path / "run" / SFT_FILE).exists()
        planned["left"] = 10**6
        assert main(["ai-feedback", *argv]) == 2
        assert "it holds AI feedback already" in capsys.readouterr().err
        assert main(["ai-feedback", *argv, "--resume", "auto"]) == 0
        done = len(server.requests)
        assert main(["ai-feedback", *argv, "--resume", "auto"]) == 0
        assert len(server.requests) == done
        assert main(["ai-feedback", *argv, "--resume", "auto", "--seed", "1"]) == 2
        assert "seed=1 is invalid for a run that resumes" in capsys.readouterr().err


def test_requests_that_fail_are_omitted_up_to_a_number_that_is_asked_for(prompts, tmp_path):
    def refuses_one(path, body):
        refused = body["messages"][0]["content"] == "the cat 3" and len(body["messages"]) == 1
        return Status(400, "content filter") if refused else answer(path, body)

    with HTTPDouble(refuses_one) as server:
        with pytest.raises(EndpointError, match="content filter"):
            write_ai_feedback(flags(prompts, tmp_path / "run", server))
        given = flags(prompts, tmp_path / "run", server, max_failed_requests=3, resume="auto")
        write_ai_feedback(given)
    asked = {row["prompt"][-1]["content"] for name in FILES for row in rows_of(tmp_path / "run", name)}
    assert asked == {f"the cat {number}" for number in (0, 1, 2, 4, 5)}
    report = json.loads((tmp_path / "run" / REPORT_FILE).read_text(encoding="utf-8"))
    assert report["failed_requests_of_this_process"] == 3
    assert report["revisions_left_out"] == {"empty": 1}
    assert not any("" in [turn["content"] for turn in body["messages"]] for _, body in server.requests)


def test_what_a_server_that_was_down_did_not_answer_is_asked_by_a_run_that_resumes(prompts, tmp_path):
    is_down = True

    def sometimes(path, body):
        asked = [turn["content"] for turn in body["messages"]]
        compares = "the cat 4" in asked[-1] and "[Reply A]" in asked[-1]
        return Status(503, "down") if is_down and (asked == ["the cat 3"] or compares) else answer(path, body)

    with HTTPDouble(answer) as server:
        write_ai_feedback(flags(prompts, tmp_path / "whole", server))
    with HTTPDouble(sometimes) as server:
        given = flags(prompts, tmp_path / "run", server, max_failed_requests=20, resume="auto")
        write_ai_feedback(given)
        asked = {row["prompt"][-1]["content"] for row in rows_of(tmp_path / "run", PREFERENCES_FILE)}
        assert not asked & {"the cat 3", "the cat 4"}
        is_down = False
        write_ai_feedback(given)
        asked = len(server.requests)
        write_ai_feedback(given)
        assert len(server.requests) == asked
    for name in FILES:
        assert rows_of(tmp_path / "run", name) == rows_of(tmp_path / "whole", name)


def test_ties_are_left_out_or_decided_by_the_mean_of_both_orders(prompts, tmp_path):
    def leans_to_a(path, body):
        given = answer(path, body)
        return given if given["choices"][0]["message"]["content"] != "B" else chat("C")

    for choice, survived in (("skip", set()), ("average", {False})):
        with HTTPDouble(leans_to_a) as server:
            write_ai_feedback(flags(prompts, tmp_path / choice, server, when_orders_disagree=choice))
        file = tmp_path / choice / PREFERENCES_FILE
        rows = read_json_lines(file) if file.exists() else []
        assert {row["survived_swap"] for row in rows} == survived
        assert all(len(row["chosen"][0]["content"]) > len(row["rejected"][0]["content"]) for row in rows)


def test_revisions_that_were_cut_off_teach_nothing_unless_asked_for(prompts, tmp_path):
    def cut_off(path, body):
        given = answer(path, body)
        given["choices"][0]["finish_reason"] = "length"
        return given

    with HTTPDouble(cut_off) as server:
        write_ai_feedback(flags(prompts, tmp_path / "run", server))
        assert not (tmp_path / "run" / SFT_FILE).exists()
        report = json.loads((tmp_path / "run" / REPORT_FILE).read_text(encoding="utf-8"))
        assert report["revisions_left_out"] == {"cut off at max_completion_length": 6}
        write_ai_feedback(flags(prompts, tmp_path / "run", server, keep_unfinished=True, resume="auto"))
        assert len(rows_of(tmp_path / "run", SFT_FILE)) == 6


def test_both_files_are_read_by_sft_and_reward(prompts, tmp_path, capsys):
    tokenizer = make_judge_tokenizer()
    model = make_model(tokenizer, max_position_embeddings=1024)
    for each in (model, tokenizer):
        each.save_pretrained(tmp_path / "model")
    folder = tmp_path / "run"
    given = ["--dataset_name", prompts, "--output_dir", str(folder), "--model_name_or_path", str(tmp_path / "model")]
    lengths = ["--max_completion_length", "6", "--max_critique_length", "6", "--keep_unfinished", "true"]
    assert main(["ai-feedback", *given, *lengths, "--when_orders_disagree", "average"]) == 0
    said = capsys.readouterr().out
    assert "survive swapping" in said
    reward = ["--dataset_name", str(folder / PREFERENCES_FILE), "--model_name_or_path", str(tmp_path / "model")]
    reward += ["--output_dir", str(tmp_path / "reward"), "--max_steps", "1", "--per_device_train_batch_size", "2"]
    assert main(["reward", *reward, "--report_to", "none"]) == 0
    assert (tmp_path / "reward" / "adapter_model.safetensors").is_file()
    for stage, name in (("sft", SFT_FILE), ("reward", PREFERENCES_FILE)):
        argv = ["--dataset_name", str(folder / name), "--model_name_or_path", str(tmp_path / "model")]
        assert (
            main(["data", stage, *argv, "--output_dir", str(tmp_path / "x"), "--per_device_train_batch_size", "1"]) == 0
        )
    first = [(folder / name).read_bytes() for name in FILES]
    assert main(["ai-feedback", *given, *lengths, "--when_orders_disagree", "average", "--resume", "auto"]) == 0
    assert [(folder / name).read_bytes() for name in FILES] == first
    report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))["judge_agreement"]
    assert main(["ai-feedback", *given, *lengths, "--calibrate", "false", "--resume", "auto"]) == 0
    raw = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))["judge_agreement"]
    assert raw["survived_share"] == raw["survived_share_uncorrected"] == report["survived_share_uncorrected"]
    assert raw["mean_position_shift"] == pytest.approx(report["mean_position_shift"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_completions": 1}, "num_completions=1 is invalid"),
        ({"temperature": 0.0}, "temperature=0 is invalid"),
        ({"when_orders_disagree": "guess"}, "when_orders_disagree=guess is invalid"),
        ({"resume": "yes"}, "resume=yes is invalid"),
        ({"judge_url": "http://h"}, "judge_model is missing"),
        ({"url": None, "api_key_env": "KEY"}, "api_key_env is invalid without url"),
        ({"dataset_name": None}, "dataset_name is missing"),
        ({"principles": "no.yaml"}, "principles=no.yaml is invalid"),
        ({"resume": "last"}, "holds no AI feedback to resume"),
        ({"url": "localhost"}, "not the address of a server"),
    ],
)
def test_wrong_flags_are_refused_and_nothing_is_written(prompts, tmp_path, wrong, said):
    given = {"dataset_name": prompts, "output_dir": str(tmp_path / "run"), "url": "http://127.0.0.1:9"} | wrong
    with pytest.raises(InputError, match=said):
        write_ai_feedback(AIFeedbackArguments(**given))
    assert not (tmp_path / "run").exists()


def test_dialogues_beyond_the_positions_are_refused_before_anything_is_asked(prompts, tmp_path):
    tokenizer = make_judge_tokenizer()
    for each in (make_model(tokenizer, max_position_embeddings=128), tokenizer):
        each.save_pretrained(tmp_path / "model")
    given = {
        "dataset_name": prompts,
        "output_dir": str(tmp_path / "run"),
        "model_name_or_path": str(tmp_path / "model"),
    }
    with pytest.raises(InputError, match=r"a dialogue of about \d+ tokens .* takes 128"):
        write_ai_feedback(AIFeedbackArguments(**given))
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_there_is_not_overwritten(prompts, tmp_path):
    (tmp_path / SFT_FILE).write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"it holds sft\.jsonl, which this run would overwrite"):
        write_ai_feedback(AIFeedbackArguments(dataset_name=prompts, output_dir=str(tmp_path), url="http://h"))


def test_a_launcher_of_several_ranks_is_refused(prompts, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="runs in one process"):
        write_ai_feedback(AIFeedbackArguments(dataset_name=prompts, output_dir=str(tmp_path / "run")))
