"""`unialign doctor`: what it reports of this machine and of machines that lack something."""

from __future__ import annotations

import json
import types
from importlib import metadata

import jax
import pytest

from unialign_jax import cli
from unialign_jax.commands import doctor


def test_doctor_reports_this_machine(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["packages"]["jax"]
    assert len(report["devices"]) == 8
    assert report["attention"] == {"bfloat16": "xla_by_sample", "float32": "xla_by_sample"}
    assert report["problems"] == []


@pytest.mark.parametrize(
    ("platform", "backends"),
    [
        ("tpu", {"bfloat16": "splash", "float32": "splash"}),
        ("gpu", {"bfloat16": "cudnn", "float32": "xla"}),
    ],
)
def test_doctor_names_the_attention_backend_of_an_accelerator(monkeypatch, platform, backends):
    device = types.SimpleNamespace(platform=platform, device_kind="some chip")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    devices, attention = doctor.examine_devices([])
    assert devices == [{"platform": platform, "kind": "some chip"}]
    assert attention == backends


def test_doctor_prints_the_same_as_text(capsys):
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "8 x cpu" in shown
    assert "orbax-checkpoint" in shown


def doctor_with(monkeypatch, requires, versions):
    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "requires", lambda name: requires.get(name, []))
    monkeypatch.setattr(metadata, "version", version)
    return doctor.examine()


def test_doctor_fails_on_a_package_that_is_too_old(monkeypatch):
    requires = {"unialign-jax": ["grain>=0.2.18", "numpy>=2.0"]}
    report = doctor_with(monkeypatch, requires, {"grain": "0.2.9", "numpy": "2.1.0"})
    (problem,) = report["problems"]
    assert problem["what"] == "grain 0.2.9 is older than 0.2.18"
    assert problem["remedy"].endswith(" 'grain>=0.2.18'")


def test_doctor_names_what_an_extra_of_another_package_would_bring(monkeypatch):
    requires = {
        "unialign-jax": ["jax>=0.10", "jax[tpu]>=0.10; extra == 'tpu'"],
        "jax": ["numpy>=2.0", 'libtpu==0.0.42.*; extra == "tpu"'],
    }
    report = doctor_with(monkeypatch, requires, {"jax": "0.10.2"})
    assert report["problems"] == []
    assert report["missing"]["tpu"]["packages"] == ["libtpu"]
    assert "'jax[tpu]==0.10.2'" in report["missing"]["tpu"]["remedy"]


def test_doctor_says_when_a_gpu_lies_idle(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    (hint,) = doctor.accelerator_hints({"cpu"})
    assert "NVIDIA" in hint["what"]
    assert "jax[cuda13]==" in hint["remedy"]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (hint,) = doctor.accelerator_hints({"cpu"})
    assert hint["remedy"] == "unset JAX_PLATFORMS"
    assert doctor.accelerator_hints({"gpu"}) == []
