"""The command `hf-rlhf`: flags and YAML files to the arguments of a recipe, help, and exit status."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.cli.commands import main

_HOMES = {"main": "hf_rlhf.cli.commands"}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = ["main"]
