"""The files of checkpoints: written whole, verified, rotated, and one run to a folder."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.checkpoint.manifest import DamagedCheckpoint
    from hf_rlhf.checkpoint.resume import VerifiedCheckpoint, resume_point

_HOMES = {
    "DamagedCheckpoint": "hf_rlhf.checkpoint.manifest",
    "VerifiedCheckpoint": "hf_rlhf.checkpoint.resume",
    "resume_point": "hf_rlhf.checkpoint.resume",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = ["DamagedCheckpoint", "VerifiedCheckpoint", "resume_point"]
