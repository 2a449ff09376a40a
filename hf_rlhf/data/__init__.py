"""Rows in: files and Hub sets become checked prompts, preference pairs and padded batches.

load_rows("pairs.jsonl.gz")      -> datasets.Dataset, or one InputError that names the file and line
prepare_preferences(dataset)     -> pairs in the TRL format, and a report of what was dropped and why
prepare_prompts(dataset)         -> prompts with their token ids, made once; a stream row by row
prepare_texts(dataset)           -> token ids for the language-model loss of PPO-ptx
pad_sequences(sequences)         -> (B, L)
"""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.data.files import load_rows
    from hf_rlhf.data.preferences import PreferenceReport, PreparedPreferences, check_no_leak, prepare_preferences
    from hf_rlhf.data.prompts import prepare_prompts
    from hf_rlhf.data.rows import require_rows
    from hf_rlhf.data.texts import prepare_texts
    from hf_rlhf.ops.padding import lengths_to_mask, pad_sequences

_HOMES = {
    "PreferenceReport": "hf_rlhf.data.preferences",
    "PreparedPreferences": "hf_rlhf.data.preferences",
    "check_no_leak": "hf_rlhf.data.preferences",
    "lengths_to_mask": "hf_rlhf.ops.padding",
    "load_rows": "hf_rlhf.data.files",
    "pad_sequences": "hf_rlhf.ops.padding",
    "prepare_preferences": "hf_rlhf.data.preferences",
    "prepare_prompts": "hf_rlhf.data.prompts",
    "prepare_texts": "hf_rlhf.data.texts",
    "require_rows": "hf_rlhf.data.rows",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = [
    "PreferenceReport",
    "PreparedPreferences",
    "check_no_leak",
    "lengths_to_mask",
    "load_rows",
    "pad_sequences",
    "prepare_preferences",
    "prepare_prompts",
    "prepare_texts",
    "require_rows",
]
