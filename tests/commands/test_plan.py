"""`unialign plan`: what it prints, as text and as JSON, and how it refuses."""

from __future__ import annotations

import json

import pytest

from unialign_jax import cli

CONTRACT = {
    "topology": str,
    "slices": int,
    "mesh": dict,
    "task": str,
    "per_chip_batch": (int, float),
    "fits": bool,
    "hbm_gib": dict,
    "flops": dict,
    "collectives": dict,
    "bound": dict,
}


def plan(capsys, *arguments):
    code = cli.main(["plan", "--config", "photos:small", *arguments])
    return code, *capsys.readouterr()


def test_json_holds_the_contract_for_hardware_without_a_compiler(capsys):
    code, out, err = plan(capsys, "--topology", "gpu:h200", "--json", "--price", "3")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["task"] for row in rows] == ["generate", "edit"]
    for row in rows:
        assert {key: isinstance(row[key], kind) for key, kind in CONTRACT.items()} == (
            dict.fromkeys(CONTRACT, True)
        )
        assert set(row["hbm_gib"]) == {"limit", "arguments", "temporaries", "total"}
        assert {"model", "hardware"} <= set(row["flops"])
        assert {"step_seconds", "mfu", "by"} <= set(row["bound"])
        assert row["estimated"] and row["fits"]
        assert 0 < row["bound"]["mfu"] < 1
        assert row["stage"]["cost_estimate"] == pytest.approx(
            3 * row["stage"]["chip_hours_estimate"]
        )
    # Two thirds of the steps are generate (mixture 2 : 1), and every step of it has fewer tokens.
    assert [row["stage"]["share"] for row in rows] == pytest.approx([2 / 3, 1 / 3])
    assert rows[0]["flops"]["model"] < rows[1]["flops"]["model"]


def test_the_text_names_the_verdict_and_says_that_it_is_a_guess(capsys):
    code, out, err = plan(
        capsys, *("--topology", "gpu:h200", "--task", "generate", "--per-chip-batch", "4")
    )
    assert code == 0, err
    assert "generate: fits (a guess from arithmetic" in out
    assert "4 samples per device" in out and "TFLOP" in out
    assert "plan: generate on gpu:h200" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v5e:16x6x"], "the nearest is v5e:16x16"),
        (["--topology", "gpu:h200", "--task", "generat"], "no training task"),
        (["--topology", "gpu:h200", "--task", "edit:2"], "takes 1 to 1 condition"),
        (["--topology", "gpu:h200", "--price", "-1"], "--price"),
        (["--topology", "gpu:h200", "--config.mesh.fdsp=2"], "mesh.fsdp"),
        (["--topology", "gpu:h200", "--per-chip-batch", "1.3"], "no whole number"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(capsys, arguments, message):
    code, _, err = plan(capsys, *arguments)
    assert code == 2
    assert message in err


def test_a_mesh_that_does_not_fit_the_devices_is_named(capsys):
    code, _, err = plan(
        capsys, *("--topology", "gpu:h200:4", "--config.mesh.fsdp=3", "--task", "generate")
    )
    assert code == 2
    assert "mesh.fsdp=3" in err and "4 device(s)" in err and "compiling" not in err
