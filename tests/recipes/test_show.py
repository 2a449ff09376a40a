"""`hf-rlhf show`: a run in the terminal, as a page and on the Hub, and one error for what cannot be shown."""

import subprocess
import sys

import pytest
from datasets import load_dataset
from fake_hub import TOKEN, environment_for, fake_hub
from tiny import make_trainer
from trajectories import completion_row

from hf_rlhf.cli.commands import main
from hf_rlhf.ppo.trajectories import COLUMNS, write_trajectories


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that logged trajectories of two iterations."""
    folder = tmp_path_factory.mktemp("runs") / "ppo"
    make_trainer(folder, log_trajectories=1).train()
    return folder


def test_the_terminal_shows_the_first_rows_of_the_last_iteration(run, capsys):
    assert main(["show", str(run)]) == 0
    out = capsys.readouterr().out
    assert [line.split(":")[0] for line in out.splitlines() if line.startswith("iteration")] == [
        f"iteration 2, row {row}" for row in range(4)
    ]
    assert "<|im_start|> user" in out
    assert main(["show", str(run), "--iteration", "1", "--rows", "7,2", "--color_by", "kl"]) == 0
    assert "iteration 1, row 7" in capsys.readouterr().out


def test_the_page_has_all_rows(run, tmp_path, capsys):
    page = tmp_path / "new" / "page.html"
    assert main(["show", str(run), "--html", str(page), "--color_by", "value"]) == 0
    assert f"wrote {page}: iteration 2, 8 rows" in capsys.readouterr().out
    html = page.read_text(encoding="utf-8")
    assert html.count("<article") == 8
    assert 'value="value" checked' in html
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "run_dir is missing"),
        (["{folder}/none"], "it is no folder"),
        (["{folder}"], "it holds no trajectories. Train with --log_trajectories 1"),
        (["{run}", "--iteration", "9"], "iteration=9 is invalid: the run wrote the trajectories of iterations 1, 2"),
        (["{run}", "--rows", "8"], "rows=8 is invalid: iteration 2 has 8 rows"),
        (["{run}", "--color_by", "colour"], "color_by=colour is invalid: it must be one of advantage"),
        (["{run}", "--html", "{folder}"], "it must be a file"),
        (["{run}", "--hub_dataset_id", "a/b", "--html", "{folder}/x.html"], "html is invalid with hub_dataset_id"),
        (["{run}", "--colour_by", "kl"], "did you mean"),
    ],
)
def test_what_cannot_be_shown_is_one_error_and_writes_nothing(run, tmp_path, capsys, flags, message):
    names = {"folder": str(tmp_path), "run": str(run)}
    assert main(["show", *(flag.format(**names) for flag in flags)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def push(run, hub, tmp_path, *flags, token=TOKEN):
    argv = [sys.executable, "-m", "hf_rlhf.cli", "show", str(run), "--hub_dataset_id", "someone/rollouts", *flags]
    return subprocess.run(argv, capture_output=True, text=True, env=environment_for(hub, tmp_path, token), timeout=200)


def test_a_push_is_one_commit_of_the_files_and_a_card(tmp_path):
    run = tmp_path / "run"
    for iteration in (1, 11):
        write_trajectories(run, [completion_row(["a", "b"]), completion_row(["c"])], iteration=iteration, step=0)
    (run / "config.yaml").write_text(
        "model_name_or_path: /home/me/secret/model\ndataset_name: org/prompts\nseed: 7\nkl_coef: 0.1\n"
    )
    (run / "versions.json").write_text('{"torch": "2.0"}')
    (run / "trajectories" / ".iteration-000012.parquet.tmp").write_bytes(b"torn")
    (run / "trajectories" / "notes.txt").write_text("mine")
    with fake_hub() as hub:
        done = push(run, hub, tmp_path, "--license", "mit", "--private", "true")
    assert done.returncode == 0, done.stderr
    assert "pushed to" in done.stdout
    assert set(hub.files) == {"README.md", "iteration-000001.parquet", "iteration-000011.parquet"}
    assert sum("/commit/" in path for path in hub.requests) == 1
    assert b'"visibility":"private"' in hub.received.replace(b" ", b"")
    card = hub.files["README.md"].decode()
    assert all(f"| `{name}` | {meaning} |" in card for name, meaning in COLUMNS.items())
    for words in ("license: mit", "4 completions of 2 iterations", "org/prompts", "| kl_coef | 0.1 |", "torch 2.0"):
        assert words in card, words
    assert "/home/me" not in card
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in hub.files.items():
        (copy / name).write_bytes(content)
    rows = load_dataset(str(copy), split="train")  # by the metadata of the card
    assert rows["iteration"][:] == [1, 1, 11, 11]
    assert rows["tokens"][0] == ["a", "b"]


def test_a_push_that_fails_says_how_to_push_again(run, tmp_path):
    with fake_hub(403) as hub:
        done = push(run, hub, tmp_path)
    assert done.returncode == 3
    assert "hf upload --repo-type dataset someone/rollouts" in done.stderr


def test_a_model_is_pushed_without_its_trajectories():
    from fnmatch import fnmatch

    from hf_rlhf.hub.push import LEFT_OUT

    assert any(fnmatch("trajectories/iteration-000001.parquet", pattern) for pattern in LEFT_OUT)
