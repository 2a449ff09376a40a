"""Imports only go down the list of layers, and heavy or private ones stay out."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hf_rlhf"

# A module may import from its own layer and from those before it.
LAYERS = (
    "lazy",
    "errors",
    "credentials",
    "endpoints",
    "compat",
    "ops",
    "types",
    "distributed",
    "data",
    "models",
    "rollout",
    "judges",
    "writers",
    "rewards",
    "environments",
    "progress",
    "records",
    "checkpoint",
    "training",
    "ppo",
    "planning",
    "evaluation",
    "hub",
    "feedback",
    "recipes",
    "rounds",
    "quickstart",
    "cli",
)


def modules() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 20
    return found


def imported_names(file: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.append(node.module)
    return names


def layer_of(module: str) -> str:
    return module.split(".")[1]


def test_imports_only_go_down():
    for file in modules():
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":  # the public list, imported lazily
            continue
        for name in imported_names(file):
            if name.startswith("hf_rlhf."):
                assert LAYERS.index(layer_of(name)) <= LAYERS.index(own), f"{file} imports {name}, a layer above"


def test_every_layer_exists():
    names = {path.name for path in PACKAGE.iterdir()} - {"py.typed"}
    found = {name.removesuffix(".py") for name in names if not name.startswith("_")}
    assert found == set(LAYERS)


def test_ops_import_only_torch_and_the_standard_library():
    for file in sorted((PACKAGE / "ops").glob("*.py")):
        for name in imported_names(file):
            root = name.split(".")[0]
            assert root == "torch" or root in sys.stdlib_module_names or name.startswith("hf_rlhf.ops"), (file, name)


def test_no_experimental_trl_and_no_pickle():
    for file in modules():
        for name in imported_names(file):
            assert not name.startswith("trl.experimental"), file
            assert name.split(".")[0] not in ("pickle", "dill", "joblib"), file
        assert "torch.save(" not in file.read_text(encoding="utf-8"), file


def test_importing_the_package_is_light():
    code = "import sys, hf_rlhf; print([m for m in ('torch', 'transformers', 'trl', 'peft') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("__init__.py")), ids=lambda file: file.parent.name)
def test_every_public_name_resolves_and_is_known_to_type_checkers(file):
    package = importlib.import_module(".".join(file.parent.relative_to(PACKAGE.parent).parts))
    names = getattr(package, "__all__", [])
    assert not [name for name in names if getattr(package, name) is None or inspect.ismodule(getattr(package, name))]
    assert set(names) <= set(dir(package))
    if homes := getattr(package, "_HOMES", None):
        imported = {
            alias.name: node.module
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        assert {name: imported.get(name) for name in names} == homes
