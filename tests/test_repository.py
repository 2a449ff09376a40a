"""The files around the package say what the package is: one version, types in the wheel, a workflow that runs `.ci/run`."""

import ast
import os
import re
from functools import cache
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

import hf_rlhf

REPOSITORY = Path(__file__).parents[1]


def text_of(name):
    return (REPOSITORY / name).read_text(encoding="utf-8")


def yaml_of(name):
    return yaml.safe_load(text_of(name))


def found(pattern, name):
    """The first group of the only match of a pattern in a file."""
    (match,) = re.findall(pattern, text_of(name), re.MULTILINE)
    return match


def pinned(package):
    return found(rf"^{package}==(\S+)$", "constraints.txt")


def suite():
    return yaml_of(".github/workflows/ci.yml")["jobs"]["suite"]


def test_the_wheel_has_types_and_templates_and_nothing_else(tmp_path):
    from hatchling.builders.wheel import WheelBuilder

    (file,) = WheelBuilder(str(REPOSITORY)).build(directory=str(tmp_path), versions=["standard"])
    with ZipFile(file) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        assert "Classifier: Typing :: Typed" in wheel.read(metadata).decode()
    assert {"hf_rlhf/py.typed", "hf_rlhf/_model_cards/policy.md.j2", "hf_rlhf/ppo/trainer.py"} <= names
    assert {name.split("/")[0] for name in names} == {"hf_rlhf", metadata.split("/")[0]}


def test_the_version_is_the_same_everywhere():
    assert found(r'^version = "(.+)"$', "pyproject.toml") == hf_rlhf.__version__
    assert str(yaml_of("CITATION.cff")["version"]) == hf_rlhf.__version__
    assert re.findall(r"^## \[(.+?)\]", text_of("CHANGELOG.md"), re.MULTILINE)[0] == hf_rlhf.__version__


def test_the_citation_names_the_license_and_the_repository_of_the_package():
    citation = yaml_of("CITATION.cff")
    assert citation["license"] == found(r'^license = "(.+)"$', "pyproject.toml")
    assert citation["repository-code"] == found(r'^Repository = "(.+)"$', "pyproject.toml")


def test_the_workflow_calls_ci_run():
    assert [step["run"] for step in suite()["steps"] if "run" in step] == [".ci/run"]
    assert suite()["timeout-minutes"] <= 120
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)


def test_the_oldest_python_of_the_workflow_is_the_oldest_that_is_allowed():
    versions = suite()["strategy"]["matrix"]["python-version"]
    assert versions[0] == found(r'^requires-python = ">=(.+)"$', "pyproject.toml")
    for name in ("ppo", "reward", "sft", "minimal_ppo"):
        assert versions[0] == found(r'^# requires-python = ">=(.+)"$', f"recipes/{name}.py")
    assert f"Python {versions[0]} or newer" in text_of("README.md")


def test_the_hooks_have_the_pinned_ruff():
    (revision,) = (repo["rev"] for repo in yaml_of(".pre-commit-config.yaml")["repos"] if "ruff" in repo["repo"])
    assert revision == f"v{pinned('ruff')}"


# Where to add what


@cache
def names_defined_in(file):
    """Functions, classes, methods and constants of a module."""
    nodes = list(ast.walk(ast.parse(text_of(file))))
    defined = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return defined | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def places():
    """The rows of the table of places to add something."""
    table = text_of("CONTRIBUTING.md").split("## Where to add", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 9
    return rows


@pytest.mark.parametrize("row", places(), ids=lambda row: row.split("|")[1].strip())
def test_the_places_and_tests_of_a_row_exist(row):
    assert "`tests/" in row
    for span in re.findall(r"`([^`]+)`", row):
        file, _, name = span.partition("::")
        if name:
            assert name in names_defined_in(file), span
        elif "/" in span and "<" not in span and " " not in span:
            assert (REPOSITORY / span).exists(), span
