"""What the documentation says is what the code does."""

import importlib.util
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def test_metrics_page_is_generated_from_the_definitions():
    spec = importlib.util.spec_from_file_location("make_metrics", REPOSITORY / "docs" / "make_metrics.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == module.page(), "run: python docs/make_metrics.py"


def test_links_of_the_readme_lead_somewhere():
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (REPOSITORY / document).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("http") or (REPOSITORY / target).exists(), f"{document}: {target}"


def test_layers_in_contributing_are_those_of_the_test():
    from test_layers import LAYERS

    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    positions = [text.index(f"`{layer}`") for layer in LAYERS]
    assert positions == sorted(positions)


def test_python_example_of_the_readme_runs(tmp_path, monkeypatch):
    """The first Python block, on a tiny model."""
    from tiny import make_model, make_tokenizer

    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL).group(
        1
    )
    block = block.replace("embedded:smollm2-135m-instruct", str(tmp_path / "model"))
    block = block.replace('output_dir="runs/brevity"', 'output_dir="runs/brevity", max_prompt_length=16, use_cpu=True')
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert (tmp_path / "runs" / "brevity" / "adapter_model.safetensors").is_file()
