"""The quickstart: a small language model learns from feedback, end to end, on this machine."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.quickstart.arguments import QuickstartArguments
    from hf_rlhf.quickstart.run import run_quickstart

_HOMES = {
    "QuickstartArguments": "hf_rlhf.quickstart.arguments",
    "run_quickstart": "hf_rlhf.quickstart.run",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = ["QuickstartArguments", "run_quickstart"]
