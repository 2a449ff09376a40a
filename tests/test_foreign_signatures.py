"""Private methods of other libraries that this project overrides or calls, with the signatures that it was written for.

A release that changes one of them fails here, with its name, and not in somebody's run. After a look at what changed,
`python tests/test_foreign_signatures.py` writes the signatures of the installed versions.
"""

import ast
import importlib
import inspect
import json
import pkgutil
from pathlib import Path

import hf_rlhf

SIGNATURES = Path(__file__).with_name("foreign_signatures.json")
ATTRIBUTES = {  # private attributes that are read or set, and where another library defines them
    "peft.tuners.tuners_utils": ["_active_adapter", "_disable_adapters", "_get_available_adapters"],
    "peft.utils.other": ["_active_adapter", "_adapters", "_disable_adapters"],
    "torch.nn.modules.module": ["_parameters", "_buffers", "_compiled_call_impl"],
    "transformers.configuration_utils": ["_name_or_path", "_attn_implementation"],
}


def own_classes():
    """Yield each class that this project defines."""
    for module in pkgutil.walk_packages(hf_rlhf.__path__, "hf_rlhf."):
        for item in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(item) and item.__module__ == module.name:
                yield item


def private_names(own):
    """Return the private methods that a class defines, and those that its methods call on `self` or `super()`."""
    try:
        tree = ast.parse(inspect.getsource(own).lstrip())
    except (OSError, IndentationError):
        return set()
    names = {node.name for node in tree.body[0].body if isinstance(node, ast.FunctionDef)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {name for name in names if name.startswith("_") and not name.endswith("__")}


def signatures():
    """Return the signature of each foreign private method that is overridden or called, by its full name."""
    found = {}
    for own in own_classes():
        foreign = [base for base in own.__mro__ if not base.__module__.startswith(("hf_rlhf", "builtins"))]
        for name in private_names(own):
            for base in foreign:
                method = vars(base).get(name)
                if inspect.isfunction(method):
                    parameters = [
                        str(each.replace(annotation=each.empty))
                        for each in inspect.signature(method).parameters.values()
                    ]
                    found[f"{base.__module__}.{base.__qualname__}.{name}"] = ", ".join(parameters)
                    break
    return dict(sorted(found.items()))


def test_the_private_methods_of_others_are_those_that_this_project_was_written_for():
    written_for, now = json.loads(SIGNATURES.read_text()), signatures()
    assert len(now) > 15
    changed = [
        f"{name}: written for ({written_for.get(name, 'nothing')}), is ({now.get(name, 'gone')})"
        for name in sorted(written_for.keys() | now.keys())
        if written_for.get(name) != now.get(name)
    ]
    assert not changed, "\n".join(changed)


def test_the_private_attributes_of_others_are_still_theirs():
    for module, names in ATTRIBUTES.items():
        source = inspect.getsource(importlib.import_module(module))
        assert [name for name in names if name not in source] == [], module


if __name__ == "__main__":
    SIGNATURES.write_text(json.dumps(signatures(), indent=2) + "\n")
