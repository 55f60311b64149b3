"""The other side: the same step in PyTorch, eager or through torch.compile."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peer import torch_step
from benchmarks.peer.case import GUIDANCE, LEVELS, OPTIMIZER, Case
from unialign_jax.convert.names import transformer_to_torch
from unialign_jax.convert.torch_layers import Sizes
from unialign_jax.convert.torch_model import Transformer

CHECKED_STEPS = 2


def model_of(case: Case, device: str) -> Transformer:
    """The network with the case's weights, through the project's own conversion."""
    sizes = dataclasses.replace(Sizes.of(case.network), mask_id=case.tokens.mask_id)
    state = transformer_to_torch(case.weights(), case.network)
    with torch.device("meta"):
        model = Transformer(sizes)
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    model.load_state_dict(tensors, strict=True, assign=True)
    # Arrays of the conversion may share memory; an optimiser writes to its own.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    model.to(device)
    if case.dtype != "float32":
        model.compute_in(getattr(torch, case.dtype))
    return model


def given(case: Case, step: int, device: str) -> torch_step.Given:
    """Inputs and the draws that our step of that number makes."""
    batch, draws, texts = case.batch_arrays(), case.draws(step), case.embeddings()

    def place(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(array)).to(device)

    def nchw(array: np.ndarray) -> Tensor:
        return place(np.ascontiguousarray(np.moveaxis(np.asarray(array), -1, 1)))

    caption, instruction, null = np.split(texts, (case.batch, 2 * case.batch))
    return torch_step.Given(
        target=nchw(batch.target),
        caption_ids=place(batch.caption_ids).long(),
        caption=place(caption),
        instruction=place(instruction),
        null=place(null),
        image_features=place(batch.image_features),
        text_features=place(batch.text_features),
        noise=nchw(draws.noise),
        density=place(draws.density),
        dropout=place(draws.dropout_uniform),
        eps_t=place(draws.eps_t),
        mask_uniform=place(draws.mask_uniform),
    )


class _Side:
    """A function that is eager or compiled at its first call."""

    def __init__(self, case: Case, device: str, compiled: bool):
        self.name = "torch compiled" if compiled else "torch eager"
        self.case, self.device, self.compiled = case, device, compiled
        self.model = model_of(case, device)
        self.compile_seconds = 0.0
        if device == "cuda":
            # As XLA does where float32 is asked for.
            torch.set_float32_matmul_precision("high")
            torch.cuda.reset_peak_memory_stats()

    def _form(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not self.compiled:
            return function
        return torch.compile(function, fullgraph=True, dynamic=False)

    def synchronise(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    @property
    def memory(self) -> dict[str, float]:
        """GiB: the peak on an accelerator."""
        if self.device != "cuda":
            return {}
        return {"peak": round(torch.cuda.max_memory_allocated() / 2**30, 3)}


class TorchTraining(_Side):
    """Training steps; every call of `run` makes one."""

    def __init__(self, case: Case, device: str, compiled: bool):
        super().__init__(case, device, compiled)
        own = case.objective
        objective = torch_step.Objective(
            *(own.text_weight, own.contrastive_weight, own.align_weight),
            *(own.text_dropout, own.align_depth),
        )
        self.inputs = [given(case, step, device) for step in range(CHECKED_STEPS)]
        function = self._form(torch_step.loss)
        self.training = torch_step.Training(self.model, function, objective, OPTIMIZER)
        self.objective = objective
        if compiled:
            begin = time.perf_counter()
            function(self.model, self.inputs[0], objective)[0].backward()
            self.training.optimizer.zero_grad(set_to_none=True)
            self.synchronise()
            self.compile_seconds = time.perf_counter() - begin
        else:
            self.flops = count(
                lambda: torch_step.loss(self.model, self.inputs[0], objective)[0].backward()
            )
            self.training.optimizer.zero_grad(set_to_none=True)

    def check(self) -> list[float]:
        """Loss and gradient norm of the first two steps."""
        return [x.item() for inputs in self.inputs for x in self.training.step(inputs)]

    def run(self, steps: int) -> float:
        """Seconds per step."""
        self.synchronise()
        begin = time.perf_counter()
        for step in range(steps):
            self.training.step(self.inputs[step % CHECKED_STEPS])
        self.synchronise()
        return (time.perf_counter() - begin) / steps


class TorchSampling(_Side):
    """One guided Euler step per call."""

    def __init__(self, case: Case, device: str, compiled: bool):
        super().__init__(case, device, compiled)
        self.model.requires_grad_(False)
        inputs = given(case, 0, device)
        texts = torch.from_numpy(case.embeddings()[: 2 * case.batch]).to(device)
        levels = [torch.tensor(level, device=device) for level in LEVELS]
        self.start = inputs.target
        self.arguments = (self.model, inputs.target, texts, *levels, GUIDANCE)
        self.function = self._form(torch_step.sampling_step)
        begin = time.perf_counter()
        if compiled:
            self._call()
            self.synchronise()
            self.compile_seconds = time.perf_counter() - begin
        else:
            self.flops = count(self._call)

    @torch.inference_mode()
    def _call(self) -> Tensor:
        return self.function(*self.arguments)

    def check(self) -> list[float]:
        """Root mean square of the guided velocity, per item."""
        velocity = (self._call() - self.start) / (LEVELS[1] - LEVELS[0])
        return velocity.square().mean(dim=(1, 2, 3)).sqrt().tolist()

    def run(self, steps: int) -> float:
        """Seconds per step."""
        self.synchronise()
        begin = time.perf_counter()
        for _ in range(steps):
            self._call()
        self.synchronise()
        return (time.perf_counter() - begin) / steps


def count(call: Callable[[], Any]) -> int:
    """FLOPs of a call, attention as its matrix products: a fused kernel's recomputation is its own.

    Fused attention on a CPU is also not in PyTorch's table.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
