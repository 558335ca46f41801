"""Loading in little memory: what a process peaks at, what lies where on a mesh, and files written tensor by tensor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from r2rec_jax.models.tensor_files import TensorHeader, open_safetensors, write_safetensors
from r2rec_jax.models.weights import DIGEST_PIECE, digest_tensor, widen
from tests.devices import REPOSITORY, environment

MB = 1_000_000

MEASURE = """
import json, resource, sys
import jax, numpy as np
from launch.make_random_checkpoint import write_checkpoint
from pathlib import Path
from r2rec_jax.config import LoraConfig
from r2rec_jax.config.parallel import ParallelConfig
from r2rec_jax.models.huggingface import load_backbone, save_merged
from r2rec_jax.parallel.mesh import make_mesh
from r2rec_jax.parallel.sharding import shardings

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

folder, small = Path(sys.argv[1]), Path(sys.argv[2])
load_backbone(small, None, "bfloat16")  # what a first load imports and compiles is not the checkpoint's
save_merged(load_backbone(small, None, "bfloat16"), None, small / "again")
before = peak()
backbone = load_backbone(folder, None, "bfloat16")
leaves = jax.tree.leaves(backbone.base)
loaded = peak()
save_merged(backbone, None, folder / "again", max_shard_bytes=60_000_000)
out = {"weights": sum(x.nbytes for x in leaves), "loaded": loaded - before, "exported": peak() - before}
mesh = make_mesh(ParallelConfig(data=1, fsdp=4, tensor=2))
spread = load_backbone(small, None, "bfloat16", mesh=mesh)
alone = load_backbone(small, None, "bfloat16")
out["placed"] = all(jax.tree.leaves(jax.tree.map(
    lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), spread.base, shardings(spread.base, mesh))))
out["split"] = int(spread.base["layers"]["gate"]["kernel"][...].addressable_shards[0].data.size)
out["whole"] = int(spread.base["layers"]["gate"]["kernel"][...].size)
out["equal"] = all(jax.tree.leaves(jax.tree.map(
    lambda x, y: bool(np.array_equal(np.asarray(x), np.asarray(y))), spread.base, alone.base)))
out["sha"] = spread.sha256 == alone.sha256
print(json.dumps(out))
"""


def make(out: Path, *sizes: str) -> Path:
    subprocess.run([sys.executable, "launch/make_random_checkpoint.py", "--out", str(out), *sizes], check=True,
                   cwd=REPOSITORY, env=environment(), capture_output=True)
    return out


@pytest.mark.slow
def test_peak_memory_and_placement_of_a_sharded_checkpoint(tmp_path: Path) -> None:
    """251 MB in four shards of 66: loading needs about one shard beside the weights (mapping whole files would add the
    checkpoint's size, and a stacked parameter at a time twice 59 MB), and exporting never the weights again.
    """
    folder = make(tmp_path / "big", "--layers=8", "--hidden_size=1024", "--ffn=3584", "--vocab=8000", "--heads=8",
                  "--kv_heads=2")
    small = make(tmp_path / "small", "--layers=2", "--hidden_size=64", "--ffn=96", "--vocab=256", "--heads=4",
                 "--kv_heads=2", "--head_dim=16")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) == 4
    done = subprocess.run([sys.executable, "-c", MEASURE, str(folder), str(small)], cwd=REPOSITORY, capture_output=True,
                          text=True, check=True, env=environment(8))
    found = json.loads(done.stdout.splitlines()[-1])
    shard = max(path.stat().st_size for path in shards)
    assert found["weights"] > 240 * MB and 60 * MB < shard < 70 * MB
    assert found["loaded"] < found["weights"] + shard + 25 * MB
    assert found["exported"] < found["weights"] + 3 * shard
    assert found["placed"] and found["equal"] and found["sha"]
    assert found["split"] * 8 == found["whole"]
    again = open_safetensors("again", {path: None for path in sorted((folder / "again").glob("*.safetensors"))})
    source = open_safetensors("big", {path: None for path in shards})
    assert set(again.shapes) == set(source.shapes)
    for name in source.shapes:
        np.testing.assert_array_equal(again.read(name).view(np.uint16), source.read(name).view(np.uint16))


@given(seed=st.integers(0, 99), dtype=st.sampled_from(["float32", "float16", "bfloat16"]), count=st.integers(0, 4))
@settings(deadline=None, max_examples=20)
def test_a_written_file_is_what_the_library_reads(tmp_path_factory, seed: int, dtype: str, count: int) -> None:
    rng, path = np.random.default_rng(seed), tmp_path_factory.mktemp("file") / "x.safetensors"
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    tensors = {f"t{i}": rng.standard_normal(rng.integers(1, 5, i)).astype(kind) for i in range(count)}
    write_safetensors(path, [TensorHeader(n, t.shape, t.dtype) for n, t in tensors.items()], iter(tensors.items()))
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == kind and found[name].shape == tensor.shape
        assert found[name].tobytes() == tensor.tobytes()


@pytest.mark.parametrize("change", ["name", "shape", "dtype", "fewer"])
def test_tensors_that_are_not_those_of_the_headers_are_refused(tmp_path: Path, change: str) -> None:
    header = TensorHeader("a", (2, 3), np.float32)
    name, tensor = "a", np.zeros((2, 3), np.float32)
    given = {"name": [("b", tensor)], "shape": [(name, tensor.T)], "dtype": [(name, tensor.astype(np.float16))],
             "fewer": []}[change]
    with pytest.raises(ValueError, match=r"the next tensor must be|shorter"):
        write_safetensors(tmp_path / "x", [header], given)
    with pytest.raises(ValueError, match="must be float32, float16 or bfloat16; a is int8"):
        write_safetensors(tmp_path / "x", [TensorHeader("a", (1,), np.int8)], [])


def test_digest_in_pieces_is_that_of_the_whole_float32() -> None:
    import hashlib

    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        tensor = rng.standard_normal((3, DIGEST_PIECE // 2 + 7)).astype(dtype)
        assert np.array_equal(widen(tensor.reshape(-1)), tensor.reshape(-1).astype(np.float32))
        whole = hashlib.sha256(f"x{list(tensor.shape)}".encode() + tensor.astype("<f4").tobytes()).hexdigest()
        assert digest_tensor("x", tensor) == whole
