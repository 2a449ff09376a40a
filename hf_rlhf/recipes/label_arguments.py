"""The flags of `hf-rlhf label`."""

from dataclasses import dataclass

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.forms import PAIRWISE
from hf_rlhf.recipes.arguments import flag


@dataclass
class LabelArguments:
    """Tasks, what is asked about them, who answers, and the server of the page."""

    dataset_name: str | None = flag(
        None,
        "Rows to ask about: Hub name, folder, or .jsonl, .json, .csv, .parquet file (also .gz), with prompt and"
        " completions, completion, or chosen and rejected. Omit it to continue with the tasks of the store.",
    )
    dataset_config: str | None = flag(None, "Configuration of a Hub dataset.")
    dataset_split: str = flag("train", "Split to take rows from.")
    skip_bad_rows: int = flag(0, "Skip up to this many unusable rows; one more is an error.")
    limit: int | None = flag(None, "Ask only about the first rows.")
    store: str = flag("feedback.db", "SQLite file of tasks and answers; it is made when it is not there.")
    form: str = flag(
        PAIRWISE,
        "What is asked: pairwise, ranking, rating or correction, or a .json or .yaml file of a form (span and custom"
        " need one).",
    )
    preferences_are_gold: bool = flag(
        False, "Ask rows with chosen and rejected as questions whose right answer is known, to check annotators."
    )
    guidelines: str | None = flag(None, "Text file (.md, .txt) that annotators read first; the store keeps it.")
    annotator: str | None = flag(None, "Name of the one who answers; by default the page asks each person.")
    overlap: int | None = flag(None, "Annotators that answer each task; by default what the store has, or 1.")
    gold_every: int | None = flag(None, "A gold question comes about once in so many tasks; by default 10.")
    stop_when_done: bool = flag(False, "End when nothing is left to ask, instead of waiting for Ctrl+C.")
    host: str = flag("127.0.0.1", "Address to listen on; any other lets others in the network reach the page.")
    port: int = flag(8642, "Port to listen on; 0 takes a free one.")
    open: bool = flag(False, "Open the page in the browser.")
    space: str | None = flag(
        None, "Write a Docker Space with the tasks and the same page into this new folder, instead of serving it."
    )

    def __post_init__(self):
        for name in ("limit", "overlap", "gold_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} is invalid: it must be at least 1. Give a larger one.")
        if not 0 <= self.port <= 65535:
            raise InputError(f"port={self.port} is invalid: ports go from 0 to 65535. Give 0 for a free one.")
        if self.limit is not None and self.dataset_name is None:
            raise InputError("limit is invalid without dataset_name: no rows are read. Give dataset_name, or omit it.")
        if self.space is not None and (self.open or self.stop_when_done):
            raise InputError("space is invalid with open or stop_when_done: nothing is served here. Omit those.")
