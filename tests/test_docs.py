"""The documentation agrees with the code."""

import ast
import importlib.util
import inspect
import re
import runpy
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import make_model, make_prompts, make_tokenizer, make_trainer

from hf_rlhf.cli.parsing import parse_arguments
from hf_rlhf.compat.names import RENAMED, REPLACED
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.metrics import METRICS
from hf_rlhf.quickstart.arguments import QuickstartArguments
from hf_rlhf.recipes.arguments import (
    ModelArguments,
    PPOArguments,
    RewardArguments,
    RewardTrainingArguments,
    SFTTrainingArguments,
)
from hf_rlhf.recipes.doctor import DoctorArguments
from hf_rlhf.recipes.feedback_arguments import ExportArguments, ImportArguments, PushArguments, StoreArguments
from hf_rlhf.recipes.label_arguments import LabelArguments
from hf_rlhf.recipes.plan import PlanArguments
from hf_rlhf.recipes.report_card import ReportCardArguments
from hf_rlhf.recipes.segments import SegmentsArguments
from hf_rlhf.recipes.show import ShowArguments
from hf_rlhf.rounds.arguments import RoundsArguments

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PPO = [PPOArguments, PPOConfig, ModelArguments]
FLAGS = {
    field.name
    for part in (
        *PPO,
        ExportArguments,
        ImportArguments,
        PlanArguments,
        PushArguments,
        QuickstartArguments,
        ReportCardArguments,
        RewardArguments,
        RewardTrainingArguments,
        RoundsArguments,
        SegmentsArguments,
        DoctorArguments,
        SFTTrainingArguments,
        ShowArguments,
        LabelArguments,
        StoreArguments,
    )
    for field in fields(part)
}


def name_of(page):
    """Return the path of a page below docs/; a page elsewhere is called by its name."""
    return page.relative_to(DOCS).as_posix() if page.is_relative_to(DOCS) else page.name


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def text_of(name):
    return (REPOSITORY / name).read_text(encoding="utf-8")


def tables(text):
    """Every table of a page as rows of cells by column name, without backticks in the names."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        names = [name.strip("`") for name in rows[0]]
        assert all(len(row) == len(names) for row in rows), block.splitlines()[0]
        found.append([dict(zip(names, row, strict=True)) for row in rows[2:]])
    return found


def code_spans(text):
    """Return the text between backticks, blocks of code omitted."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


# Pages and links


def test_tables_are_generated_from_the_definitions():
    spec = importlib.util.spec_from_file_location("make_tables", REPOSITORY / "docs" / "make_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages = module.pages()
    assert {"reference/metrics.md", "reference/flags.md", "reference/api.md"} <= set(pages)
    for name, page in pages.items():
        assert (DOCS / name).read_text(encoding="utf-8") == page, "run: python docs/make_tables.py"
        assert all(tables(page))


@pytest.mark.parametrize(
    "document",
    ["README.md", "CONTRIBUTING.md", "benchmarks/README.md", *(f"docs/{name_of(page)}" for page in PAGES)],
)
def test_links_lead_somewhere(document):
    """To a file that exists, and to a heading of it."""
    folder = (REPOSITORY / document).parent
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text_of(document)):
        if target.startswith("http"):
            continue
        file = folder / target if target else REPOSITORY / document
        assert file.exists(), f"{document}: {target}"
        assert not anchor or anchor in anchors(file), f"{document}: {target}#{anchor}"


def anchors(file):
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    text = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@each_page
def test_every_row_of_a_table_has_as_many_cells_as_its_head(page):
    assert tables(page.read_text(encoding="utf-8")) or name_of(page) in ("troubleshooting.md", "how-to/stages.md")


def test_the_readme_leads_to_the_index_and_the_index_to_every_page():
    assert "(docs/index.md)" in text_of("README.md")
    index = text_of("docs/index.md")
    assert not [name_of(page) for page in PAGES if f"({name_of(page)})" not in index and name_of(page) != "index.md"]


def test_pages_that_the_source_names_exist():
    folders = ("hf_rlhf", "recipes", "tests", "benchmarks", "model_cards", ".github")
    files = [file for folder in folders for file in REPOSITORY.joinpath(folder).rglob("*") if file.is_file()]
    assert len(files) > 300
    named = {
        page
        for file in files
        if file.suffix in (".py", ".md", ".yml", ".yaml", ".j2")
        for page in re.findall(r"docs/[\w/-]+\.md", file.read_text(encoding="utf-8"))
    }
    assert len(named) >= 5
    assert not [page for page in named if not (REPOSITORY / page).exists()]


def test_links_out_of_the_site_lead_to_the_repository():
    module = runpy.run_path(str(DOCS / "links_to_the_repository.py"))
    file, config = SimpleNamespace(src_uri="how-to/speed.md"), SimpleNamespace(repo_url="https://github.com/a/b/")
    text = "[a](../../hf_rlhf/ops/kl.py) [b](../../tests/ops) [c](../ppo.md#kl) [d](#here) `e`\n```\n[f](../../README.md)\n```\n"
    expected = text.replace("(../../hf_rlhf/", "(https://github.com/a/b/blob/main/hf_rlhf/", 1).replace(
        "(../../tests/", "(https://github.com/a/b/tree/main/tests/", 1
    )
    assert module["on_page_markdown"](text, SimpleNamespace(file=file), config, None) == expected


def test_the_site_has_every_page():
    """Its table of contents names each page once, and nothing else."""
    pages = re.findall(r"^ +- .+: (\S+\.md)$", text_of("mkdocs.yml"), re.MULTILINE)
    assert sorted(pages) == sorted(map(name_of, PAGES))


def test_layers_in_contributing_are_those_of_the_test():
    from test_layers import LAYERS

    text = text_of("CONTRIBUTING.md")
    positions = [text.index(f"`{layer}`") for layer in LAYERS]
    assert positions == sorted(positions)


# Names: flags, metrics, and what else is written as code

OLD_METRIC = re.compile(r"(ppo|env|tokens)/[\w/]+")
OF_OLD_TRL = {
    "AutoModelForCausalLMWithValueHead", "batched_forward_pass", "compute_rewards", "config", "data_collator", "dataloader",
    "dataset", "log_stats", "lr_scheduler", "num_shared_layers", "tokenizer", "mse", "pytorch_model.bin",
    "step(queries, responses, scores, response_masks)",
}  # fmt: skip
OF_PYTHON_AND_ITS_PACKAGES = {
    "NO_COLOR", "WANDB_PROJECT", "transformers.TrainingArguments", "async", "accelerate", "torchrun", "null", "optimizers", "README.md",
    "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "STRATEGY", "DistributedDataParallel has no attribute 'policy'", "torch.load(..., weights_only=True)",
}  # fmt: skip
OF_LAUNCHERS = {
    "config", "config_file", "nproc_per_node", "help", "num_machines", "machine_rank", "main_process_ip",
}  # fmt: skip
VARIABLES = {"ACCELERATE_USE_CPU", "DS_BUILD_OPS", "HF_HUB_OFFLINE", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"}
FLAG_WITH_VALUE = re.compile(r"(\w+)=(\"?)([\w.-]+)\2")


@cache
def source_words():
    """Every word of the package's source but the old names of flags, which are there to be refused."""
    texts = [
        file.read_text(encoding="utf-8")
        for folder in ("hf_rlhf", "recipes")
        for file in REPOSITORY.joinpath(folder).rglob("*.py")
    ]
    kept = [
        re.sub(r"^(RENAMED|REPLACED|TRAINER_ARGUMENTS) = \{.*?^\}", "", text, flags=re.MULTILINE | re.DOTALL)
        for text in texts
    ]
    assert sum(len(text) for text in kept) < sum(len(text) for text in texts)
    return {word for text in kept for word in re.findall(r"\w+", text)}


def is_metric(name):
    return name in METRICS or (name.startswith("eval_") and name.removeprefix("eval_") in {*METRICS, "kl"})


def unknown_names(span):
    """Return the parts of a code span that are neither flag nor metric nor file nor a word of the package."""
    if span in FLAGS or is_metric(span) or span in OF_PYTHON_AND_ITS_PACKAGES or "::" in span:
        return []
    if (REPOSITORY / span).exists() or (REPOSITORY / "hf_rlhf" / span).exists():
        return []
    if re.fullmatch(r"(rewards|eps|objective|policy|loss|val|sampling|completions|time)/[\w/<>]+", span):
        return [span]
    if flag := FLAG_WITH_VALUE.fullmatch(span):
        return [] if flag[1] in FLAGS or flag[1] in VARIABLES else [span]
    if options := re.findall(r"--(\w+)", span):
        return [option for option in options if option not in FLAGS and option not in OF_LAUNCHERS]
    formula = not re.fullmatch(r"[\w./<>-]+", span)
    words = [word for word in re.findall(r"[A-Za-z_]\w*", span) if not re.fullmatch(r"[A-Za-z]+_[ti]?", word)]
    return [
        word for word in words if word not in FLAGS | VARIABLES | source_words() and not (formula and "_" not in word)
    ]


@each_page
def test_names_written_as_code_exist(page):
    old = OF_OLD_TRL | set(RENAMED) | set(REPLACED) if name_of(page) == "how-to/migration.md" else set()
    spans = code_spans(page.read_text(encoding="utf-8"))
    assert len(spans) >= 5
    if name_of(page) == "reference/api.md":  # of docstrings, whose arguments need not be flags
        arguments = {span: found[1] for span in spans if (found := FLAG_WITH_VALUE.fullmatch(span))}
        assert set(arguments.values()) <= source_words()
        spans = [span for span in spans if span not in arguments]
    unknown = {
        span: names
        for span in spans
        if span not in old and not (old and OLD_METRIC.fullmatch(span)) and (names := unknown_names(span))
    }
    assert not unknown


@pytest.mark.parametrize(
    "wrong",
    [
        "kl_coeff",
        "init_kl_coef",
        "lamb",
        "no_such_flag=1",
        "policy/approxkl",
        "val/explained_variance_avg",
        "eval_rewards",
        "--klcoef 1",
        "kl_coeff * kl_t",
        "ppo/guards.py",
    ],
)
def test_a_name_that_does_not_exist_is_found(wrong):
    assert unknown_names(wrong)


def test_every_flag_with_a_value_is_accepted(tmp_path):
    pages = [page for page in PAGES if name_of(page) != "reference/api.md"]
    spans = {span for page in pages for span in code_spans(page.read_text(encoding="utf-8"))}
    given = [found for span in spans if (found := FLAG_WITH_VALUE.fullmatch(span)) and found[1] in FLAGS]
    assert len(given) >= 10
    for flag in given:
        companion = {"value_head_detach": [], "overlong_penalty": ["--overlong_buffer", "1"]}.get(flag[1], [])
        parse_arguments(
            PPO,
            [f"--{flag[1]}", flag[3], *companion, "--output_dir", str(tmp_path), "--use_cpu", "true"],
            "hf-rlhf ppo",
        )


def symptoms():
    """Title, and the code spans of `Look at` and of `Change`, of each section of the page."""
    for section in re.split(r"^### ", text_of("docs/troubleshooting.md"), flags=re.MULTILINE)[1:]:
        title = section.splitlines()[0]
        parts = re.findall(r"^- \*\*(.+?)\.\*\* (.+?)(?=^- \*\*|\n\n|\Z)", section, re.MULTILINE | re.DOTALL)
        assert [name for name, _ in parts] == ["Cause", "Look at", "Change"], title
        yield title, code_spans(parts[1][1]), code_spans(parts[2][1])


@pytest.mark.parametrize(("title", "look", "change"), symptoms(), ids=[title for title, *_ in symptoms()])
def test_what_to_look_at_is_logged_or_written_and_what_to_change_can_be_set(title, look, change):
    from hf_rlhf.ppo.trainer import PPOTrainer

    settable = FLAGS | set(inspect.signature(PPOTrainer).parameters) | set(dir(PPOTrainer)) | {"rollout_batch_size"}
    for name in look:
        is_file = name.endswith((".jsonl", ".yaml", ".json"))
        assert is_metric(name) or is_file or name == "stopped" or hasattr(PPOTrainer, name), name
    for name in change:
        if re.fullmatch(r"\w+(=[\w.-]+)?", name):
            assert name.split("=")[0] in settable | {"k2", "k3", "async", "OMP_NUM_THREADS"}, name
        else:
            assert is_metric(name) or name.startswith(("hf-rlhf ", "accelerate launch ")), name


def test_the_symptoms_are_many_and_name_much():
    found = list(symptoms())
    assert len(found) >= 15
    assert len({name for _, look, _ in found for name in look if is_metric(name)}) >= 30
    assert len({name for _, _, change in found for name in change if name.split("=")[0] in FLAGS}) >= 40


# Sizes


def sizes_table():
    return next(table for table in tables(text_of("docs/batch_algebra.md")) if "rollout_batch_size" in table[0])


@pytest.mark.parametrize("row", sizes_table(), ids=lambda row: f"{row['ranks']} ranks")
def test_the_sizes_in_the_docs_are_those_of_the_config(tmp_path, monkeypatch, row):
    numbers = {name: int(value) for name, value in row.items()}
    monkeypatch.setattr(PPOConfig, "world_size", property(lambda self: numbers["ranks"]))
    asked = {name: numbers[name] for name in numbers if name in FLAGS}
    config = PPOConfig(output_dir=str(tmp_path), use_cpu=True, **asked)
    derived = ("minibatch_size", "rollout_batch_size", "updates_per_iteration")
    assert set(numbers) == {"ranks", *asked, *derived}
    assert {name: getattr(config, name) for name in derived} == {name: numbers[name] for name in derived}


def test_the_example_rows_of_the_docs_are_the_same_run():
    rows = sizes_table()
    assert len(rows) >= 3
    assert {row["ranks"] for row in rows} >= {"1", "8"}
    assert len({(row["minibatch_size"], row["rollout_batch_size"], row["updates_per_iteration"]) for row in rows}) == 1


EXAMPLE = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_mini_batches": 2,
    "num_ppo_epochs": 3,
    "max_steps": -1,
}


def example_run(folder, **flags):
    """The trainer of the page's example with 40 prompts, and how many updates its run has."""
    trainer = make_trainer(folder, data=make_prompts(40), **(EXAMPLE | flags))
    *_, updates = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    return trainer, updates


def test_the_lengths_of_runs_in_the_docs_are_those_of_the_trainer(tmp_path):
    text = text_of("docs/batch_algebra.md")
    for name, value in EXAMPLE.items():
        assert f"`{name}` {value}" in text or name == "max_steps"
    (table,) = (table for table in tables(text) if "completions" in table[0])
    assert len(table) == 4
    for row in table:
        name, value = row["flag"].strip("`").split("=")
        trainer, updates = example_run(tmp_path, **{name: float(value) if "." in value else int(value)})
        iterations = updates // trainer.args.updates_per_iteration
        expected = [int(row[column]) for column in ("iterations", "updates", "completions")]
        assert [iterations, updates, iterations * trainer.args.rollout_batch_size] == expected, row["flag"]


def test_the_saves_in_the_docs_are_those_of_the_callbacks(tmp_path):
    from transformers import DefaultFlowCallback, TrainerControl, TrainerState

    from hf_rlhf.ppo.callbacks import IterationCallback

    (table,) = (table for table in tables(text_of("docs/batch_algebra.md")) if "happens after the updates" in table[0])
    assert len(table) == 3
    for row in table:
        save_steps = int(row["flag"].strip("`").removeprefix("save_steps="))
        trainer, updates = example_run(tmp_path, total_episodes=100, save_strategy="steps", save_steps=save_steps)
        callbacks = trainer.callback_handler.callbacks
        flow, by_iteration = (
            next(callback for callback in callbacks if isinstance(callback, kind))
            for kind in (DefaultFlowCallback, IterationCallback)
        )
        saved = []
        for step in range(1, updates + 1):
            control = TrainerControl()
            state = TrainerState(global_step=step, max_steps=updates, save_steps=save_steps, logging_steps=1)
            flow.on_step_end(trainer.args, state, control)
            by_iteration.on_step_end(trainer.args, state, control)
            saved += [step] if control.should_save else []
        assert saved == [int(step) for step in row["happens after the updates"].split(",")]


# Python blocks

NOT_RUN = "# Not run here:"


def python_blocks(page):
    """The Python blocks of a page, without those that say in their first line why they are not run."""
    return [
        block
        for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        if not block.startswith(NOT_RUN)
    ]


@pytest.fixture
def tiny_world(tmp_path, monkeypatch):
    """A folder to run in, where the embedded model is a tiny one and earlier runs have left what the pages load."""
    from safetensors.torch import load_file, save_file

    from hf_rlhf.models.heads import ValueHead
    from hf_rlhf.models.load import load_sequence_classifier

    tokenizer = make_tokenizer()
    model = make_model(tokenizer, max_position_embeddings=1024)  # for the prompt length that flags have by default
    for folder in ("model", "runs/old"):
        model.save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
    head = {f"v_head.{name}": tensor for name, tensor in ValueHead(32, init_std=1.0).state_dict().items()}
    old = tmp_path / "runs" / "old" / "model.safetensors"
    save_file(load_file(old) | head, old, metadata={"format": "pt"})
    load_sequence_classifier(str(tmp_path / "model"), dtype="float32").save_pretrained(tmp_path / "runs" / "reward")
    tokenizer.save_pretrained(tmp_path / "runs" / "reward")
    monkeypatch.setattr("hf_rlhf.models.load._embedded_folder", lambda: tmp_path / "model")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [REPOSITORY / "README.md", *(page for page in PAGES if python_blocks(page))],
    ids=name_of,
)
def test_the_python_blocks_of_a_page_run(page, tiny_world):
    """One after the other, as a reader would, and to the letter."""
    names = {"__name__": "page"}
    for number, block in enumerate(python_blocks(page), start=1):
        exec(compile(block, f"{name_of(page)}, block {number}", "exec"), names)


def test_a_saved_critic_says_what_the_page_promises(tiny_world, capsys):
    first_block = python_blocks(DOCS / "how-to" / "own_loop.md")[0]
    exec(compile(first_block, "own_loop.md", "exec"), {"__name__": "page"})
    in_memory, saved = (ast.literal_eval(line) for line in capsys.readouterr().out.splitlines()[-2:])
    assert len(in_memory) == 8
    assert any(in_memory)
    assert saved == pytest.approx(in_memory)


def test_pages_with_examples_have_blocks_that_run():
    assert {name_of(page) for page in PAGES if python_blocks(page)} >= {
        "ppo.md", "how-to/migration.md", "how-to/own_loop.md", "how-to/rewards.md", "how-to/stages.md", "reference/api.md"
    }  # fmt: skip


# Old names


def test_the_migration_tables_say_what_the_error_says():
    """Each old name of a flag is in the page, with the new name beside it."""
    text = text_of("docs/how-to/migration.md")
    rows = [row for table in tables(text) if set(table[0]) == {"there", "here", "note"} for row in table]
    documented = {old: code_spans(row["here"]) for row in rows for old in code_spans(row["there"])}
    in_words = dict(re.findall(r"`(\w+)` is\s+`(\w+)`", text[text.index("Of TRL's GRPO") :].split("\n\n")[0]))
    assert {old for old, new in documented.items() if new} | set(in_words) == (
        set(RENAMED) | {"steps", "tracker_project_name"}
    )
    assert {old for old, new in documented.items() if not new} | {"steps", "tracker_project_name"} == set(REPLACED)
    for old, new in RENAMED.items():
        assert new in (documented.get(old) or [in_words.get(old)]), old


def test_metrics_of_the_last_trl_keep_their_names():
    of_trl = """eps objective/kl objective/entropy objective/non_score_reward objective/rlhf_reward objective/scores
        policy/approxkl_avg policy/clipfrac_avg policy/entropy_avg loss/policy_avg loss/value_avg val/clipfrac_avg
        val/ratio val/ratio_var val/num_eos_tokens lr episode"""
    assert set(of_trl.split()) <= set(METRICS)


# Lessons


def lessons():
    """The rows of both tables: what was reported, and what was found without a report."""
    return [row for table in tables(text_of("docs/dev/lessons.md")) for row in table]


@cache
def functions_of(file):
    return {node.name for node in ast.walk(ast.parse(text_of(file))) if isinstance(node, ast.FunctionDef)}


def test_all_lessons_are_there_and_none_is_empty():
    assert [row["no."] for row in lessons()] == [str(number) for number in range(1, 82)]
    for row in lessons():
        assert all(len(cell) > (0 if name == "no." else 10) for name, cell in row.items()), row
        assert "found" in row or re.search(r"\(.*\d+.*\)", row["reported"]), f"row {row['no.']} names no issue"


def faults():
    """The rows of every table of faults."""
    return [row for table in tables(text_of("docs/dev/reliability.md")) if "fault" in table[0] for row in table]


@pytest.mark.parametrize("row", [*lessons(), *faults()], ids=lambda row: row.get("no.") or row["fault"])
def test_the_tests_that_hold_a_lesson_or_a_fault_exist(row):
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row["held by"])
    assert named
    missing = [
        f"{file}::{test}" for file, test in named if not (REPOSITORY / file).is_file() or test not in functions_of(file)
    ]
    assert not missing


# Faults


def faults():
    found = [row for table in tables(text_of("docs/dev/reliability.md")) for row in table if "fault" in row]
    assert len(found) >= 25
    return found


@pytest.mark.parametrize("row", faults(), ids=lambda row: row["fault"][:40])
def test_the_tests_that_hold_a_fault_exist(row):
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row["held by"])
    assert named
    assert row["what happens"]
    assert not [f"{file}::{test}" for file, test in named if test not in functions_of(file)]
