"""Adapters: environments that were written for other libraries, as environments of this one."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.environments.adapters.openenv import OpenEnvText
    from hf_rlhf.environments.adapters.trl import from_trl_environment
    from hf_rlhf.environments.adapters.verifiers import from_verifiers, verifiers_rows

_HOMES = {
    "OpenEnvText": "hf_rlhf.environments.adapters.openenv",
    "from_trl_environment": "hf_rlhf.environments.adapters.trl",
    "from_verifiers": "hf_rlhf.environments.adapters.verifiers",
    "verifiers_rows": "hf_rlhf.environments.adapters.verifiers",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = ["OpenEnvText", "from_trl_environment", "from_verifiers", "verifiers_rows"]
