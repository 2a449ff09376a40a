"""The flags of `hf-rlhf feedback import`, `export`, `report` and `push`."""

from dataclasses import dataclass

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.conversion.rules import SMALL_MARGINS, ConversionRules
from hf_rlhf.feedback.forms import PAIRWISE
from hf_rlhf.feedback.store import MODEL, PERSON, RULE
from hf_rlhf.recipes.arguments import flag

AUTO, ROWS, ARGILLA, LABEL_STUDIO, EVENTS = "auto", "rows", "argilla", "label_studio", "events"


@dataclass
class StoreArguments:
    """The file of the answers."""

    store: str = flag("feedback.db", "SQLite file of tasks and answers.")


@dataclass
class ImportArguments:
    """The rows or records to import."""

    dataset_name: str | None = flag(
        None, "Rows or records: Hub name, folder, or .jsonl, .json, .csv, .parquet file (also .gz)."
    )
    dataset_config: str | None = flag(None, "Configuration of a Hub dataset.")
    dataset_split: str = flag("train", "Split to import.")
    skip_bad_rows: int = flag(0, "Skip up to this many unusable rows; one more is an error.")
    format: str = flag(
        AUTO,
        "rows (tasks), argilla or label_studio (tasks and answers), or events (answers to tasks that the store has);"
        " auto tells it by the columns.",
    )
    form: str = flag(
        PAIRWISE,
        "What is asked about rows: pairwise, ranking, rating or correction, or a .json or .yaml file of a form.",
    )
    preferences_are_gold: bool = flag(
        False, "Ask rows with chosen and rejected as questions whose right answer is known, to check annotators."
    )
    prompt_field: str | None = flag(None, "Field of a record with the prompt; by default told by its name.")
    completion_fields: list[str] | None = flag(
        None, "Fields of a record with the completions, in their order; by default told by their names."
    )
    model_answers: bool = flag(
        False, "Import the suggestions (Argilla) or predictions (Label Studio) of models as their answers too."
    )

    def __post_init__(self):
        if not self.dataset_name:
            raise InputError("dataset_name is missing. Name the rows or records to import.")
        formats = (AUTO, ROWS, ARGILLA, LABEL_STUDIO, EVENTS)
        if self.format not in formats:
            raise InputError(f"format={self.format} is invalid: it must be one of {', '.join(formats)}. Change it.")


@dataclass
class RuleArguments:
    """The rules by which answers become rows."""

    margins: list[float] | None = flag(
        None, "Margins of the strengths 1, 2 and 3 of a preference; by default 1/3, 2/3 and 1."
    )
    use_margins: bool = flag(True, "Write the column margin of preferences.")
    min_agreement: float = flag(0.0, "Omit rows on which a smaller share of the annotators agrees.")
    min_rating_difference: float = flag(1.0, "Two ratings that differ by less are a tie; in points of their scale.")
    standardize_ratings: bool = flag(False, "Write ratings as z-scores over all ratings of their annotator.")
    include_flagged: bool = flag(False, "Use the answers to tasks that somebody flagged.")
    annotator_kinds: list[str] | None = flag(None, "Whose answers are used: person, rule, model; by default all.")
    exclude_annotators: list[str] | None = flag(None, "Names of annotators whose answers are not used.")
    separator: str = flag(
        " ", "Text between a prompt and a completion that are text and have no whitespace where they meet."
    )

    def __post_init__(self):
        if self.margins is not None and not self.use_margins:
            raise InputError("margins is invalid without use_margins: no margin is written. Omit one of them.")
        self.rules()

    def rules(self) -> ConversionRules:
        """Return the rules that the flags say. Raises `InputError` for wrong ones."""
        margins = tuple(self.margins or SMALL_MARGINS) if self.use_margins else None
        return ConversionRules(
            margins=margins,
            min_rating_difference=self.min_rating_difference,
            min_agreement=self.min_agreement,
            include_flagged=self.include_flagged,
            standardize_ratings=self.standardize_ratings,
            separator=self.separator,
            annotator_kinds=tuple(self.annotator_kinds or (PERSON, RULE, MODEL)),
            excluded_annotators=tuple(self.exclude_annotators or ()),
        )


@dataclass
class RowsArguments(RuleArguments):
    """The rules, and the rows that are held out."""

    eval_fraction: float = flag(
        0.0, "Write the rows of about this share of the prompts to files of their own, such as preferences_eval.jsonl."
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.eval_fraction < 1:
            raise InputError(f"eval_fraction={self.eval_fraction} is invalid: it is a share below 1. Give 0.1, say.")


@dataclass
class ExportArguments(RowsArguments):
    """The kind of export, and its folder."""

    output_dir: str = flag("feedback", "Folder for the files.")
    to: str = flag(ROWS, "rows to train on, or all tasks and answers as a file of argilla or label_studio.")
    anonymous: bool = flag(False, "Write `person 1` and so on instead of names, and not the log.")

    def __post_init__(self):
        super().__post_init__()
        if self.to not in (ROWS, ARGILLA, LABEL_STUDIO):
            raise InputError(f"to={self.to} is invalid: it must be {ROWS}, {ARGILLA} or {LABEL_STUDIO}. Change it.")
        if self.to != ROWS and self.anonymous:
            raise InputError(
                f"anonymous is invalid with to={self.to}: such a file names its annotators. Omit one of them."
            )


@dataclass
class ReportArguments(RuleArguments):
    """The place of the page."""

    output_dir: str = flag(".", "Folder for agreement.html.")


@dataclass
class PushArguments(RowsArguments):
    """The dataset on the Hub."""

    hub_dataset_id: str | None = flag(None, "Name of the dataset, as owner/name.")
    output_dir: str = flag("feedback", "Folder in which the files are written before they are pushed.")
    private: bool | None = flag(None, "Make a new dataset private.")
    license: str | None = flag(None, "Licence of the dataset, for its card.")
    anonymous: bool = flag(True, "Write `person 1` and so on instead of names, and not the log.")

    def __post_init__(self):
        super().__post_init__()
        if not self.hub_dataset_id:
            raise InputError("hub_dataset_id is missing. Name the dataset, as owner/name.")
