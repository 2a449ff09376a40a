"""Flags that transformers, trl or peft refuse, or take in silence, end in one message before anything is written."""

import json

import pytest
from datasets import Dataset
from safetensors.torch import load_file
from tiny import CHAT_TEMPLATE
from tiny_data import PPO_FLAGS, conversational_pairs, prompt_rows
from transformers.utils import is_liger_kernel_available

from hf_rlhf.cli import main
from hf_rlhf.cli.parsing import parse_arguments
from hf_rlhf.errors import InputError
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.recipes.arguments import ModelArguments, PPOArguments, RewardTrainingArguments, SFTTrainingArguments

PPO = [PPOArguments, PPOConfig, ModelArguments]
MARKED = CHAT_TEMPLATE.replace(
    "<|im_start|> {{ message['role'] }} {{ message['content'] }} <|im_end|> ",
    "<|im_start|> {{ message['role'] }} {% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}"
    " <|im_end|> {% endgeneration %}{% else %}{{ message['content'] }} <|im_end|> {% endif %}",
)
assert MARKED != CHAT_TEMPLATE


def demonstrations(count=16):
    return [{"messages": [*row["prompt"], {"role": "assistant", "content": "happy"}]} for row in prompt_rows(count)]


@pytest.fixture
def stage(write_rows, flags):
    """The command line of a stage with good rows."""

    def command(name):
        rows = {"sft": demonstrations, "reward": conversational_pairs, "ppo": prompt_rows}[name]()
        extra = [*PPO_FLAGS, "--reward_funcs", "tiny:happy_reward"] if name == "ppo" else ["--max_steps", "2"]
        return [name, "--dataset_name", write_rows(rows, f"{name}.jsonl"), *flags, *extra]

    return command


ALL = ("sft", "reward", "ppo")
WRONG = [
    (ALL, "--lora_r 0", "lora_r=0 is invalid"),
    (ALL, "--lora_alpha 0", "lora_alpha=0 is invalid"),
    (ALL, "--lora_dropout 1.5", "lora_dropout=1.5 is invalid"),
    (ALL, "--lora_task_type SEQ", "lora_task_type=SEQ is invalid"),
    (ALL, "--lora_target_modules q_proj,v_prj", "Did you mean v_proj?"),
    (ALL, "--lora_target_modules all-linear lm_head", "all-linear alone"),
    (ALL, "--lora_layers half", "lora_layers=half is invalid: it must be all, a number"),
    (ALL, "--lora_layers 99", "lora_layers=99 is invalid: the model has"),
    (ALL, "--use_peft false --lora_layers 1", "hf-rlhf ppo has num_layers_unfrozen"),
    (ALL, "--lora_modules_to_save lm_haed", "lora_modules_to_save=lm_haed is invalid"),
    (ALL, "--optim adamw_8bit", "pip install -U bitsandbytes"),
    (ALL, "--optim galore_adamw --optim_target_modules q_proj", "GaLore"),
    (ALL, "--optim_args beta", "optim_args=beta"),
    (ALL, "--adam_beta1 2", "adam_beta1=2.0"),
    (ALL, "--lr_scheduler_type cosine_with_min_lr", "lr_scheduler_type=cosine_with_min_lr is invalid"),
    (ALL, '--lr_scheduler_kwargs {"a":1}', "lr_scheduler_kwargs={'a': 1} is invalid"),
    (ALL, "--report_to tensorbord", "Did you mean tensorboard?"),
    (ALL, "--per_device_train_batch_size 0", "per_device_train_batch_size=0"),
    (ALL, "--load_best_model_at_end true", "nothing is evaluated"),
    (
        ALL,
        "--load_best_model_at_end true --eval_strategy steps --eval_steps 2 --save_strategy steps --save_steps 4",
        "the best evaluation may have none. Set save_steps to 2.",
    ),
    (ALL, "--dataloader_prefetch_factor 2", "refetch"),
    (ALL, "--load_in_4bit true --bnb_4bit_quant_storage foo", "bnb_4bit_quant_storage=foo is invalid"),
    (ALL, "--torch_compile_backend foo", "torch_compile_backend=foo is invalid"),
    (("sft", "reward"), "--neftune_noise_alpha -1", "neftune_noise_alpha=-1.0 is invalid"),
    (("ppo",), "--num_layers_unfrozen 1", "num_layers_unfrozen=1 is invalid with LoRA"),
    (("ppo",), "--num_layers_unfrozen 99 --use_peft false", "num_layers_unfrozen=99 is invalid: the model has"),
    (("ppo",), "--num_layers_unfrozen 0 --use_peft false", "num_layers_unfrozen=0 is invalid: it must be at least 1"),
    (("ppo",), "--entropy_coef -1", "entropy_coef=-1.0 is invalid: it must be 0 or above"),
    (("ppo",), "--length_penalty nan", "length_penalty=nan is invalid"),
    (("ppo",), "--neftune_noise_alpha 5", "neftune_noise_alpha=5.0 is invalid: it must be omitted"),
    (("sft", "reward"), "--eos_token <EOS_TOKEN>", "eos_token=<EOS_TOKEN> is invalid"),
    (("sft", "reward"), "--pad_token <P>", "Its special tokens are"),
    (("sft",), "--assistant_only_loss true", "{% generation %}"),
    (("sft",), "--completion_only_loss true", "Set assistant_only_loss to true"),
    (("sft",), "--padding_free true", "padding_free=True"),
]


@pytest.mark.parametrize(("name", "wrong", "words"), [(s, wrong, words) for ss, wrong, words in WRONG for s in ss])
def test_one_message_before_anything_is_written(failing, stage, name, wrong, words):
    assert words in failing(*stage(name), *wrong.split())


@pytest.mark.skipif(is_liger_kernel_available(), reason="Liger is here")
@pytest.mark.parametrize("name", ["sft", "reward"])
def test_a_package_of_kernels_that_is_missing(failing, stage, name):
    assert "pip install liger-kernel" in failing(*stage(name), "--use_liger_kernel", "true")


def test_a_plan_refuses_what_a_run_would(failing, stage):
    argv = ["plan", *stage("ppo")[1:]]
    assert "lora_target_modules=c_attn is invalid" in failing(*argv, "--lora_target_modules", "c_attn")
    assert "lora_layers=99 is invalid" in failing(*argv, "--lora_layers", "99")
    assert "(says peft)" in failing(*argv, "--lora_target_parameters", "q_proj.weight")


@pytest.mark.parametrize(
    ("row", "wrong", "words"),
    [
        ({"text": "a cat sat"}, "--completion_only_loss", "Omit it"),
        ({"text": "a cat sat"}, "--assistant_only_loss", "are text, not messages"),
        ({"prompt": "a cat", "completion": " sat"}, "--assistant_only_loss", "are text, not messages"),
    ],
)
def test_losses_that_other_rows_cannot_serve(failing, flags, write_rows, row, wrong, words):
    """`hf-rlhf data sft` says it too, and so do the evaluation rows."""
    file, good = write_rows([row] * 8), write_rows(demonstrations(), "good.jsonl")
    assert words in failing("sft", "--dataset_name", file, *flags, wrong, "true")
    assert words in failing("data", "sft", "--dataset_name", file, *flags, wrong, "true")
    if "text" in row:
        flags = [*flags, "--dataset_text_field", "body"]
        assert "dataset_text_field=body" in failing("sft", "--dataset_name", file, *flags)
        assert "dataset_text_field=body" in failing("sft", "--dataset_name", good, "--eval_dataset_name", file, *flags)


def test_a_marked_template_trains_the_assistant_alone(stage, tmp_path, monkeypatch):
    """Count the last two tokens of `<|im_start|> assistant happy <|im_end|>`; the report is of the same tokens."""
    from hf_rlhf.training.trl_trainers import SFTTrainer

    trained = []
    monkeypatch.setattr(SFTTrainer, "train", lambda self, **_: trained.extend(self.train_dataset["labels"]))
    template = tmp_path / "marked.jinja"
    template.write_text(MARKED, encoding="utf-8")
    assert main([*stage("sft"), "--assistant_only_loss", "true", "--chat_template_path", str(template)]) == 0
    assert [[label for label in labels if label != -100] for labels in trained] == [[17, 3]] * 16


def test_named_tokens_are_those_of_the_tokenizer(stage, flags, write_rows, tmp_path):
    """The end token is the one that is saved, and that the report counts: a text that ends with it gets no other."""
    file = write_rows([{"text": "a cat <|im_start|>"}] * 8)
    report = ["--report_folder", str(tmp_path), "--eos_token", "<|im_start|>"]
    assert main(["data", "sft", "--dataset_name", file, *flags, *report]) == 0
    (lengths,) = json.loads((tmp_path / "data_report.json").read_text(encoding="utf-8"))["sets"][0]["lengths"]
    assert lengths["maximum"] == 3
    assert main([*stage("sft"), "--eos_token", "<|im_start|>", "--pad_token", "<unk>"]) == 0
    saved = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert (saved["eos_token"], saved["pad_token"]) == ("<|im_start|>", "<unk>")


def lists_of(argv, tmp_path, yaml=""):
    file = tmp_path / "lists.yaml"
    file.write_text(yaml or "{}", encoding="utf-8")
    return parse_arguments(PPO, ["--config", str(file), *argv, "--use_cpu", "true"], "test")


LISTS = [
    ("lora_target_modules", 2, ["q_proj", "v_proj"]),
    ("lora_modules_to_save", 2, ["q_proj", "v_proj"]),
    ("lora_target_parameters", 2, ["q_proj", "v_proj"]),
    ("reward_funcs", 0, ["a.py:b", "org/model"]),
    ("report_to", 1, ["tensorboard", "wandb"]),
    ("label_names", 1, ["a", "b"]),
    ("debug", 1, ["underflow_overflow", "tpu_metrics_debug"]),
    ("optim_target_modules", 1, ["attn", "mlp"]),
    ("reward_weights", 1, [0.5, -1.0]),
    ("stop_token_ids", 1, [3, 5]),
]


@pytest.mark.parametrize(("name", "place", "items"), LISTS)
def test_a_list_is_written_in_any_way(tmp_path, name, place, items):
    words = [str(item) for item in items]
    for argv in (["--" + name, *words], ["--" + name, ",".join(words)], [f"--{name}={','.join(words)}"],
                 ["--" + name.replace("_", "-"), f"{words[0]},", words[1]]):  # fmt: skip
        assert getattr(lists_of(argv, tmp_path)[place], name) == items
    for written in (f"[{', '.join(words)}]", ",".join(words), ", ".join(words), json.dumps(words)):
        assert getattr(lists_of([], tmp_path, f"{name}: {written}\n")[place], name) == items


def test_a_path_with_a_comma_stays_whole(tmp_path):
    file = tmp_path / "run,v2.py"
    file.write_text("def good(completions, **_): return [0.0] * len(completions)\n")
    for argv, config in ((["--reward_funcs", f"{file}:good"], ""), ([], "reward_funcs: ['/not/there,v2.py:good']\n")):
        expected = [f"{file}:good"] if argv else ["/not/there,v2.py:good"]
        assert lists_of(argv, tmp_path, config)[0].reward_funcs == expected


def test_words_that_are_no_lists(tmp_path):
    """A word that stands for several, a regular expression, a text with a comma."""
    model = lists_of(["--lora_target_modules", "all-linear"], tmp_path)[2]
    assert model.lora_target_modules == "all-linear"
    assert lists_of([], tmp_path, "lora_target_modules: all-linear\n")[2].lora_target_modules == "all-linear"
    assert lists_of(["--lora_target_modules", "q_proj"], tmp_path)[2].lora_target_modules == ["q_proj"]
    pattern = r".*\.(q|v){1,2}_proj"
    assert lists_of(["--lora_target_modules", pattern], tmp_path)[2].lora_target_modules == pattern
    assert lists_of(["--optim_target_modules", "all-linear"], tmp_path)[1].optim_target_modules == "all-linear"
    assert lists_of(["--stop_strings", "a,b", "c"], tmp_path)[1].stop_strings == ["a,b", "c"]
    assert lists_of([], tmp_path, "stop_strings: a, b\n")[1].stop_strings == ["a, b"]
    assert lists_of(["--report_to", "none"], tmp_path)[1].report_to == []
    with pytest.raises(InputError, match=r"reward_weights in .*lists.yaml:2: could not convert"):
        lists_of([], tmp_path, "kl_coef: 0.1\nreward_weights: [0.5, much]\n")


BEST = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "use_cpu": True}


@pytest.mark.parametrize(
    ("config", "metric", "best", "greater"),
    [
        (PPOConfig, None, "eval_reward", True),
        (PPOConfig, "eval_kl", "eval_kl", False),
        (PPOConfig, "eval_easy_kl", "eval_easy_kl", False),
        (PPOConfig, "eval_easy_reward", "eval_easy_reward", True),
        (PPOConfig, "rewards/brevity/mean", "rewards/brevity/mean", True),
        (RewardTrainingArguments, None, "eval_loss", False),
        (RewardTrainingArguments, "accuracy", "accuracy", True),
        (SFTTrainingArguments, None, "eval_loss", False),
        (SFTTrainingArguments, "eval_mean_token_accuracy", "eval_mean_token_accuracy", True),
    ],
)
def test_what_is_best_and_which_way(tmp_path, config, metric, best, greater):
    args = config(str(tmp_path), metric_for_best_model=metric, **BEST)
    assert (args.metric_for_best_model, args.greater_is_better) == (best, greater)
    assert config(str(tmp_path), metric_for_best_model=best, greater_is_better=not greater, **BEST).greater_is_better != greater  # fmt: skip
    for needs_metric in ({"save_strategy": "best"}, {"lr_scheduler_type": "reduce_lr_on_plateau"}):
        also = BEST | {"load_best_model_at_end": False} | needs_metric
        assert (
            config(str(tmp_path), **also).metric_for_best_model == config(str(tmp_path), **BEST).metric_for_best_model
        )
        with pytest.raises(InputError, match="nothing is evaluated"):
            config(str(tmp_path), **also | {"eval_strategy": "no"})


@pytest.mark.parametrize(
    ("config", "metric", "words"),
    [
        (PPOConfig, "reward_std", "without greater_is_better"),
        (SFTTrainingArguments, "entropy", "without greater_is_better"),
        (SFTTrainingArguments, "eval_accuracy", "does not measure it"),
        (RewardTrainingArguments, "eval_acuracy", "Did you mean eval_accuracy?"),
    ],
)
def test_metrics_that_cannot_say_what_is_best(tmp_path, config, metric, words):
    with pytest.raises(InputError, match=words.replace("?", r"\?")):
        config(str(tmp_path), metric_for_best_model=metric, **BEST)


BEST_FLAGS = ["--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1",
              "--load_best_model_at_end", "true"]  # fmt: skip


def test_ppo_says_at_the_start_which_metrics_there_are(failing, stage, write_rows):
    evaluation = ["--eval_dataset_name", write_rows(prompt_rows(4), "eval.jsonl"), *BEST_FLAGS]
    message = failing(*stage("ppo"), *evaluation, "--metric_for_best_model", "eval_rewards/happy/mean")
    assert "Did you mean eval_rewards/happy_reward/mean?" in message
    assert "does not measure it" in failing(*stage("ppo"), *evaluation, "--metric_for_best_model", "loss")


def test_ppo_takes_a_metric_that_a_reward_logs(tmp_path):
    from tiny import make_prompts, make_trainer

    def logging(prompts, completions, log_metric):
        log_metric("share", 0.5)
        return [1.0] * len(completions)

    kwargs = {"eval_dataset": make_prompts(4)}
    best = BEST | {"metric_for_best_model": "share", "save_strategy": "steps"}
    trainer = make_trainer(tmp_path, reward=logging, trainer_kwargs=kwargs, **best)
    assert trainer.evaluate()["eval_share"] == 0.5
    with pytest.raises(InputError, match="does not measure it"):
        make_trainer(tmp_path, trainer_kwargs=kwargs, **best)
    sets = {"eval_dataset": {"a": make_prompts(4), "b": Dataset.from_list(list(make_prompts(4)))}}
    with pytest.raises(InputError, match=r"eval_a_reward, .*eval_b_rewards/happy_reward/mean"):
        make_trainer(tmp_path, trainer_kwargs=sets, **best | {"metric_for_best_model": None})


@pytest.mark.parametrize("name", ALL)
def test_the_best_is_what_is_left(stage, write_rows, tmp_path, name):
    """A learning rate that ruins the weights, so that the best checkpoint is not the last."""
    rows = {"sft": demonstrations(20)[16:], "reward": conversational_pairs(24)[16:], "ppo": prompt_rows(4)}[name]
    argv = [*stage(name), "--eval_dataset_name", write_rows(rows, "eval.jsonl"), *BEST_FLAGS]
    assert main([*argv, "--max_steps", "3", "--learning_rate", "0.3", "--lr_scheduler_type", "constant"]) == 0
    out = tmp_path / "out"
    (state,) = [json.loads((folder / "trainer_state.json").read_text()) for folder in [max(out.glob("checkpoint-*"))]]
    values = {row["step"]: row for row in state["log_history"] if any(key.startswith("eval_") for key in row)}
    metric, choose = ("eval_reward", max) if name == "ppo" else ("eval_loss", min)
    best = choose(values, key=lambda step: values[step][metric])
    kept = load_file(out / "adapter_model.safetensors")
    expected = load_file(out / f"checkpoint-{best}" / "adapter_model.safetensors")
    assert all((kept[key] == tensor).all() for key, tensor in expected.items())
