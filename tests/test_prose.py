"""Docstrings and comments follow the project's rules of English, and lines fit into 120 columns."""

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[1]
FOLDERS = ("hf_rlhf", "recipes", "benchmarks", "docs", "tests")
COLUMNS = 120
OPENING = re.compile(r"\s*`*(What|Whether|How|Where|As|Those|Of)\b")
IDIOMS = {
    "nobody": "name who, or use the passive",
    "(go|goes|going|went) on": "resume, continue",
    "(leave|leaves|leaving|left) out": "skip, omit",
    "set aside": "skip",
    "another way": "fall back",
    "the user's own": "the user's",
    "optimizer rests": "the optimizer skips",
    "data sets?": "dataset",
    "(token|normal|renormal|optim|maxim|quant|dequant)is(e|es|ed|ing|ation)": "spell it with a z",
}
EXEMPT = re.compile(r"https?://|# fmt: skip$")
VERBS = set(
    re.findall(
        r"\S+",
        """
        Accept Add Answer Append Apply Ask Assemble Assign Attach Average Begin Build Call Cast Check Choose Clear Clip Clone Close
        Collect Combine Commit Compare Compile Complete Compute Concatenate Convert Copy Count Create Cut Deal Decide Decode
        Decorate Delete Describe Detect Divide Do Draw Drop Encode End Enter Escape Estimate Evaluate Exchange Exclude Exit
        Explain Export Extend Extract Fail Fill Filter Find Fine-tune Finish Flush Forget Free Gather Generate Get Give Group
        Guard Hand Hide Hold Import Initialize Insert Inspect Iterate Join Judge Keep Launch Lay Leave Let Limit List Load
        Log Look Make Map Mark Mask Match Measure Merge Move Name Normalize Note Number Open Order Pack Pad Parse Pass Patch
        Penalize Pick Place Plan Predict Prepare Print Push Put Quote Raise Read Recompute Record Reduce Refresh Refuse Release
        Remember Remove Rename Render Replace Report Require Reset Reshape Resize Resolve Restart Restore Resume Return Run
        Sample Save Say Scale Score Search Seed Select Send Serve Set Shard Share Show Shuffle Silence Skip Sort Split Start Stop
        Store Stream Strip Sum Suspend Swap Switch Take Tell Test Time Tokenize Train Trim Truncate Try Turn Undo Unwrap
        Update Upload Use Verify Wait Walk Warn Weigh Whiten Wrap Write Yield
        """,
    )
)
"""Verbs in the imperative that begin the docstring of a function; a new one is added here."""

OVERRIDE = "Like"
"""First word of a method's docstring that names the method it overrides."""

EXEMPT_FROM_VERBS = ("tests/",)
"""Folders whose functions may begin otherwise: a test states a fact."""

PRAGMA = re.compile(r"\s+# pyright: ignore\S*$")  # ruff format counts without it, too


class Source(NamedTuple):
    """Python file, with the strings in it that are statements: docstrings, and those below a constant or a field."""

    text: str
    tree: ast.Module
    docstrings: list[ast.Constant]


@functools.cache
def sources() -> dict[str, Source]:
    """Return every Python file, by its path in the repository."""
    files = sorted(file for folder in FOLDERS for file in (REPOSITORY / folder).rglob("*.py"))
    texts = {str(file.relative_to(REPOSITORY)): file.read_text(encoding="utf-8") for file in files}
    assert len(texts) > 100
    trees = {name: ast.parse(text) for name, text in texts.items()}
    return {name: Source(text, trees[name], list(docstrings(trees[name]))) for name, text in texts.items()}


def docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield the strings that are statements."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for each in body if isinstance(body, list) else ():
            if (
                isinstance(each, ast.Expr)
                and isinstance(each.value, ast.Constant)
                and isinstance(each.value.value, str)
            ):
                yield each.value


def comments(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of every comment."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def openings() -> list[str]:
    """Return the docstrings that open with a question word or a relation."""
    return [
        f"{name}:{each.lineno}: {str(each.value).split()[0]} ..."
        for name, source in sources().items()
        for each in source.docstrings
        if OPENING.match(str(each.value))
    ]


def is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a method is read like an attribute, so that a noun describes it."""
    return any(re.search(r"(^|[._])(property|setter)$", ast.unparse(decorator)) for decorator in node.decorator_list)


def functions_without_a_verb() -> list[str]:
    """Return the functions whose docstring begins with another word than a verb in the imperative."""
    found = []
    for name, source in sources().items():
        if name.startswith(EXEMPT_FROM_VERBS):
            continue
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_property(node):
                continue
            first = (ast.get_docstring(node) or OVERRIDE).split()[0].rstrip(".,:;")
            if first not in VERBS and first != OVERRIDE:
                found.append(f"{name}:{node.lineno}: {node.name} begins with {first!r}")
    return found


def idioms() -> list[str]:
    """Return the idioms in docstrings and comments, with what to write instead."""
    instead = {re.compile(rf"\b{idiom}\b".replace(" ", r"\s+"), re.IGNORECASE): IDIOMS[idiom] for idiom in IDIOMS}
    any_of_them = re.compile("|".join(idiom.pattern for idiom in instead), re.IGNORECASE)
    found = []
    for name, source in sources().items():
        if not any_of_them.search(source.text):
            continue
        lines = source.text.splitlines()
        written = [(each.lineno, "\n".join(lines[each.lineno - 1 : each.end_lineno])) for each in source.docstrings]
        for line, words in [*written, *comments(source.text)]:
            for idiom, better in instead.items():
                found += [
                    f"{name}:{line + words.count(chr(10), 0, match.start())}: {match[0]!r} (write: {better})"
                    for match in idiom.finditer(words)
                ]
    return found


def exempt(source: Source) -> set[int]:
    """Return the lines of statements that end in `# fmt: skip`, and of long strings that are no docstrings."""
    lines, exempt = source.text.splitlines(), set()
    strings_of_prose = {id(each) for each in source.docstrings}
    for node in ast.walk(source.tree):
        first, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", 0)
        compound = isinstance(getattr(node, "body", None), list)
        if isinstance(node, ast.stmt) and not compound and lines[last - 1].endswith("# fmt: skip"):
            exempt |= set(range(first, last + 1))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in strings_of_prose:
            exempt |= set(range(first, last + 1)) if '"""' in lines[first - 1] else set()
    return exempt


def long_lines() -> list[str]:
    """Return the lines of the package and the recipes that are too long."""
    found = []
    for name, source in sources().items():
        if not name.startswith(("hf_rlhf/", "recipes/")):
            continue
        long = [
            (number, line)
            for number, line in enumerate(source.text.splitlines(), start=1)
            if len(PRAGMA.sub("", line)) > COLUMNS and not EXEMPT.search(line)
        ]
        skipped = exempt(source) if long else set()
        found += [f"{name}:{number}: {len(line)} columns" for number, line in long if number not in skipped]
    return found


def test_no_docstring_opens_with_a_question_word_or_a_relation():
    found = openings()
    assert not found, "begin with a verb (functions) or a noun (all else):\n" + "\n".join(found)


def test_the_docstring_of_a_function_begins_with_a_verb_in_the_imperative():
    found = functions_without_a_verb()
    assert not found, "say what the function does (new verbs go into VERBS):\n" + "\n".join(found)


def test_docstrings_and_comments_use_the_words_of_the_field():
    found = idioms()
    assert not found, "\n".join(found)


def test_lines_of_the_package_fit_into_120_columns():
    found = long_lines()
    assert not found, "\n".join(found)
