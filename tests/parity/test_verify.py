"""`unialign verify` on the stored goldens, and on small copies with something wrong in them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.parity.checks import GOLDENS
from tests.parity.copies import change, copy, enlist, raised, read_inventory
from unialign_jax.cli import main
from unialign_jax.errors import UserError
from unialign_jax.parity.golden import GoldenDirectory, compare
from unialign_jax.parity.verify import COVERED, Verdict, as_json, table, verify_directory

TABLES = "scheduler_tables/"
SHIFT = f"{TABLES}shift3.npz"
NETWORK = tuple(
    f"tiny_transformer/{name}" for name in ("config", "extra_config", "diffusion", "index")
)
# The cheapest case of a network: no conditions, no adapters.
CASE = "tiny_transformer/cases/text_only_nodepth.npz"


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """A copy of the group that is compared in no time."""
    return copy(tmp_path, TABLES)


def verify(root: Path, capsys, *options: str) -> tuple[int, str, str]:
    """Exit code, output and errors of the command."""
    code = main(["verify", str(root), *options])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def assert_explained(code: int, errors: str, *words: str) -> None:
    assert code == 1
    assert "Traceback" not in errors
    for word in words:
        assert word in errors


def test_every_stored_golden_holds(verdict: Verdict) -> None:
    assert [row for row in verdict.rows if not row.ok] == []
    assert verdict.ok
    assert verdict.not_covered == []


def test_every_output_of_every_stored_file_is_compared(verdict: Verdict) -> None:
    compared = {(row.case, row.tensor) for row in verdict.rows}
    inventory = read_inventory(GOLDENS)
    cases = [name for name in inventory if name.startswith("tiny_transformer/cases/")]
    runs = [name for name in inventory if name.startswith("samplers/") and name.endswith(".npz")]
    assert len(cases) == 14 and len(runs) >= 12
    for name in [*cases, *runs]:
        case = name.removesuffix(".npz").replace("/cases/", "/")
        for array in inventory[name]["arrays"]:
            if array.startswith(("out_", "trace_", "latents_", "guided_", "tokens_", "q_")):
                assert (case, array) in compared, f"{case}: {array}"


def test_gradients_of_every_parameter_are_compared(verdict: Verdict) -> None:
    inventory = read_inventory(GOLDENS)
    for task in ("gen", "edit", "compose"):
        case = f"losses/grads_total_{task}"
        rows = {row.tensor: row for row in verdict.rows if row.case == case}
        assert set(rows) == set(inventory[f"{case}.safetensors"]["arrays"])
        assert {row.tolerance for row in rows.values()} == {1e-4}


def test_tolerances_are_those_of_the_contract(verdict: Verdict) -> None:
    strict = ("text_only_d1", "edit_tall_nodepth", "gen_full_posembed", "gen_datatype_none_t0")
    for row in verdict.rows:
        if row.case.startswith("tiny_transformer/"):
            assert row.tolerance <= (1e-5 if row.case.endswith(strict) else 5e-5), row
        if row.case.startswith("losses/total_loss") and row.tensor.startswith(("loss_", "total")):
            assert row.tolerance == 1e-5, row


def test_json_is_a_list_with_the_fields_that_programs_read(verdict: Verdict) -> None:
    rows = json.loads(json.dumps(as_json(verdict), allow_nan=False))
    assert len(rows) == len(verdict.rows)
    for row in rows:
        assert {"case", "tensor", "max_abs", "max_rel", "tolerance", "ok"} <= set(row)
        group, _, name = row["case"].partition("/")
        assert group in COVERED and name
        assert isinstance(row["ok"], bool)
        assert isinstance(row["max_rel"], float) and row["max_rel"] <= row["tolerance"]


def test_table_names_every_case_once_unless_all_rows_are_asked_for(verdict: Verdict) -> None:
    worst, everything = table(verdict), table(verdict, every_row=True)
    for case in {row.case for row in verdict.rows}:
        assert sum(line.split(" ")[0] == case for line in worst.splitlines()) == 1
    assert len(everything.splitlines()) > len(verdict.rows)
    assert f"{len(verdict.rows)} comparisons, 0 failed" in worst


def test_command_prints_json_and_exits_0(tables, capsys) -> None:
    code, out, _ = verify(tables, capsys, "--json")
    assert code == 0
    assert all(row["ok"] for row in json.loads(out))


@pytest.mark.parametrize("key", ["steps28_sigmas", "train_timesteps", "custom_sigmas"])
def test_changed_value_in_a_table_fails_and_is_named(tables, capsys, key) -> None:
    change(tables, SHIFT, raised(key, 1e-4))
    code, out, _ = verify(tables, capsys)
    assert code == 1
    failed = [line for line in out.splitlines() if "FAILED" in line]
    assert len(failed) == 1
    assert failed[0].startswith("scheduler_tables/shift3 ") and key in failed[0]


def test_changed_output_of_the_network_fails_and_is_named(tmp_path, capsys) -> None:
    root = copy(tmp_path, *NETWORK, CASE)
    change(root, CASE, raised("out_text_logits", 3e-5))
    code, out, _ = verify(root, capsys, "--json")
    assert code == 1
    failed = [row for row in json.loads(out) if not row["ok"]]
    assert [(row["case"], row["tensor"]) for row in failed] == [
        ("tiny_transformer/text_only_nodepth", "out_text_logits")
    ]
    assert failed[0]["max_rel"] == pytest.approx(3e-5, rel=0.1)


def test_wrong_sha_fails(tables, capsys) -> None:
    with np.load(tables / SHIFT) as file:
        np.savez(tables / SHIFT, **file)
    code, out, _ = verify(tables, capsys)
    assert code == 1
    assert "SHA-256 differs" in out


def test_unknown_array_in_a_known_file_is_reported_as_not_checked(tables, capsys) -> None:
    change(tables, SHIFT, lambda arrays: arrays.update(out_new=np.ones(3)))
    code, out, _ = verify(tables, capsys)
    assert code == 1
    (line,) = (line for line in out.splitlines() if "out_new" in line)
    assert "not checked" in line and "scheduler_tables/shift3" in line


def test_unknown_file_in_a_covered_group_is_reported_as_not_checked(tables, capsys) -> None:
    np.savez(tables / TABLES / "heun.npz", trajectory=np.ones(4))
    enlist(tables, f"{TABLES}heun.npz")
    code, out, _ = verify(tables, capsys, "--group", "scheduler_tables")
    assert code == 1
    assert "scheduler_tables/heun" in out and "not checked" in out


def test_unknown_json_in_a_covered_group_is_reported_as_not_checked(tables, capsys) -> None:
    (tables / TABLES / "heun.json").write_text('{"sigma": 0.5}')
    enlist(tables, f"{TABLES}heun.json")
    code, out, _ = verify(tables, capsys)
    assert code == 1
    assert "scheduler_tables/heun" in out and "not checked" in out


def test_array_that_the_inventory_does_not_list_is_reported_too(tables, capsys) -> None:
    change(tables, SHIFT, lambda arrays: arrays.update(out_new=np.ones(3)))
    inventory = read_inventory(tables)
    del inventory[SHIFT]["arrays"]["out_new"]
    (tables / "inventory.json").write_text(json.dumps(inventory))
    code, out, _ = verify(tables, capsys)
    assert code == 1 and "out_new" in out


def test_array_that_is_listed_and_not_stored_fails(tables, capsys) -> None:
    inventory = read_inventory(tables)
    inventory[SHIFT]["arrays"]["steps7_sigmas"] = ["float32", [8]]
    (tables / "inventory.json").write_text(json.dumps(inventory))
    code, out, _ = verify(tables, capsys)
    assert code == 1
    assert "steps7_sigmas" in out and "missing in the file" in out


def test_groups_without_a_comparison_are_listed(tables, capsys) -> None:
    (tables / "videos").mkdir()
    np.savez(tables / "videos" / "clips.npz", out=np.ones(3))
    enlist(tables, "videos/clips.npz")
    code, out, _ = verify(tables, capsys)
    assert code == 0
    assert "not covered: videos" in out
    assert verify_directory(tables).not_covered == ["videos"]


def test_directory_with_fewer_files_is_checked_as_far_as_it_goes(tables, capsys) -> None:
    inventory = read_inventory(tables)
    for name in [name for name in inventory if "euler" in name or "shift1" in name]:
        del inventory[name]
    (tables / "inventory.json").write_text(json.dumps(inventory))
    code, out, _ = verify(tables, capsys)
    assert code == 0
    assert "shift3" in out and "scale_noise" in out and "euler" not in out


def test_directory_without_a_covered_group_is_an_error(tables, capsys) -> None:
    (tables / "inventory.json").write_text("{}")
    code, _, errors = verify(tables, capsys)
    assert_explained(code, errors, "nothing to compare", "tiny_transformer")


def test_missing_file_is_an_error_that_names_it(tables, capsys) -> None:
    (tables / SHIFT).unlink()
    code, _, errors = verify(tables, capsys)
    assert_explained(code, errors, "shift3.npz", "not there")


@pytest.mark.parametrize("length", [0, 100, 5000])
def test_truncated_file_is_an_error_that_names_it(tables, capsys, length) -> None:
    (tables / SHIFT).write_bytes((tables / SHIFT).read_bytes()[:length])
    code, _, errors = verify(tables, capsys)
    assert_explained(code, errors, "shift3.npz", "cannot be read")


def test_truncated_weights_are_an_error_that_names_them(tmp_path, capsys) -> None:
    root = copy(tmp_path, *NETWORK, CASE)
    path = root / "tiny_transformer/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    code, _, errors = verify(root, capsys)
    assert_explained(code, errors, path.name, "cannot be read")


@pytest.mark.parametrize("content", [None, "", '{"a": ', "[1, 2]"])
def test_missing_or_damaged_inventory_is_an_error(tables, capsys, content) -> None:
    (tables / "inventory.json").unlink()
    if content is not None:
        (tables / "inventory.json").write_text(content)
    code, _, errors = verify(tables, capsys)
    assert_explained(code, errors, "inventory.json")


def test_missing_directory_is_an_error(tmp_path, capsys) -> None:
    code, _, errors = verify(tmp_path / "nowhere", capsys)
    assert_explained(code, errors, "nowhere", "inventory.json")


def test_unknown_group_is_an_error_that_names_the_known_ones(tables, capsys) -> None:
    code, _, errors = verify(tables, capsys, "--group", "vae")
    assert_explained(code, errors, "vae", "scheduler_tables")


def test_directory_without_a_covered_group_does_not_pass(tmp_path, capsys) -> None:
    np.savez(tmp_path / "patches.npz", out=np.ones(3))
    (tmp_path / "inventory.json").write_text('{"preprocess/patches.npz": {"arrays": null}}')
    assert verify(tmp_path, capsys)[0] == 1


def test_case_that_needs_an_absent_file_fails_without_a_traceback(tmp_path, capsys) -> None:
    root = copy(tmp_path, *NETWORK[1:], CASE)
    code, out, errors = verify(root, capsys)
    assert code == 1
    assert "Traceback" not in out + errors
    assert "config.json" in out + errors


def test_inputs_are_read_and_outputs_compared_with_an_account(tmp_path) -> None:
    goldens = GoldenDirectory(copy(tmp_path, f"{TABLES}shift1"))
    assert {row.tensor for row in goldens.unchecked("scheduler_tables")} >= {"train_sigmas"}
    goldens.open(f"{TABLES}shift1.npz").all()
    assert goldens.unchecked("scheduler_tables") == []


@pytest.mark.parametrize(
    ("value", "expected", "ok"),
    [
        ([1.0, 2.0], [1.0, 2.0], True),
        ([1.0, 2.0 + 1e-5], [1.0, 2.0], True),
        ([1.0, 2.0 + 3e-5], [1.0, 2.0], False),
        ([-1e6, 1.0], [-1e6, 1.001], False),  # a sentinel does not hide the rest
        ([-1e6, 1.0], [-1.1e6, 1.0], False),
        ([np.nan, 1.0], [0.0, 1.0], False),
        ([np.inf, 1.0], [np.inf, 1.0], True),
        ([0.0, 1.0], [np.inf, 1.0], False),
        ([0.0, 1e-9], [0.0, 0.0], False),
        ([1.0], [1.0, 1.0], False),
        ([1, 2], [1, 3], False),
    ],
)
def test_comparison_is_relative_to_the_peak_and_equal_for_integers(value, expected, ok) -> None:
    row = compare("g/c", "t", np.asarray(value), np.asarray(expected), 1e-5)
    assert row.ok is ok


def test_value_that_was_not_computed_fails() -> None:
    assert not compare("g/c", "t", None, np.ones(2), 1e-5).ok


def test_unreadable_json_is_a_user_error(tables) -> None:
    (tables / TABLES / "index.json").write_text("{")
    enlist(tables, f"{TABLES}index.json")
    with pytest.raises(UserError, match=r"index\.json"):
        verify_directory(tables)
