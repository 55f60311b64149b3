"""Our side: the project's own training step and sampler, compiled ahead of the first call."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peer.case import GUIDANCE, LEVELS, OPTIMIZER, Case
from unialign_jax.planning import flops
from unialign_jax.sampling.samplers import sample_image
from unialign_jax.training import state as states
from unialign_jax.training.optimizer import make_optimizer
from unialign_jax.training.step import StepConfig, make_train_step


@dataclasses.dataclass(frozen=True)
class GivenText:
    """Plays the frozen text encoder: its parameters are the embeddings themselves."""

    def bind(self, params: Any) -> Any:
        return lambda ids: params["embeddings"]


def training_function(case: Case) -> Any:
    """(state, batch) -> (state, metrics), as training has it."""
    tx, schedule = make_optimizer(OPTIMIZER)
    config = StepConfig(objective=case.objective, tokens=case.tokens)
    text: Any = GivenText()
    return make_train_step(case.transformer, text, tx, schedule, config, task="generate")


def training_step(case: Case) -> Any:
    """The same under `jax.jit`, the state donated."""
    return jax.jit(training_function(case), donate_argnums=0)


def abstract_arguments(case: Case) -> tuple[Any, Any]:
    """Shapes of a state and a batch."""
    batch, embeddings = case.batch_arrays(), {"embeddings": case.embeddings()}
    params = {"transformer": case.transformer.abstract, "text_encoder": embeddings}
    state = jax.eval_shape(lambda p: training_state(case, p), params)
    return state, jax.eval_shape(lambda: jax.tree.map(jnp.asarray, batch))


def training_state(case: Case, params: Any) -> Any:
    """The state of a run that has not begun, from parameters or their shapes."""
    tx, _ = make_optimizer(OPTIMIZER)
    return states.create(params, tx, train_text_encoder=False, with_ema=False)


class _Side:
    """A compiled program, how long that took, and its cost."""

    name = "jax"

    def _compile(self, function: Any, count: int, *arguments: Any) -> None:
        self.flops = count
        begin = time.perf_counter()
        lowered = function.lower(*arguments)
        self.trace_seconds = time.perf_counter() - begin
        self.program = lowered.compile()
        self.compile_seconds = time.perf_counter() - begin

    @property
    def memory(self) -> dict[str, float]:
        """GiB: arguments, temporaries, and on an accelerator the peak that was in use."""
        found = self.program.memory_analysis()
        gib = {
            "arguments": found.argument_size_in_bytes / 2**30,
            "temporaries": found.temp_size_in_bytes / 2**30,
        }
        used = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in used:
            gib["peak"] = used["peak_bytes_in_use"] / 2**30
        return {name: round(value, 3) for name, value in gib.items()}


class JaxTraining(_Side):
    """Training steps; every call of `run` makes one."""

    def __init__(self, case: Case):
        embeddings = {"embeddings": case.embeddings()}
        params = {"transformer": case.weights(), "text_encoder": embeddings}
        params = jax.tree.map(jnp.asarray, params)
        self.batch = jax.tree.map(jnp.asarray, case.batch_arrays())
        self.state = jax.jit(lambda p: training_state(case, p), donate_argnums=0)(params)
        count = _flops(training_function(case), self.state, self.batch)
        self._compile(training_step(case), count, self.state, self.batch)

    def check(self) -> list[float]:
        """Loss and gradient norm of the first two steps."""
        values = []
        for _ in range(2):
            self.state, metrics = self.program(self.state, self.batch)
            values += [float(metrics["loss"]), float(metrics["grad_norm"])]
        return values

    def run(self, steps: int) -> float:
        """Seconds per step."""
        begin = time.perf_counter()
        for _ in range(steps):
            self.state, metrics = self.program(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        return (time.perf_counter() - begin) / steps


class JaxSampling(_Side):
    """One guided Euler step of the sampler per call."""

    def __init__(self, case: Case):
        def step(params: Any, x: Any, prompt: Any, negative: Any, levels: Any) -> Any:
            model = case.transformer.bind(params)
            return sample_image(model, x, prompt, negative, sigmas=levels, guidance=GUIDANCE)[0]

        batch = case.batch_arrays()
        texts = case.embeddings()[: 2 * case.batch]
        self.arguments = jax.tree.map(
            jnp.asarray,
            (
                case.weights(),
                batch.target,
                texts[case.batch :],
                texts[: case.batch],
                np.asarray(LEVELS, np.float32),
            ),
        )
        self._compile(jax.jit(step), _flops(step, *self.arguments), *self.arguments)

    def check(self) -> list[float]:
        """Root mean square of the guided velocity, per item."""
        x = np.asarray(self.arguments[1])
        velocity = (np.asarray(self.program(*self.arguments)) - x) / (LEVELS[1] - LEVELS[0])
        return [float(value) for value in np.sqrt(np.mean(velocity**2, axis=(1, 2, 3)))]

    def run(self, steps: int) -> float:
        """Seconds per step."""
        begin = time.perf_counter()
        for _ in range(steps):
            out = self.program(*self.arguments)
        out.block_until_ready()
        return (time.perf_counter() - begin) / steps


def _flops(function: Any, *arguments: Any) -> int:
    """Of the products that the function needs; what a fused kernel forms again is its own."""
    counted = flops.count(jax.make_jaxpr(function)(*arguments))
    return int(counted.total - counted.repeated)
