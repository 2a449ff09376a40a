"""A saved reward model that rewards otherwise in one of its forms is found, and the message names the form."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_lora, make_model, make_tokenizer, perturb
from tiny_data import conversational_pairs

from hf_rlhf.errors import InputError, RunFailed
from hf_rlhf.evaluation.round_trip import Bounds, Probe, check_plain, check_saved
from hf_rlhf.models.adapters import base_of
from hf_rlhf.models.load import load_sequence_classifier
from hf_rlhf.training.trl_setup import save_merged

FP32 = {"dtype": "float32"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An adapter, its merged form, the probe, and the rewards in memory."""
    from peft import get_peft_model

    folder = tmp_path_factory.mktemp("reward")
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    classifier = load_sequence_classifier(str(folder / "base"), dtype="float32")
    model = perturb(get_peft_model(classifier, make_lora(task_type="SEQ_CLS", modules_to_save=["score"])), only="lora")
    perturb(model, only="score.modules_to_save")
    model.save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    rows = conversational_pairs(12)
    probe = Probe.of(tokenizer, [row["prompt"] for row in rows], [row["chosen"] for row in rows])
    base_of(model).config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        expected = probe.rewards(lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits[:, 0], 0, "cpu")
    save_merged(model, tokenizer, folder / "adapter")
    return folder / "adapter", probe, expected


@pytest.fixture
def copied(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "reward")
    return tmp_path / "reward", *saved[1:]


def change(file, change_content):
    content = json.loads(file.read_text())
    change_content(content)
    file.write_text(json.dumps(content))


def change_weight(file, part, change_tensor):
    weights = load_file(file)
    (name,) = [name for name in weights if part in name][:1]
    weights[name] = change_tensor(weights[name])
    save_file(weights, file, {"format": "pt"})


def test_a_whole_model_gives_the_same_scores_in_every_form(saved):
    folder, probe, expected = saved
    found = check_saved(folder, probe, expected, FP32, "cpu")
    assert max(found.gaps.values()) < 1e-5
    assert check_plain(folder / "merged", probe, found.rewards, "cpu")["merged_gap"] < 1e-4
    lengths = [len(ids) for ids in probe.ids]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 2


def test_a_wrong_tokenizer_is_found(copied):
    folder, probe, expected = copied
    change(folder / "tokenizer.json", lambda content: content["model"]["vocab"].update({"happy": 9, "dog": 16}))
    with pytest.raises(RunFailed, match="reads a text otherwise"):
        check_saved(folder, probe, expected, FP32, "cpu")


def test_a_lost_score_head_is_found(copied):
    folder, probe, expected = copied
    change_weight(folder / "adapter_model.safetensors", "score", torch.zeros_like)
    with pytest.raises(RunFailed, match="in these forms: loaded again"):
        check_saved(folder, probe, expected, FP32, "cpu")
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "score" not in name}, file)
    with pytest.raises(InputError, match="has no trained score head"):
        check_saved(folder, probe, expected, FP32, "cpu")
    change_weight(folder / "merged" / "model.safetensors", "score", lambda head: head + 0.1 * torch.randn_like(head))
    with pytest.raises(RunFailed, match="a plain classifier"):
        check_plain(folder / "merged", probe, expected, "cpu")


def test_one_changed_weight_of_the_merged_model_is_found(copied):
    folder, probe, expected = copied

    def change_one(weight):
        weight[3, 5] += 0.5
        return weight

    change_weight(folder / "merged" / "model.safetensors", "down_proj", change_one)
    with pytest.raises(RunFailed, match="a plain classifier"):
        check_plain(folder / "merged", probe, expected, "cpu")


def test_an_end_token_that_is_read_as_padding_is_found(copied):
    folder, probe, expected = copied
    end = make_tokenizer().eos_token_id
    change(folder / "merged" / "config.json", lambda content: content.update(pad_token_id=end))
    with pytest.raises(RunFailed, match="a plain classifier"):
        check_plain(folder / "merged", probe, expected, "cpu")


def test_a_tokenizer_that_pads_with_another_token_than_the_model_knows_is_found(copied):
    """Ids and weights are right, and so is one text alone. Beside others, the reward is read from the padding."""
    folder, probe, expected = copied
    change(folder / "merged" / "tokenizer_config.json", lambda content: content.update(pad_token="happy"))
    with pytest.raises(RunFailed, match="a plain classifier"):
        check_plain(folder / "merged", probe, expected, "cpu")


def test_scores_that_are_not_numbers_are_found(saved):
    from hf_rlhf.evaluation.round_trip import Form, require_same

    with pytest.raises(RunFailed, match="broken"):
        require_same(saved[0], [1.0, 2.0], [Form("broken", [1.0, float("nan")], 1.0)])


def test_bounds_are_those_of_the_dtype(saved):
    model = make_model(make_tokenizer())
    assert Bounds.of(model).batch == 1e-5
    assert Bounds.of(model.bfloat16()).batch > 1e-2
