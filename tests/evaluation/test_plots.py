"""The pictures of a run: written, of the promised size, and forgiving about what was logged."""

import struct
import sys

import pytest

from hf_rlhf.errors import InputError
from hf_rlhf.evaluation.plots import DPI, plot_rating_histogram, plot_training

pytest.importorskip("matplotlib")


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def full_row(i):
    row = {
        "iteration": i,
        "episode": 32 * i,
        "eval_reward": 0.1 * i,
        "eval_kl": 0.5 * i,
        "reward": 0.1,
        "reward_std": 0.2,
    }
    keys = """objective/scores objective/kl objective/kl_coef policy/entropy_avg loss/value_avg loss/policy_avg
    val/explained_variance policy/clipfrac_avg policy/approxkl_avg completions/mean_length completions/clipped_ratio"""
    return row | dict.fromkeys(keys.split(), 0.01 * i)


@pytest.mark.parametrize("n", [1, 2, 30, 200])
def test_training_figure(tmp_path, n):
    path = plot_training([full_row(i) for i in range(1, n + 1)], tmp_path / "new" / "curves.png", title="A run")
    assert png_size(path) == (14 * DPI, 8 * DPI)
    assert path.stat().st_size > 20_000


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{}],
        [{"iteration": 1, "reward": 0.3}, {"iteration": 2}],
        [{"objective/kl": None, "loss/value_avg": float("nan"), "policy/entropy_avg": "n/a"}],
        [{"iteration": 1, "completions/clipped_ratio": 0.5}, {"iteration": 2, "eval_kl": 1.0, "reward_std": 0.1}],
    ],
)
def test_missing_keys_do_not_stop_the_figure(tmp_path, rows):
    assert png_size(plot_training(rows, tmp_path / "curves.png")) == (14 * DPI, 8 * DPI)


def panels(rows, tmp_path, monkeypatch):
    """The panels of the training figure by their titles."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: figures.append(figure))
    plot_training(rows, tmp_path / "curves.png")
    return {ax.get_title(loc="left"): ax for ax in figures[0].axes if ax.get_title(loc="left")}


def panel_texts(rows, tmp_path, monkeypatch):
    """The words written inside each panel of the training figure."""
    named = panels(rows, tmp_path, monkeypatch)
    return {title: [text.get_text() for text in ax.texts] for title, ax in named.items()}


def test_the_reward_of_training_is_drawn_beside_that_of_evaluation_and_not_its_score(tmp_path, monkeypatch):
    rows = [{"iteration": i, "reward": 5.0 + i, "objective/scores": 0.1 * i, "eval_reward": 4.0} for i in (1, 2)]
    training, _ = panels(rows, tmp_path, monkeypatch)["Reward"].lines
    assert list(training.get_ydata()) == [6.0, 7.0]


def test_only_panels_without_data_say_not_logged(tmp_path, monkeypatch):
    rows = [{"iteration": 1, "reward": 0.3, "completions/clipped_ratio": 0.5, "objective/kl": None}]
    texts = panel_texts(rows, tmp_path, monkeypatch)
    assert len(texts) == 6
    assert {title for title, words in texts.items() if "not logged" not in words} == {"Reward", "Length of the replies"}


def test_histogram(tmp_path):
    path = plot_rating_histogram([0.1, 0.2, 0.2], [0.7, 0.8, 1.0], tmp_path / "ratings.png")
    assert png_size(path) == (10 * DPI, 4 * DPI)
    assert path.stat().st_size > 8_000


def test_histogram_needs_both_sides(tmp_path):
    with pytest.raises(ValueError, match="0 ratings before"):
        plot_rating_histogram([], [0.5], tmp_path / "ratings.png")


def test_no_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r'pip install "hf-rlhf\[report\]"'):
        plot_training([], tmp_path / "curves.png")


def test_an_explained_variance_below_the_panel_is_marked(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: figures.append(figure))
    plot_training(
        [{"val/explained_variance": value, "loss/value_avg": 1.0} for value in (-7.5, -2.0, 0.5)], tmp_path / "c.png"
    )
    notes = [text.get_text() for ax in figures[0].axes for text in ax.texts]
    assert any("below -1, down to -7.5" in note for note in notes)
