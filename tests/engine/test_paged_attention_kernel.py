"""The kernels of paged attention, interpreted on the CPU and compiled for GPUs that are not here.

Triton's interpreter multiplies no bfloat16; that is left to the tests on a GPU.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from paged_attention_checks import CHECKS, DECODE, PREFILL, Case, Pass, make_pass

from dbgpt_guanaco.engine.kernels import is_available, paged_attention
from dbgpt_guanaco.errors import ConfigurationError

TESTS = Path(__file__).parents[1]
needs_triton = pytest.mark.skipif(not is_available(), reason="Triton is not installed")
# float16 shows that numbers are converted where they must be; the rest is the same.
HALF = ("decode_group_of_3", "decode_window", "prefill_window", "prefill_head_size_64", "write")
RUNS = [*(f"{name}-float32" for name in CHECKS), *(f"{name}-float16" for name in HALF)]
# Shared memory that a block of threads can have: of a GeForce of 2020, and of an H100.
SHARED_BYTES = {86: 99 * 1024, 90: 227 * 1024}


def interpreted(*program: str) -> str:
    """What a program of the tests prints in Triton's interpreter."""
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",  # tiny tensors: threads would only wait for one another
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    }
    done = subprocess.run(
        [sys.executable, "-m", *program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def outcomes() -> Any:
    """What became of every check; empty where it holds."""
    return json.loads(interpreted("paged_attention_checks", *RUNS))


@needs_triton
@pytest.mark.parametrize("run", RUNS)
def test_a_check_holds_in_the_interpreter(outcomes: Any, run: str) -> None:
    outcome = outcomes[run]
    assert not outcome, outcome


@needs_triton
def test_a_model_over_kernels_and_recorded_steps_gives_the_logits_of_transformers() -> None:
    interpreted("paged_model_checks")


class Recorder:
    """Stands where the kernels do, and keeps what each is launched with."""

    def __init__(self) -> None:
        self.launches: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def __getattr__(self, kernel: str) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.launches[kernel] = args, kwargs

        return _Launchable(launch)


class _Launchable:
    def __init__(self, launch: Any) -> None:
        self._launch = launch

    def __getitem__(self, grid: Any) -> Any:
        return self._launch


@needs_triton
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_size", "arch"),
    [(32, 32, 128, 90), (32, 8, 128, 86), (9, 3, 64, 90), (4, 1, 256, 86)],
)
def test_kernels_compile_as_they_are_launched(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    heads: int,
    kv_heads: int,
    head_size: int,
    arch: int,
) -> None:
    import triton

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    recorder = Recorder()
    monkeypatch.setattr(paged_attention, "_device_code", lambda: recorder)

    def shaped(case: Case) -> Pass:
        case = replace(case, heads=heads, kv_heads=kv_heads, head_size=head_size)
        return make_pass(case, torch.bfloat16, torch.device("cpu"))

    shaped(DECODE["window"]).decoded()
    made = shaped(PREFILL["softcap"])
    made.prefilled()
    slots = torch.zeros(len(made.queries), dtype=torch.int64)
    new = made.queries[:, :kv_heads]
    paged_attention.write_kv(made.keys, made.values, new, new, slots)

    assert len(recorder.launches) == 4
    for kernel, (args, kwargs) in recorder.launches.items():
        compiled = _compile(kernel, args, kwargs, arch)
        assert compiled.metadata.shared <= SHARED_BYTES[arch], kernel


def _compile(kernel: str, args: Any, kwargs: dict[str, Any], arch: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dbgpt_guanaco.engine.kernels import device_code

    function = getattr(device_code, kernel)
    given = dict(zip(function.arg_names, args, strict=False)) | kwargs
    options = {name: given.pop(name) for name in ("num_warps", "num_stages") if name in given}
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for index, name in enumerate(function.arg_names):
        value = given[name]
        if isinstance(value, torch.Tensor):
            kinds = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.int64: "i64"}
            signature[name] = "*" + kinds.get(value.dtype, "i32")
        elif function.params[index].is_constexpr or value == 1:
            signature[name], constants[index,] = "constexpr", value
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        # As at a launch: numbers and addresses that 16 divides allow wide loads.
        is_number = isinstance(value, int) and signature[name] == "i32"
        if isinstance(value, torch.Tensor) or (is_number and value % 16 == 0):
            attributes[index,] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def test_without_triton_a_call_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged_attention, "is_available", lambda: False)
    made = make_pass(DECODE["one_key"], torch.float32, torch.device("cpu"))
    with pytest.raises(ConfigurationError, match="pip install triton"):
        made.decoded()


@needs_triton
def test_shapes_that_cannot_belong_together_are_refused() -> None:
    made = make_pass(DECODE["one_key"], torch.float32, torch.device("cpu"))
    arguments = (made.lengths, made.block_tables)
    with pytest.raises(ValueError, match="cannot share"):
        paged_attention.paged_decode(
            made.queries[:, :3], made.keys, made.values, *arguments, **made.options
        )
    with pytest.raises(ValueError, match="contiguous"):
        paged_attention.paged_decode(
            made.queries, made.keys[:, ::2], made.values[:, ::2], *arguments, **made.options
        )
