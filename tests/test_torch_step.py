"""The PyTorch step of the benchmarks computes the reference's losses, gradients and updates."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.peer.case import Case
from tests.peer.losses import StandInEncoder
from tests.peer.stored import find_goldens, read_inputs
from unialign_jax.training.optimizer import OptimizerConfig

torch = pytest.importorskip("torch")
torch_step = pytest.importorskip("benchmarks.peer.torch_step")
torch_side = pytest.importorskip("benchmarks.peer.torch_side")

TERMS = {
    "image": "image",
    "text": "caption",
    "contrastive": "contrastive",
    "align_image": "image_align",
    "align_text": "text_align",
}
OBJECTIVE = torch_step.Objective(align_depth=2)


@pytest.fixture(scope="module")
def root() -> Path:
    root = find_goldens()
    if root is None:
        pytest.skip("no goldens beside the tests or the checkout")
    return root


@pytest.fixture(scope="module")
def inputs(root):
    return read_inputs(root)


def given(encoder: StandInEncoder, batch: dict, draws: dict, mask_id: int) -> torch_step.Given:
    """A golden's batch and draws, the captions masked and embedded as the reference does it."""
    b, d = ({k: torch.tensor(v) for k, v in arrays.items()} for arrays in (batch, draws))
    ids = b["caption_ids"]
    t = (1 - 1e-3) * ((d["txt_eps_t"] / len(ids) + torch.arange(len(ids)) / len(ids)) % 1) + 1e-3
    masked = d["txt_mask_uniform"] < (1 - 1e-3) * t[:, None]
    return torch_step.Given(
        target=b["target_latents"],
        caption_ids=ids,
        caption=encoder(torch.where(masked, mask_id, ids)),
        instruction=encoder(b["instruction_ids"]),
        null=encoder(encoder.null_ids),
        image_features=b["feat_image"],
        text_features=b["feat_text"],
        noise=d["img_noise"],
        density=d["img_normal"],
        dropout=d["img_dropout_uniform"],
        eps_t=d["txt_eps_t"],
        mask_uniform=d["txt_mask_uniform"],
    )


@pytest.fixture(scope="module")
def golden(root, inputs):
    with np.load(root / "losses/total_loss_gen.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture
def step(inputs, golden):
    encoder = inputs.text_encoder()
    return given(encoder, golden, golden, inputs.sizes.mask_id)


def test_total_and_terms_are_the_reference_s(inputs, golden, step):
    total, terms = torch_step.loss(inputs.model(), step, OBJECTIVE)
    assert total.item() == pytest.approx(float(golden["total"]), rel=1e-5)
    for ours, theirs in TERMS.items():
        expected = float(golden[f"loss_{theirs}"])
        assert terms[ours].item() == pytest.approx(expected, rel=1e-5), ours


def test_every_gradient_is_the_reference_s(root, inputs, step):
    model = inputs.model()
    torch_step.loss(model, step, OBJECTIVE)[0].backward()
    expected = load_file(root / "losses/grads_total_gen.safetensors")
    found = {k: p.grad.numpy() for k, p in model.named_parameters() if p.grad is not None}
    assert set(found) <= set(expected)
    for name, gradient in expected.items():
        if name not in found:  # of an output that nobody reads, hence not computed at all here
            assert not gradient.any(), name
            continue
        error = np.linalg.norm(found[name] - gradient)
        assert error <= 1e-4 * np.linalg.norm(gradient), name


def test_three_updates_are_the_reference_s(root, inputs, golden):
    settings = json.loads((root / "losses/train3.json").read_text())
    with np.load(root / "losses/train3_draws.npz") as file:
        draws = {name: file[name] for name in file.files}
    model, encoder = inputs.model(), inputs.text_encoder()
    b1, b2 = settings["betas"]
    optimizer = OptimizerConfig(
        b1=b1,
        b2=b2,
        eps=settings["eps"],
        weight_decay=settings["weight_decay"],
        clip=settings["grad_clip"],
        warmup_steps=0,
    )
    training = torch_step.Training(model, torch_step.loss, OBJECTIVE, optimizer)
    for number, line in enumerate(settings["steps"]):
        prefix = f"step{number}_"
        drawn = {k.removeprefix(prefix): v for k, v in draws.items() if k.startswith(prefix)}
        training.optimizer.param_groups[0]["lr"] = line["lr"]
        total, norm = training.step(given(encoder, golden, drawn, inputs.sizes.mask_id))
        assert total.item() == pytest.approx(line["total"], rel=2e-5), number
        assert norm.item() == pytest.approx(line["grad_norm"], rel=2e-5), number
    expected = load_file(root / "losses/train3_params.safetensors")
    for name, array in model.state_dict().items():
        error = np.max(np.abs(array.numpy() - expected[name]))
        assert error <= 5e-5 * max(1.0, np.max(np.abs(expected[name]))), name


def test_products_are_counted_as_one_counts_them_by_hand():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert torch_side.count(lambda: a @ b) == 2 * 3 * 5 * 7
    q = torch.ones(2, 3, 11, 4)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert torch_side.count(lambda: attention(q, q, q)) == 2 * (2 * 2 * 3 * 11 * 11 * 4)


def test_a_lower_precision_computes_the_same_loss_roughly(inputs, step):
    exact = torch_step.loss(inputs.model(), step, OBJECTIVE)[0].item()
    rough = torch_step.loss(inputs.model().compute_in(torch.bfloat16), step, OBJECTIVE)[0].item()
    assert rough != exact
    assert rough == pytest.approx(exact, rel=1e-2)


def test_a_case_is_the_published_model_but_for_layers_and_width():
    network = Case(6, 384).network
    changed = {"layers": 6, "width": 384, "heads": 6, "dtype": "float32"}
    assert dataclasses.replace(type(network)(), **changed) == network
