"""`unialign verify` on another directory of goldens: other sizes, and damaged ones.

The PyTorch peer writes the directory. Nothing in it has the stored goldens' sizes, names of cases,
mask id or settings, so that whatever `verify` took for granted shows.
"""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest

from tests.peer.draws import Variant
from tests.peer.files import write, write_inventory
from tests.peer.golden import complete
from tests.peer.stored import GIVEN
from tests.peer.variant import random_inputs
from unialign_jax.cli import main
from unialign_jax.parity.verify import verify_directory

pytestmark = pytest.mark.slow

# Read as settings; a wrong one gives a wrong run, not a difference in that very value.
SETTINGS = re.compile(
    r"mask_index|block_depth|num_steps|sampling_eps|eps|sigmas|float16.*"
    r"|stand_in_text_encoder|diffusion_pytorch_model"
)


@pytest.fixture(scope="module")
def files():
    return complete(random_inputs(Variant()))


@pytest.fixture
def variant(files, tmp_path):
    write(tmp_path, files)
    return tmp_path


def damaged(array: np.ndarray) -> np.ndarray:
    """One value off: by 1, or by a hundredth of the norm of the values that are no sentinels."""
    array = np.array(array, order="C")  # a copy of which a flat view can be taken
    flat = array.reshape(-1)
    if array.dtype.kind in "bi":
        flat[-1] = not flat[-1] if array.dtype.kind == "b" else flat[-1] + 1
        return array
    real = np.flatnonzero(np.isfinite(flat) & (np.abs(flat) < 1e5))
    flat[real[len(real) // 2]] += 0.01 * (np.linalg.norm(flat[real]) or 1)
    return array


def outputs(files):
    """(file, array) of everything that follows from the inputs."""
    for name, content in files.items():
        if name.endswith(".json") or SETTINGS.fullmatch(name.split("/")[-1].split(".")[0]):
            continue
        given = next((p for key, p in GIVEN.items() if name.startswith(key)), r"")
        for key in content:
            if not re.fullmatch(given, key) and not SETTINGS.fullmatch(key):
                yield name, key


def case_of(name: str) -> str:
    case = name.rsplit(".", 1)[0].replace("/cases/", "/")
    return "losses/train3" if case == "losses/train3_params" else case


def test_directory_of_other_sizes_is_accepted(variant, capsys):
    assert main(["verify", str(variant)]) == 0, capsys.readouterr().out


def damage_arrays(files) -> set[tuple[str, str]]:
    """Damages every output once; returns (case, tensor) of all that must be reported."""
    expected = set()
    for name, key in outputs(files):
        if files[name][key].size:
            files[name][key] = damaged(files[name][key])
            expected.add((case_of(name), key))
    return expected


def damage_values(files) -> set[tuple[str, str]]:
    """The same for the values in the JSON files."""
    expected = set()

    def damage(record, key, case, tensor):
        value = record[key]
        if isinstance(value, list):
            record[key] = [*value[:-1], value[-1] + 1]
        else:
            record[key] = value + 1 if isinstance(value, int) else value * 1.01 + 1e-3
        expected.add((case, tensor))

    for name, line in files["losses/index.json"]["values"].items():
        for key in line:
            damage(line, key, f"losses/{name}", f"index.{key}")
    for task, norms in files["losses/grad_norms.json"].items():
        damage(norms, "global_l2", f"losses/grad_norms.{task}", "global_l2")
        for term, by_name in norms["per_term"].items():
            for key, value in by_name.items():
                if value is not None:
                    damage(by_name, key, f"losses/grad_norms.{task}", f"{term}/{key}")
    for i, line in enumerate(files["losses/train3.json"]["steps"]):
        for key in line:
            damage(line, key, "losses/train3", f"step{i}.{key}")
    for task, without in files["losses/index.json"]["params_without_grad"].items():
        without.append("text_proj_out.weight")
        case = f"losses/{task}" if task.startswith("text") else f"losses/total_loss_{task}"
        expected.add((case, "no gradient: text_proj_out.weight"))
    for stem, line in files["samplers/index.json"]["text"].items():
        for key in ("forward_calls", "cache_hits", "left_masked_for_final"):
            damage(line, key, f"samplers/{stem}", f"index.{key}")
    for shift, line in files["scheduler_tables/index.json"].items():
        for key in ("sigma_min", "sigma_max"):
            damage(line, key, f"scheduler_tables/{shift}", f"index.{key}")
    return expected


def test_every_single_damaged_array_and_value_is_reported(files, tmp_path):
    files = copy.deepcopy(files)
    expected = damage_arrays(files) | damage_values(files)
    assert len(expected) > 2000
    write(tmp_path, files)
    verdict = verify_directory(tmp_path)
    reported = {(row.case, row.tensor) for row in verdict.rows if not row.ok}
    assert expected - reported == set()


def keep_only(root, group, kept):
    """Leaves of a group the files whose name matches, so that one case can be tried quickly."""
    for path in (root / group).rglob("*.npz"):
        if not re.search(kept, path.name):
            path.unlink()
    write_inventory(root)


def change(root, name, edit):
    """Edits one .npz file and lists it anew: only its content tells that it is wrong."""
    path = root / name
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    edit(arrays)
    np.savez_compressed(path, **arrays)
    write_inventory(root)


CASE = "tiny_transformer/cases/edit_nodepth.npz"
RUN = "samplers/text_ddpm_cache_steps6.npz"
QUICK = r"edit_nodepth|float16_time_features|gen_first|edit_middle"


def check(root, group):
    return main(["verify", str(root), "--group", group])


def test_one_case_alone_is_accepted_and_its_inputs_matter(variant, capsys):
    keep_only(variant, "tiny_transformer", QUICK)
    assert check(variant, "tiny_transformer") == 0, capsys.readouterr().out
    change(variant, CASE, lambda arrays: arrays.update(in_text=damaged(arrays["in_text"])))
    assert check(variant, "tiny_transformer") == 1


def test_array_that_verify_does_not_know_fails(variant):
    change(variant, "scheduler_tables/shift3.npz", lambda a: a.update(out_new=np.ones(3)))
    assert check(variant, "scheduler_tables") == 1


def test_file_that_verify_does_not_know_fails(variant):
    np.savez(variant / "scheduler_tables" / "heun.npz", trajectory=np.ones(4))
    write_inventory(variant)
    assert check(variant, "scheduler_tables") == 1


def test_array_that_is_listed_but_missing_fails(variant):
    path = variant / "scheduler_tables" / "shift1.npz"
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files if key != "steps28_sigmas"}
    np.savez(path, **arrays)
    assert check(variant, "scheduler_tables") == 1


def test_wrong_token_fails(variant):
    keep_only(variant, "samplers", r"text_ddpm_cache_steps6|text_forward")
    assert check(variant, "samplers") == 0
    change(variant, RUN, lambda a: a.update(out_tokens=damaged(a["out_tokens"])))
    assert check(variant, "samplers") == 1


def test_another_mask_id_fails(variant):
    keep_only(variant, "samplers", r"text_ddpm_cache_steps6|text_forward")
    change(variant, RUN, lambda a: a.update(mask_index=a["mask_index"] + 1))
    assert check(variant, "samplers") == 1


def test_file_that_differs_from_its_digest_fails(variant):
    path = variant / "scheduler_tables" / "shift1.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays)  # the same arrays, not compressed
    assert check(variant, "scheduler_tables") == 1
