"""Servers that take and give JSON: their addresses, and one client for all of them."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.endpoints.client import Endpoint, EndpointError, Unusable

_HOMES = {
    "Endpoint": "hf_rlhf.endpoints.client",
    "EndpointError": "hf_rlhf.endpoints.client",
    "Unusable": "hf_rlhf.endpoints.client",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = ["Endpoint", "EndpointError", "Unusable"]
