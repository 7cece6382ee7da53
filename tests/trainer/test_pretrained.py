"""Text encoders that were trained elsewhere: tiny random ones of the kinds that people use."""

from __future__ import annotations

import json

import pytest
import torch

from tests.trainer.test_text import DIT, SPEC, batch
from trainer.condition_values import Tokens
from trainer.models import Model
from trainer.models.diffusion import DiffusionConfig
from trainer.models.vae import VaeConfig

transformers = pytest.importorskip("transformers")


def t5():
    small = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 60}
    return transformers.T5EncoderModel(transformers.T5Config(**small))


def clip():
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**small, vocab_size=60, max_position_embeddings=8, eos_token_id=2)
    )


def bert():
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.BertModel(transformers.BertConfig(**small, vocab_size=60, max_position_embeddings=8))


@pytest.fixture(params=[t5, clip, bert], ids=lambda make: make.__name__)
def folder(request, tmp_path):
    torch.manual_seed(0)
    request.param().save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


def config(path: str, **fields: object) -> DiffusionConfig:
    encoder = {"kind": "pretrained", "path": path, "width": 8} | fields
    denoiser = {
        "network": DIT,
        "embedding": 8,
        "conditions": {"caption": {"kind": "text", "encoder": encoder}},
        "prediction": {"kind": "eps"},
    }
    return DiffusionConfig(kind="diffusion", denoiser=denoiser)


def built(config: DiffusionConfig) -> Model:
    torch.manual_seed(0)
    model = config.build(SPEC)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, 0, 0.3)
    return model


def bound(model, images, condition, noise):
    return model(images, condition, noise, torch.tensor(0.0)).negative_bound


def test_its_words_matter_its_padding_does_not_and_it_stays_frozen(folder):
    model = built(config(folder)).train()
    images, condition, noise = batch(42)
    ids, lengths = condition["caption"]
    found = bound(model, images, condition, noise)
    assert found.isfinite().all()
    junk = torch.where(torch.arange(6) < lengths[:, None], ids, 7)
    torch.testing.assert_close(bound(model, images, {"caption": Tokens(junk, lengths)}, noise), found)
    other = {"caption": Tokens(ids.flip(0), lengths.flip(0))}
    assert (~torch.isclose(bound(model, images, other, noise), found)).sum() > 20
    empty = lengths == 0
    torch.testing.assert_close(found[empty], bound(model, images, None, noise)[empty])
    found.sum().backward()
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
    assert frozen
    assert all(".frozen." in name for name in frozen)
    assert not any(module.training for name, module in model.named_modules() if ".frozen" in name)
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)


def test_a_run_needs_no_other_folder(folder):
    """The description has the encoder's architecture, the tensors have its weights."""
    model = built(config(folder))
    described = config(folder).self_contained(model).model_dump_json()
    fields = json.loads(described)
    fields["denoiser"]["conditions"]["caption"]["encoder"]["path"] = "/nowhere"
    again = DiffusionConfig.model_validate(fields).build(SPEC)
    again.load_state_dict(model.state_dict())
    images, condition, noise = batch()
    assert torch.equal(bound(again, images, condition, noise), bound(model, images, condition, noise))
    resumed = config("/nowhere").rebuild(SPEC, DiffusionConfig.model_validate(json.loads(described)))
    resumed.load_state_dict(model.state_dict())


def test_a_vae_takes_it_too(folder):
    conditions = config(folder).denoiser.conditions
    settings = VaeConfig(kind="vae", conditions=conditions, likelihood={"kind": "bernoulli"})
    model = settings.build(SPEC)
    again = settings.rebuild(SPEC, settings.self_contained(model))
    again.load_state_dict(model.state_dict())
    images, condition, noise = batch()
    assert torch.equal(bound(again, images, condition, noise), bound(model, images, condition, noise))


def test_errors_are_one_line(tmp_path, monkeypatch):
    def refused(given):
        with pytest.raises(ValueError, match=r"^conditions\.caption\.encoder") as raised:
            given.build(SPEC)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    t5().save_pretrained(tmp_path / "t5")
    small = transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=20)
    transformers.T5EncoderModel(small).save_pretrained(tmp_path / "small")
    assert "knows 20 tokens, the tokenizer has 50" in refused(config(str(tmp_path / "small")))
    (tmp_path / "t5/model.safetensors").unlink()
    torch.save(t5().state_dict(), tmp_path / "t5/pytorch_model.bin")
    assert "cannot be read" in refused(config(str(tmp_path / "t5")))  # a pickle is never opened
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no seconds of attempts
    assert "is no folder here" in refused(config("somebody/some-encoder"))


def test_without_the_package_it_says_what_is_missing(monkeypatch):
    from trainer.networks.conditioning import pretrained

    monkeypatch.setitem(pretrained.importlib.sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs the package transformers, which is not installed: pip install"):
        config("t5-small").build(SPEC)
