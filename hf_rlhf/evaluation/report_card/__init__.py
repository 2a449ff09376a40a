"""Report card of a reward: what it learned, beside what simple rules would get, and a verdict in words."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.evaluation.report_card.card import ReportCard, make_report_card
    from hf_rlhf.evaluation.report_card.guard import card_status, read_report_card, weights_of

_HOMES = {
    "ReportCard": "hf_rlhf.evaluation.report_card.card",
    "card_status": "hf_rlhf.evaluation.report_card.guard",
    "make_report_card": "hf_rlhf.evaluation.report_card.card",
    "read_report_card": "hf_rlhf.evaluation.report_card.guard",
    "weights_of": "hf_rlhf.evaluation.report_card.guard",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = ["ReportCard", "card_status", "make_report_card", "read_report_card", "weights_of"]
