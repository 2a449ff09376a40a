"""The page on which people answer: a Starlette server on the store, and one static page without a build step."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.feedback.page.desk import Desk
    from hf_rlhf.feedback.page.serve import Server
    from hf_rlhf.feedback.page.server import make_app

_HOMES = {
    "Desk": "hf_rlhf.feedback.page.desk",
    "Server": "hf_rlhf.feedback.page.serve",
    "make_app": "hf_rlhf.feedback.page.server",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = ["Desk", "Server", "make_app"]
