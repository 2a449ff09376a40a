"""The report card that lies beside a reward model: its verdict, and whether it is that of these weights."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_rlhf.checkpoint.manifest import file_digest
from hf_rlhf.errors import InputError
from hf_rlhf.evaluation.report_card.card import CARD_FILE
from hf_rlhf.evaluation.report_card.verdict import CARE, GOOD, REFUSED
from hf_rlhf.models.adapter_files import adapter_folder, hub_folder
from hf_rlhf.rewards.ensemble import ENSEMBLE_FILE
from hf_rlhf.training.trl_setup import MERGED_FOLDER

MISSING, STALE = "missing", "stale"


@dataclass(frozen=True, slots=True)
class CardStatus:
    """State of a reward model's report card: a verdict, `missing` or `stale`; and what to say about it."""

    model: str
    state: str
    words: str

    @property
    def has_verdict(self) -> bool:
        """True if there is a card, of these weights."""
        return self.state not in (MISSING, STALE)

    @property
    def is_good(self) -> bool:
        """True if nothing speaks against the model."""
        return self.state == GOOD

    @property
    def is_usable(self) -> bool:
        """True if the card is one of these weights and does not say "do not use"."""
        return self.state in (GOOD, CARE)


def weights_of(folder: str | os.PathLike) -> dict[str, str]:
    """Return the sha256 digest of each safetensors file of the model in `folder`, by path.

    Its merged form and the members of an ensemble are among them, and the file that says how these are combined.
    """
    folder = Path(folder)
    files = [file for form in (".", MERGED_FOLDER, "member_*") for file in folder.glob(f"{form}/*.safetensors")]
    files += folder.glob(ENSEMBLE_FILE)
    return {file.relative_to(folder).as_posix(): file_digest(file) for file in sorted(files)}


def card_status(name_or_path: str) -> CardStatus:
    """Find the card of a reward model by path or Hub name: in its folder or, of a merged model, in the folder above."""
    found = _find(name_or_path)
    if found is None:
        return CardStatus(
            name_or_path,
            MISSING,
            f"there is no {CARD_FILE} with it, so nothing says how good it is. Make one with: hf-rlhf report-card"
            f" {name_or_path} --dataset_name HELD_OUT_PAIRS",
        )
    folder, weights = found
    card = read_report_card(folder) or {}
    verdict, listed = card["verdict"], card["weights"]
    own = {name: digest for name, digest in weights.items() if not name.startswith(f"{MERGED_FOLDER}/")} or weights
    if changed := sorted(name for name, digest in own.items() if listed.get(name) != digest):
        return CardStatus(
            name_or_path,
            STALE,
            f"its report card was made for other weights ({changed[0]} differs). Make a new one with: hf-rlhf"
            f" report-card {name_or_path} --overwrite true --dataset_name HELD_OUT_PAIRS",
        )
    words = [verdict["headline"], *(f"- {reason['what']} ({reason['figure']})" for reason in verdict["reasons"])]
    return CardStatus(name_or_path, verdict["word"], "\n  ".join(words))


def _find(name_or_path: str) -> tuple[Path, dict[str, str]] | None:
    """Return the folder with the card, and the digests of the model's own files by their paths from there."""
    local = adapter_folder(name_or_path)
    if local == name_or_path:
        local = hub_folder(name_or_path, CARD_FILE, allow_patterns=["*.json", "*.safetensors"]) or name_or_path
    folder = Path(local)
    if (folder / CARD_FILE).is_file():
        return folder, weights_of(folder)
    above = folder.absolute().parent
    if folder.absolute().name == MERGED_FOLDER and (above / CARD_FILE).is_file():
        return above, {f"{MERGED_FOLDER}/{name}": digest for name, digest in weights_of(folder).items()}
    return None


def read_report_card(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Return the content of the report card in `folder`; None without one.

    Raises `InputError` for a file that is none.
    """
    file = Path(folder) / CARD_FILE
    if not file.is_file():
        return None
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        if card["verdict"]["word"] not in (GOOD, CARE, REFUSED):
            raise KeyError("verdict")
        [(reason["what"], reason["figure"]) for reason in card["verdict"]["reasons"]]
        dict(card["weights"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is invalid: it is no report card ({type(error).__name__}: {error}). Remove it, or make a new one"
            " with hf-rlhf report-card."
        ) from error
    return card
