"""Every shipped config in its resolved form, checked in: it changes only on purpose.

After a change on purpose: `python tests/test_config_goldens.py` writes the files anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest

from unialign_jax import config as configs
from unialign_jax.data.schedule import Schedule, Stream
from unialign_jax.data.tasks import Task
from unialign_jax.training.setup import make_setup

GOLDENS = Path(__file__).parent / "goldens" / "configs"
VARIANTS = {
    "photos": ("photos", "photos:small"),
    "scenes": ("scenes", "scenes:full", "scenes:gpu"),
}
NAMES = [name for base in configs.available_configs() for name in VARIANTS.get(base, (base,))]


def golden(name: str) -> Path:
    return GOLDENS / f"{name.replace(':', '_')}.json"


@pytest.mark.parametrize("name", NAMES)
def test_a_config_resolves_to_its_golden_and_builds_abstractly(name: str) -> None:
    resolved = configs.to_plain(configs.load_config(name))
    differences = configs.diff(json.loads(golden(name).read_text()), resolved)
    assert not differences, "; ".join(map(str, differences))
    # One device stands for the many that a stage's mesh asks for.
    setup = make_setup({**resolved, "mesh": {}}, None, jax.devices()[:1])
    assert setup.abstract.params["transformer"]


@pytest.mark.parametrize("name", NAMES)
def test_every_task_of_the_mixture_has_lines_in_the_metrics(name: str) -> None:
    """A line is about one step, thus one task: an unlucky `log_every` never meets some."""
    config = configs.load_config(name)
    tasks = list(config.data.mixture)
    streams = [Stream(task, Task(task), place, 100) for place, task in enumerate(tasks)]
    weights = list(config.data.mixture.values())
    steps = Schedule(streams, weights, seed=0, global_batch=1)
    every = config.train.log_every
    logged = {steps.stream(step - 1).name for step in range(every, config.train.steps + 1, every)}
    assert logged == set(tasks)


def test_every_golden_belongs_to_a_config() -> None:
    assert {path.name for path in GOLDENS.glob("*.json")} == {golden(name).name for name in NAMES}


if __name__ == "__main__":
    GOLDENS.mkdir(parents=True, exist_ok=True)
    for config in NAMES:
        configs.save_json(configs.load_config(config), golden(config))
