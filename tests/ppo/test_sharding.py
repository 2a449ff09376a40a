"""What has not been made to work under a launcher's settings is refused when the trainer is made."""

import pytest
from tiny import make_trainer
from transformers import Trainer

from hf_rlhf.errors import InputError


@pytest.fixture
def launched_with(monkeypatch):
    """Make the next trainer believe in a launcher's settings, which on a CPU there is no way to have."""

    def launch(*, zero3=False, **settings):
        create = Trainer.create_accelerator_and_postprocess

        def create_with_settings(self):
            create(self)
            for name, value in settings.items():
                setattr(self, name, value)

        monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", create_with_settings)
        monkeypatch.setattr("hf_rlhf.ppo.trainer.is_deepspeed_zero3_enabled", lambda: zero3)

    return launch


@pytest.mark.parametrize(
    "settings",
    [{"is_fsdp_enabled": True}, {"is_deepspeed_enabled": True, "zero3": True}],
    ids=["FSDP", "ZeRO-3"],
)
def test_sharded_weights_are_refused(tmp_path, launched_with, settings):
    launched_with(**settings)
    with pytest.raises(InputError, match=r"FSDP or ZeRO-3.*use DDP or ZeRO-2"):
        make_trainer(tmp_path)


@pytest.mark.parametrize(
    "flag", [{"ratio_threshold": 10.0}, {"early_stop_kl": 0.1}, {"critic_warmup_iterations": 1}], ids=str
)
def test_deepspeed_refuses_what_withholds_gradients(tmp_path, launched_with, flag):
    launched_with(is_deepspeed_enabled=True)
    with pytest.raises(InputError, match=rf"{next(iter(flag))} .*DeepSpeed"):
        make_trainer(tmp_path, **flag)


def test_zero_2_alone_is_not_refused(tmp_path, launched_with):
    launched_with(is_deepspeed_enabled=True)
    make_trainer(tmp_path)
