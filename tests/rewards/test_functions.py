"""Reward functions by name: correct Python loads, and what is wrong in it is shown with its own line."""

import importlib
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hf_rlhf.errors import InputError
from hf_rlhf.rewards.functions import is_function_name, load_function


@pytest.fixture(autouse=True)
def _clean_imports(monkeypatch):
    """Leave the path and the table of modules as they were."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def write(tmp_path):
    """Write a module; returns its path."""

    def write(name, code):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(code), encoding="utf-8")
        importlib.invalidate_caches()
        return str(file)

    return write


LENGTH = "def score(prompts, completions, **columns):\n    return [float(len(text)) for text in completions]\n"


def scores(name):
    return load_function(name)(["a"], ["four", "seven77"])


def refusal(name):
    with pytest.raises(InputError) as caught:
        load_function(name)
    return str(caught.value)


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
def test_a_dataclass_with_and_without_future_annotations(write, future):
    code = """
        import dataclasses, typing
        @dataclasses.dataclass
        class Verdict:
            points: float
            again: typing.ClassVar[int] = 2
        def score(prompts, completions, **columns):
            hints = typing.get_type_hints(Verdict)
            return [hints["points"](Verdict(len(text)).points) for text in completions]
    """
    file = write("rew/graded.py", future + textwrap.dedent(code))
    assert scores(f"{file}:score") == [4.0, 7.0]


@pytest.mark.parametrize("line", ["from points import points", "from .points import points"])
def test_siblings_absolute_and_relative(write, line):
    write("rew/points.py", "def points(text): return float(len(text))\n")
    file = write(
        "rew/uses.py", f"{line}\ndef score(prompts, completions): return [points(text) for text in completions]\n"
    )
    assert scores(f"{file}:score") == [4.0, 7.0]


def test_a_sibling_that_is_imported_when_called_and_one_with_the_name_of_an_installed_module(write):
    """Put siblings first while the file is loaded, like `python file.py`; afterwards nothing installed is hidden."""
    write("rew/late_points.py", "def points(text): return float(len(text))\n")
    write("rew/antigravity.py", "here = True\n")  # of the standard library, where it opens a browser
    write("rew/pydoc_data.py", "raise AssertionError('hides the standard library')\n")
    code = """
        from antigravity import here
        def score(prompts, completions):
            from late_points import points
            return [points(text) for text in completions]
    """
    assert scores(write("rew/late.py", code) + ":score") == [4.0, 7.0]
    assert hasattr(importlib.import_module("pydoc_data"), "__path__")


def test_files_of_one_stem_and_of_an_installed_name_stay_apart(write):
    import json

    first = write("a/json.py", LENGTH)
    second = write("b/json.py", LENGTH.replace("float(len(text))", "-1.0"))
    assert scores(f"{first}:score") == [4.0, 7.0]
    assert scores(f"{second}:score") == [-1.0, -1.0]
    assert scores(f"{first}:score") == [4.0, 7.0]
    assert importlib.import_module("json") is json


@pytest.mark.parametrize("name", ["v1.2.py", "my-reward.py", "größe 1.py", "module/module.py"])
def test_any_name_of_a_file(write, name):
    write("module/module/__init__.py", "")  # a package of the same name as the file beside it
    assert scores(write(name, LENGTH) + ":score") == [4.0, 7.0]


def test_a_file_is_loaded_once_by_all_of_its_names(write, monkeypatch, tmp_path):
    file = write("rew/once.py", LENGTH)
    monkeypatch.chdir(tmp_path)
    assert load_function("rew/once.py:score") is load_function(f"{file}:score")


def test_functions_and_classes_can_be_pickled(write):
    file = write("rew/pickled.py", LENGTH + "class Verdict:\n    points = 3\n")
    score = load_function(f"{file}:score")
    verdict = sys.modules[score.__module__].Verdict()
    assert pickle.loads(pickle.dumps(score)) is score
    assert pickle.loads(pickle.dumps(verdict)).points == 3


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_pool(write, method):
    """A spawned process has nothing but the name of the module."""
    write("rew/helper.py", "def points(text): return float(len(text))\n")
    code = f"""
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        from helper import points
        def one(text): return points(text)
        def score(prompts, completions):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context({method!r})) as pool:
                return list(pool.map(one, completions))
    """
    file = write("rew/pool.py", code)
    program = write(
        "program.py",
        f"""
        from hf_rlhf.rewards.functions import load_function
        if __name__ == "__main__":
            print(load_function({file + ":score"!r})(["a"], ["four", "seven77"]))
        """,
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, program], capture_output=True, encoding="utf-8", env=environment)
    assert done.stdout.strip() == "[4.0, 7.0]", done.stderr


def test_a_module_of_the_working_directory(write, monkeypatch, tmp_path):
    write("score_pack/__init__.py", "")
    write("score_pack/inner.py", LENGTH)
    monkeypatch.chdir(tmp_path)
    assert scores("score_pack.inner:score") == [4.0, 7.0]


@pytest.mark.parametrize(
    ("code", "line", "words"),
    [
        ("import os\nimport no_such_package\n", 2, "ModuleNotFoundError: No module named 'no_such_package'"),
        ("from os import nothing_of_it\n", 1, "ImportError: cannot import name 'nothing_of_it'"),
        ("x = 1\n\ndef score(:\n", 3, "SyntaxError"),
        ("x = 1\ny = x + undefined\n", 2, "NameError: name 'undefined' is not defined"),
        ("import json\njson.loads('{')\n", 2, "JSONDecodeError"),
        ("from .nobody import a\n", 1, "ModuleNotFoundError"),
        ("raise SystemExit('no key')\n", 1, "SystemExit: no key"),
    ],
)
@pytest.mark.parametrize("as_module", [False, True])
def test_an_error_of_the_file_is_shown_as_its_own(write, monkeypatch, tmp_path, as_module, code, line, words):
    file = write("broken_reward.py", code)
    monkeypatch.chdir(tmp_path)
    if as_module and "from ." in code:
        words = "ImportError: attempted relative import"
    message = refusal("broken_reward:score" if as_module else f"{file}:score")
    assert f'File "{file}", line {line}' in message
    assert words in message
    assert "importlib" not in message
    assert "no such" not in message.replace(words, "")


def test_the_error_of_a_sibling_names_both_lines(write):
    sibling = write("rew/broken_sibling.py", "import nothing_there\n")
    message = refusal(write("rew/uses_it.py", "\nimport broken_sibling\n") + ":score")
    assert 'uses_it.py", line 2' in message
    assert f'File "{sibling}", line 1' in message


def test_what_is_not_there_is_told_apart(write, monkeypatch, tmp_path):
    file = write("rewards_here.py", LENGTH + "limit = 3\nclass Judge:\n    def __call__(self, **_): return []\n")
    monkeypatch.chdir(tmp_path)
    assert "there is no file" in refusal("reward_here.py:score")
    assert "'rewards_here.py'" in refusal("reward_here.py:score")
    assert "there is no module 'reward_here'" in refusal("reward_here:score")
    assert "there is no module 'os.nothing'" in refusal("os.nothing:score")
    for name in ("", "sub/rewards", "org/model"):
        assert f"there is no module {name!r}" in refusal(f"{name}:score")
    assert "Did you mean ./rewards_here.py:score?" in refusal("./rewards_here:score")
    message = refusal(f"{file}:scores")
    assert "there is no 'scores' in it" in message
    assert "Did you mean 'score'?" in message
    assert "there is no 'scores' in it" in refusal("rewards_here:scores")
    assert "limit is int, which cannot be called" in refusal(f"{file}:limit")
    assert "Judge is a class" in refusal(f"{file}:Judge")
    message = refusal(file)
    assert "no function in it" in message
    assert "score" in message


def test_which_names_are_functions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run:1").mkdir()
    names = ["a.py:b", "a.b:c", "a.py", "run:1", "runs/reward", "org/model"]
    assert [is_function_name(name) for name in names] == [True, True, True, False, False, False]


def test_siblings_of_one_name_in_two_folders_stay_apart(tmp_path):
    functions = []
    for value in (1, 2):
        folder = tmp_path / str(value)
        (folder / "helpers").mkdir(parents=True)
        (folder / "helper_of_both.py").write_text(f"VALUE = {value}\n")
        (folder / "helpers" / "__init__.py").write_text("")
        (folder / "helpers" / "inner.py").write_text(f"VALUE = {10 * value}\n")
        (folder / "r.py").write_text(
            "from helper_of_both import VALUE\nfrom helpers import inner\n"
            "def f(completions, **_):\n    return [VALUE + inner.VALUE for _ in completions]\n"
        )
        functions.append(load_function(f"{folder / 'r.py'}:f"))
    assert [function(completions=["x"]) for function in functions] == [[11], [22]]


LATE = "def f(completions, **_):\n    {line}\n    return [{value} for _ in completions]\n"
SIBLINGS = {
    "in the function": ("both.py", LATE.format(line="from both import VALUE", value="VALUE")),
    "at the top and in the function": ("both.py", "import both\n" + LATE.format(line="import both", value="both.VALUE")),
    "in a sibling's function": ("both.py", "from late import value\n" + LATE.format(line="pass", value="value()")),
    "a package's module in the function": (
        "pack/inner.py",
        "import pack\n" + LATE.format(line="import pack.inner", value="pack.inner.VALUE"),
    ),
    "a folder without __init__.py": ("parts/inner.py", "import parts.inner as inner\n" + LATE.format(line="pass", value="inner.VALUE")),
    "in a thread": (
        "both.py",
        "from concurrent.futures import ThreadPoolExecutor\ndef one(_):\n    import both\n    return both.VALUE\n"
        "def f(completions, **_):\n    return list(ThreadPoolExecutor(1).map(one, completions))\n",
    ),
    "with a name of the standard library": ("random.py", "import random\n" + LATE.format(line="pass", value="random.VALUE")),
}  # fmt: skip


@pytest.mark.parametrize(("sibling", "code"), SIBLINGS.values(), ids=SIBLINGS)
def test_each_reward_file_imports_what_is_beside_it(write, sibling, code):
    functions = []
    for value in (1, 2):
        write(f"{value}/pack/__init__.py", "")
        write(f"{value}/late.py", "def value():\n    from both import VALUE\n    return VALUE\n")
        write(f"{value}/{sibling}", f"VALUE = {value}\n")
        functions.append(load_function(write(f"{value}/r.py", code) + ":f"))
    assert [function(completions=["x"]) for function in functions] == [[1], [2]]


def test_a_module_that_importlib_cannot_tell_is_refused(write):
    """Refuse an ambiguous name.

    Python gives `importlib` the first that was imported, or that is on the path: the other file's reward, in silence.
    """
    functions = []
    for value in (1, 2):
        write(f"{value}/told_by_name.py", f"VALUE = {value}\n")
        line = "import importlib; here = importlib.import_module('told_by_name')"
        functions.append(
            load_function(write(f"{value}/r.py", f"{line}\n{LATE.format(line=line, value='here.VALUE')}") + ":f")
        )
        if value == 1:
            assert functions[0](completions=["x"]) == [1]
    assert [sys.modules[function.__module__].here.VALUE for function in functions] == [1, 2]
    for function in functions:
        with pytest.raises(ImportError, match=r"'told_by_name' is in the folders of several reward files: .*/1, .*/2"):
            function(completions=["x"])


def test_a_folder_of_data_hides_no_installed_package(write):
    write("rew/datasets/rows.txt", "")
    write("rew/transformers/notes.txt", "")
    code = (
        "import datasets\ndef f(completions, **_):\n    import transformers\n"
        "    return [float('site-packages' in datasets.__file__ + transformers.__file__)]\n"
    )
    assert load_function(write("rew/r.py", code) + ":f")(completions=["x"]) == [1.0]


def test_functions_of_siblings_of_one_name_can_be_pickled(write):
    for value in (1, 2):
        write(f"{value}/worker.py", f"def one():\n    return {value}\n")
        load_function(write(f"{value}/r.py", "from worker import one\ndef f(): return one\n") + ":f")
    ones = [load_function(f"{write(f'{value}/other.py', 'from worker import one')}:one") for value in (1, 2)]
    assert [pickle.loads(pickle.dumps(one))() for one in ones] == [1, 2]


def test_what_the_program_has_imported_is_not_imported_again(write, monkeypatch):
    folder = Path(write("rew/of_both_sides.py", "VALUE = [1]\n")).parent
    monkeypatch.syspath_prepend(str(folder))
    program = importlib.import_module("of_both_sides")
    name = write("rew/r.py", "from of_both_sides import VALUE\ndef f(): return VALUE\n") + ":f"
    assert load_function(name)() is program.VALUE


def test_a_module_of_the_working_directory_comes_before_the_folders_of_reward_files(write, monkeypatch, tmp_path):
    write("rew/of_two.py", "VALUE = 1\n")
    load_function(write("rew/r.py", LENGTH) + ":score")
    write("of_two.py", "VALUE = 2\n")
    write("here.py", LATE.format(line="from of_two import VALUE", value="VALUE"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", str(tmp_path))])
    assert load_function("here:f")(completions=["x"]) == [2]
