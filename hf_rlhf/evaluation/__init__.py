"""Evaluation of a run: measures with their uncertainty, plots and the report page."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.evaluation.best_completion import best_of_n
    from hf_rlhf.evaluation.length_control import LengthControlled, length_controlled_win_rate
    from hf_rlhf.evaluation.metrics import WinRate, wilson_interval, win_rate
    from hf_rlhf.evaluation.plots import plot_training
    from hf_rlhf.evaluation.report import write_report
    from hf_rlhf.evaluation.report_card.card import ReportCard, make_report_card
    from hf_rlhf.evaluation.reward_model import Pairs, reward_accuracy
    from hf_rlhf.evaluation.text_measures import TextMeasures, measure_texts
    from hf_rlhf.evaluation.trajectories.page import trajectory_page
    from hf_rlhf.evaluation.trajectories.reading import read_trajectories

_HOMES = {
    "LengthControlled": "hf_rlhf.evaluation.length_control",
    "Pairs": "hf_rlhf.evaluation.reward_model",
    "ReportCard": "hf_rlhf.evaluation.report_card.card",
    "TextMeasures": "hf_rlhf.evaluation.text_measures",
    "WinRate": "hf_rlhf.evaluation.metrics",
    "best_of_n": "hf_rlhf.evaluation.best_completion",
    "length_controlled_win_rate": "hf_rlhf.evaluation.length_control",
    "make_report_card": "hf_rlhf.evaluation.report_card.card",
    "measure_texts": "hf_rlhf.evaluation.text_measures",
    "plot_training": "hf_rlhf.evaluation.plots",
    "read_trajectories": "hf_rlhf.evaluation.trajectories.reading",
    "reward_accuracy": "hf_rlhf.evaluation.reward_model",
    "trajectory_page": "hf_rlhf.evaluation.trajectories.page",
    "wilson_interval": "hf_rlhf.evaluation.metrics",
    "win_rate": "hf_rlhf.evaluation.metrics",
    "write_report": "hf_rlhf.evaluation.report",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = [
    "LengthControlled",
    "Pairs",
    "ReportCard",
    "TextMeasures",
    "WinRate",
    "best_of_n",
    "length_controlled_win_rate",
    "make_report_card",
    "measure_texts",
    "plot_training",
    "read_trajectories",
    "reward_accuracy",
    "trajectory_page",
    "wilson_interval",
    "win_rate",
    "write_report",
]
