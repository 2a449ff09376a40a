"""Rounds of feedback with a tiny model: what each step leaves, people who take their time, and wrong flags."""

import json
import shutil
import threading
import time

import pytest
from pages import HOSTILE, Page
from rounds.tiny_rounds import DONE, arguments, make_inputs

from hf_rlhf.cli import main
from hf_rlhf.errors import InputError
from hf_rlhf.feedback.annotators import annotate
from hf_rlhf.feedback.cheerful import CheerfulAnnotator
from hf_rlhf.feedback.forms import Form
from hf_rlhf.feedback.rules import RuleAnnotator, rate_texts
from hf_rlhf.feedback.store import Event, FeedbackStore
from hf_rlhf.feedback.tasks import Task, canonical_json
from hf_rlhf.records import read_json_lines
from hf_rlhf.rounds import run as rounds_run
from hf_rlhf.rounds.evaluation import wins_over_start
from hf_rlhf.rounds.labels import waiting
from hf_rlhf.rounds.run import run_rounds


def rows(folder, name):
    return read_json_lines(folder / name)


def test_each_step_leaves_what_the_next_one_reads(done):
    for number in (1, 2):
        folder = done / f"round_{number}"
        assert {path.name for path in folder.iterdir()} == {
            "candidates", "preferences", "reward_model", "policy", "evaluation",
        }  # fmt: skip
        assert len(rows(folder, "candidates/train.jsonl")) == 16 * 2
        assert not list(folder.glob("*/checkpoint-*"))
        assert not list(folder.glob("*/*/checkpoint-*"))
    assert not list(done.rglob(".partial"))
    first, second = (rows(done, f"round_{number}/preferences/train.jsonl") for number in (1, 2))
    assert second[: len(first)] == first, "the reward model is trained on all feedback so far"
    assert len(second) > len(first)


def test_no_held_out_prompt_is_trained_on(done):
    held_out = {canonical_json(row["prompt"]) for row in rows(done, "prompts/test.jsonl")}
    assert len(held_out) == 6
    for file in ("prompts/train.jsonl", "round_2/candidates/train.jsonl", "round_2/preferences/train.jsonl"):
        assert held_out.isdisjoint(canonical_json(row["prompt"]) for row in rows(done, file)), file
    assert {canonical_json(row["prompt"]) for row in rows(done, "round_2/preferences/test.jsonl")} <= held_out


def test_candidates_come_from_the_newest_policy_and_continue_its_adapter(done):
    questions = rows(done, "round_2/candidates/questions.jsonl")
    assert {row["source"] for row in questions} == {"round_1"}
    assert rows(done, "round_1/candidates/train.jsonl") != rows(done, "round_2/candidates/train.jsonl")
    config = (done / "round_2/policy/config.yaml").read_text(encoding="utf-8")
    assert f"model_name_or_path: {done}/round_1/policy" in config
    assert "ref_model_path: " + str(done.parent / "base") in config
    first = next(row for row in rows(done, "round_2/policy/metrics.jsonl") if "objective/kl" in row)
    assert abs(first["objective/kl"]) > 1e-4, "the KL is to the start, from which round 1 has moved away"


def test_results_have_a_row_for_the_start_and_for_each_round(done):
    results = json.loads((done / "rounds.json").read_text(encoding="utf-8"))
    start, first, second = results["rounds"]
    assert [row["round"] for row in (start, first, second)] == [0, 1, 2]
    assert 0 <= start["rating"]["mean"] <= 1
    assert second["preferences"] > first["preferences"]
    assert first["reward_accuracy"]["eval_rows"] == second["reward_accuracy"]["eval_rows"], "one set for all models"
    assert 0 < first["agreement"]["percent"]["value"] <= 1
    assert first["wins"]["n"] == 4
    assert second["kl"]["low"] <= second["kl"]["mean"] <= second["kl"]["high"]


def test_the_report_is_one_page_without_scripts_or_links(done):
    page = Page((done / "report.html").read_text(encoding="utf-8"))
    assert not {"script", "a", "link"} & set(page.tags)
    assert page.tags.count("svg") == 5
    assert "the annotator rates the policy" in page.text


def test_a_finished_run_is_reused_and_says_with_which_flags_a_step_was_made(done, capsys):
    before = (done / "rounds.json").read_text(encoding="utf-8")
    run_rounds(*arguments(done.parent, **DONE, reward_learning_rate=1e-3))
    said = capsys.readouterr().out
    assert said.count("reused") == 2 * 5 + 2
    assert "reused; it was made with reward_learning_rate=0.0005" in said
    assert (done / "rounds.json").read_text(encoding="utf-8") == before


def test_people_take_their_time_and_the_same_command_goes_on(tmp_path, capsys):
    args = arguments(tmp_path, annotator="people", rounds=1, guidelines=tmp_path / "rules.txt")
    (tmp_path / "rules.txt").write_text(HOSTILE, encoding="utf-8")
    person = RuleAnnotator(rate_texts(CheerfulAnnotator().rate), name="ann", kind="person")
    run_rounds(*args)
    asked = len(rows(tmp_path, "rounds/round_1/candidates/questions.jsonl"))
    for left in (asked, asked - 7):
        said = capsys.readouterr().out
        assert f"{left} of {asked} questions wait" in said
        assert f"hf-rlhf label --store {tmp_path}/rounds/feedback.db" in said
        assert not (tmp_path / "rounds/round_1/preferences").exists()
        with FeedbackStore(tmp_path / "rounds/feedback.db") as store:
            assert store.setting("guidelines") == HOSTILE
            annotate(store, person, limit=7 if left == asked else None)
        run_rounds(*args)
    said = capsys.readouterr().out
    assert "questions wait" in said
    assert (tmp_path / "rounds/round_1/evaluation").exists()
    assert not (tmp_path / "rounds/rounds.json").exists(), "people have yet to compare the policy with the start"
    with FeedbackStore(tmp_path / "rounds/feedback.db") as store:
        compared = annotate(store, person)
    assert 0 < compared <= 4
    run_rounds(*args)
    results = json.loads((tmp_path / "rounds/rounds.json").read_text(encoding="utf-8"))
    assert results["last"]["win_rate"] == results["rounds"][1]["wins"]["rate"]
    assert results["rounds"][1]["rating"] is None
    assert "ann" in rows(tmp_path, "rounds/round_1/preferences/train.jsonl")[0]["annotators"]


def test_with_me_the_page_is_served_and_the_run_goes_on_when_all_is_answered(tmp_path, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds_run, "train_policy", stop)
    person = RuleAnnotator(rate_texts(CheerfulAnnotator().rate), name="me", kind="person")
    answered = threading.Event()

    def answer():
        file = tmp_path / "rounds/feedback.db"
        while not file.exists():
            time.sleep(0.05)
        with FeedbackStore(file) as store:
            while not answered.is_set():
                annotate(store, person)
                time.sleep(0.05)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_rounds(*arguments(tmp_path, annotator="me", open="false", rounds=1, comparisons=0))
    answered.set()
    thread.join(10)
    said = capsys.readouterr().out
    count = len(rows(tmp_path, "rounds/round_1/candidates/questions.jsonl"))
    assert f"{count} questions wait for your answers" in said
    assert "http://127.0.0.1:" in said
    assert "hf-rlhf feedback export" not in said
    assert (tmp_path / "rounds/round_1/reward_model/metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"annotator": "nobody"}, "annotator=nobody is invalid"),
        ({"choose": "disagreement"}, "choose=disagreement is invalid with 1 reward models"),
        ({"overlap": 2}, "overlap=2 is invalid with num_annotators=1"),
        ({"annotator": "me", "overlap": 2}, "overlap=2 is invalid: annotator=me is one. Set annotator to people"),
        ({"form": "span"}, "spans have no labels"),
        ({"form": "poem"}, "form poem is invalid|form=poem is invalid"),
        ({"temperature": 0}, "temperature=0.0 is invalid"),
        ({"held_out_prompts": 20}, "held_out_prompts=20 is invalid"),
        ({"max_completion_length": 255}, "max_completion_length=255 is invalid"),
        ({"use_peft": "false", "lora_target_modules": None}, "use_peft=False is invalid"),
        ({"ppo_options": '{"gama": 1}'}, "PPOConfig has no flag gama"),
        ({"ppo_options": '{"num_ppo_epochs": 0}'}, "num_ppo_epochs"),
        ({"reward_options": "[1]"}, "reward_options=.* is invalid: it is no mapping"),
        ({"annotator": "judge"}, "judge_model is missing"),
        ({"guidelines": "nowhere.txt"}, "guidelines=nowhere.txt is invalid"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_flag_is_one_message_before_anything_is_made(tmp_path, flags, message):
    make_inputs(tmp_path)
    with pytest.raises(InputError, match=message):
        run_rounds(*arguments(tmp_path, **flags))
    left = tmp_path / "rounds"
    assert not left.exists() or not [path for path in left.rglob("*") if path.suffix in (".jsonl", ".db", ".yaml")]


def test_a_flag_that_all_rounds_share_may_not_change(done):
    with pytest.raises(InputError, match=r"seed=1 is invalid: the rounds in .* were begun with 0"):
        run_rounds(*arguments(done.parent, **DONE, seed=1))


def test_too_few_preferences_say_what_became_of_the_answers(tmp_path):
    with pytest.raises(
        InputError, match="reward_batch_size=4 is invalid: the answers up to round 1 give 0 preferences"
    ):
        run_rounds(*arguments(tmp_path, annotator_tie_margin=1))


def test_corrections_train_a_reward_model_and_are_demonstrations(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds_run, "train_policy", stop)
    with pytest.raises(KeyboardInterrupt):
        run_rounds(*arguments(tmp_path, form="correction", comparisons=0))
    folder = tmp_path / "rounds/round_1/preferences"
    demonstrations = rows(folder, "demonstrations.jsonl")
    assert all(row["completion"][0]["content"].endswith("I hope you enjoy it!") for row in demonstrations)
    assert {row["chosen"][0]["content"] for row in rows(folder, "train.jsonl")} <= {
        row["completion"][0]["content"] for row in demonstrations
    }
    export = ["feedback", "export", str(tmp_path / "rounds/feedback.db"), "--output_dir", str(tmp_path / "exported")]
    assert main(export) == 0
    for name, file in (("of_rounds", folder / "demonstrations.jsonl"), ("of_export", tmp_path / "exported/sft.jsonl")):
        command = ["sft", "--dataset_name", str(file), "--model_name_or_path", str(tmp_path / "base")]
        flags = ["--output_dir", str(tmp_path / name), "--report_to", "none", "--disable_tqdm", "true"]
        assert main([*command, *flags, "--lora_target_modules", "q_proj", "--use_cpu", "true"]) == 0
        assert (tmp_path / name / "adapter_model.safetensors").is_file()


def test_a_store_of_something_else_is_left_alone(tmp_path):
    args = arguments(tmp_path)
    with FeedbackStore(tmp_path / "rounds/feedback.db") as store:
        store.add_tasks([Task(Form("pairwise"), "a question", ("one", "two"))])
        salt = store.salt
        with pytest.raises(InputError, match="has tasks of something else"):
            run_rounds(*args)
        assert store.salt == salt


def test_another_annotator_at_a_resume_is_not_asked_what_was_answered(done, tmp_path, capsys):
    shutil.copytree(done.parent, tmp_path / "copy")
    args, model = arguments(done.parent, **DONE | {"annotator": "people", "num_annotators": 1})
    args.output_dir = str(tmp_path / "copy/rounds")
    run_rounds(args, model)
    assert "questions wait" not in capsys.readouterr().out


def test_answers_of_every_kind_count_for_a_question(tmp_path):
    task = Task(Form("pairwise"), "a question", ("one", "two"))
    with FeedbackStore(tmp_path / "feedback.db") as store:
        store.add_tasks([task])
        assert waiting(store, [task], 1) == 1
        annotate(store, RuleAnnotator(rate_texts(CheerfulAnnotator().rate)))
        assert (waiting(store, [task], 1), waiting(store, [task], 2)) == (0, 1)


def test_a_win_counts_where_the_pair_was_asked_before_with_other_sources(tmp_path):
    asked, compared = (
        Task(Form("pairwise"), "q", ("one", "two"), sources) for sources in (("start", "start"), ("round_1", "start"))
    )
    assert asked.id == compared.id
    with FeedbackStore(tmp_path / "feedback.db") as store:
        store.add_tasks([asked])
        store.append(Event("u", asked.id, "ann", value={"preferred": 0, "strength": 1}))
        wins = wins_over_start(store, [compared], 1, 1)
    assert wins is not None
    assert wins.rate == 1.0


def test_a_form_file_may_not_change_between_two_starts(done, tmp_path):
    shutil.copytree(done.parent, tmp_path / "copy")
    form = tmp_path / "copy/rounds/prompts/form.json"
    form.write_text(json.dumps(json.loads(form.read_text()) | {"question": "Which is kinder?"}))
    args, model = arguments(done.parent, **DONE)
    args.output_dir = str(tmp_path / "copy/rounds")
    with pytest.raises(InputError, match=r"form=pairwise is invalid: the rounds in .* were begun with another content"):
        run_rounds(args, model)


def test_an_equal_reply_is_a_tie_with_the_start():
    wins = wins_over_start(None, [], 1, 3)
    assert (wins.rate, wins.ties) == (0.5, 3)


def test_the_command_runs_rounds_and_says_where_they_are(tmp_path, capsys):
    assert main(["rounds", "--output_dir", str(tmp_path)]) == 2
    assert "dataset_name is missing" in capsys.readouterr().err
