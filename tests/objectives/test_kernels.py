"""The Triton kernels against float64: interpreted on a CPU, compiled where there is a GPU.

Triton decides what `jit` makes of a kernel, its own ones included, from the environment it is imported in; what it
patches while it interprets it doesn't all put back. So this file runs once more in a process of its own.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="Triton isn't made for this platform")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
SHAPES = [(1, 1), (3, 5), (64, 64), (70, 130), (200, 33)]
BOUND = 1e-5  # logit − reference is rounded: by 4e-6 between 64 and 128, and so is its exponential
EXACT = 1e-6  # where the argument isn't rounded


def compared(test: Callable) -> Callable:
    """Runs in the interpreter's process, and on a GPU."""
    if INTERPRETED:
        return test
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")(test))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if INTERPRETED:  # whose fma of Triton 3.8 rounds the product, as no GPU's does
        monkeypatch.setattr("triton.runtime.interpreter.InterpreterBuilder.create_fma", fused)
    from xmodal.objectives import kernels

    return kernels


def fused(_: object, x: Any, y: Any, z: Any) -> Any:
    """x · y + z, rounded once: in float64 the product of two float32 numbers is whole."""
    found = x.data.astype(np.float64) * y.data + z.data
    return type(z)(found.astype(z.data.dtype), z.dtype.scalar)


def tile(h: int, w: int, low: float = -60.0, high: float = 60.0, places: bool = True) -> Tensor:
    """(h, w) logits; an eighth of them −inf, and with several rows and columns all of one row and of one column."""
    g = torch.Generator().manual_seed(h * w)
    logits = torch.rand(h, w, generator=g) * (high - low) + low
    if places:
        logits[torch.rand(h, w, generator=g) < 0.125] = -math.inf
        if h > 1:
            logits[1] = -math.inf
        if w > 1:
            logits[:, 1] = -math.inf
    return logits.to(DEVICE)


def inside(values: Tensor) -> Tensor:
    """The same values as rows of something wider, beginning at an odd place."""
    h, w = values.shape
    wide = torch.full((h, w + 7), math.nan, dtype=values.dtype, device=values.device)
    wide[:, 3 : 3 + w] = values
    return wide[:, 3 : 3 + w]


def close(got: Tensor, want: Tensor, bound: float = BOUND) -> None:
    """Relative to each value, down to what float32 holds with all its digits; or as the type of `got` rounds it."""
    tiny = 1e-36
    if got.dtype in (torch.float16, torch.bfloat16):
        tiny, bound = torch.finfo(got.dtype).smallest_normal / 64, 2 * torch.finfo(got.dtype).eps
    torch.testing.assert_close(got.double(), want.double(), rtol=bound, atol=tiny)


@pytest.mark.skipif(INTERPRETED, reason="is the interpreter's process")
def test_interpreted() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled here")
@pytest.mark.parametrize(
    ("name", "constant"),
    [
        ("_exponential_sums", {"keep": True}),
        ("_weighted_exponentials", {"kept": False}),
        ("_sigmoid_gradient", {}),
        ("_running_sums", {}),
        ("_softmax_rows", {}),
    ],
)
def test_compiles_for_a_gpu_that_is_not_here(kernels: ModuleType, name: str, constant: dict[str, bool]) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    kernel = getattr(kernels, name)
    types = dict.fromkeys(kernel.arg_names, "*fp32") | dict.fromkeys(("height", "width", "stride", "out_stride"), "i32")
    types |= {"reference": "fp32", "bias": "fp32", "out": "*bf16"}
    types |= dict.fromkeys(("of_rows", "of_columns", "losses", "slopes", "total"), "*fp64")
    types |= dict.fromkeys(constant, "constexpr")
    types = {name: types[name] for name in kernel.arg_names}
    compile(ASTSource(kernel, types, constant), target=GPUTarget("cuda", 90, 32), options=kernels.OPTIONS)


@compared
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reference", [0.0, 30.0])
def test_exponential_sums(kernels: ModuleType, shape: tuple[int, int], reference: float) -> None:
    logits = tile(*shape)
    want = (logits.double() - reference).exp()
    given = inside(logits)
    for keep in (False, True):
        rows, columns = kernels.exponential_sums(given, reference, keep)
        assert rows.dtype == columns.dtype == torch.float64
        close(rows, want.sum(1))
        close(columns, want.sum(0))
        if not keep:
            assert torch.equal(given, logits)
    close(given, want)


@compared
def test_an_exponential_is_as_exact_as_float32(kernels: ModuleType) -> None:
    logits = tile(70, 130, -85, 85, places=False)
    want = logits.double().exp()
    kernels.exponential_sums(logits, 0.0, True)
    close(logits, want, EXACT)


@compared
def test_what_lies_far_below_the_reference_is_nothing(kernels: ModuleType) -> None:
    logits = tile(3, 5, -1e4, -1e3)
    rows, columns = kernels.exponential_sums(logits, 30.0, True)
    assert not rows.any()
    assert not columns.any()
    assert not logits.any()


@compared
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weighted_exponentials(kernels: ModuleType, shape: tuple[int, int], dtype: torch.dtype) -> None:
    h, w = shape
    logits, reference = tile(h, w, 20, 60), 30.0
    of_row, of_column = (torch.rand(n, device=DEVICE) * 1e-12 for n in shape)
    exponentials = (logits.double() - reference).exp()
    want = exponentials * (of_row.double()[:, None] + of_column)
    for kept, given in ((True, exponentials.float()), (False, inside(logits))):
        out = inside(torch.empty(h, w, dtype=dtype, device=DEVICE))
        kernels.weighted_exponentials(given, reference, of_row, of_column, out, kept)
        close(out, want)
    kernels.weighted_exponentials(logits, reference, of_row, of_column, logits, False)
    close(logits, want)


@compared
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sigmoid_gradient(kernels: ModuleType, shape: tuple[int, int], dtype: torch.dtype) -> None:
    logits, bias = tile(*shape, -30, 30), -10.0
    wide = logits.double() + bias
    out = torch.empty(shape, dtype=dtype, device=DEVICE)
    loss, slope = kernels.sigmoid_gradient(inside(logits), bias, out)
    close(out, wide.sigmoid())
    close(loss, F.softplus(wide, threshold=700).sum(), EXACT)
    close(slope, wide.sigmoid().sum(), EXACT)
    if dtype == torch.float32:
        again = kernels.sigmoid_gradient(logits, bias, logits)
        assert torch.equal(logits, out)
        assert torch.equal(torch.stack(again), torch.stack([loss, slope]))


@compared
@pytest.mark.parametrize("logit", [-80, -40, -20, -8.5, -6, -3, -1, -0.125, 0, 0.125, 3, 40])
def test_a_tiny_loss_keeps_its_digits(kernels: ModuleType, logit: float) -> None:
    logits = torch.tensor([[float(logit)]], device=DEVICE)
    loss, slope = kernels.sigmoid_gradient(logits, 0.0, logits)
    assert loss.item() == pytest.approx(math.log1p(math.exp(logit)), rel=EXACT, abs=0)
    assert slope.item() == pytest.approx(1 / (1 + math.exp(-logit)), rel=EXACT, abs=0)


@compared
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((shape, torch.float32) for shape in SHAPES), ((3, 5), torch.float64), ((2, 5000), torch.float64)],
)
def test_running_sums(kernels: ModuleType, shape: tuple[int, int], dtype: torch.dtype) -> None:
    h, _ = shape
    tiles = [tile(*shape, -1000, -900), tile(*shape), tile(*shape, -100, 50, places=False)]
    top = torch.full((h,), -math.inf, device=DEVICE)
    total = torch.zeros(h, dtype=dtype, device=DEVICE)
    for number in range(len(tiles)):
        kernels.running_sums(inside(tiles[number]), top, total)
        seen = torch.cat(tiles[: number + 1], 1).double()
        assert torch.equal(top.double(), seen.amax(1))
        finite = seen.amax(1, keepdim=True).clamp_min(-1e30)
        close(total, (seen - finite).exp().sum(1))
    assert top.isfinite().all()


@compared
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_softmax_rows(kernels: ModuleType, shape: tuple[int, int], dtype: torch.dtype) -> None:
    h, w = shape
    logits, weight = tile(h, w, -60, -10), torch.rand(h, device=DEVICE) - 0.5
    log_all = logits.logsumexp(1).clamp_min(-100)
    want = weight.double()[:, None] * (logits.double() - log_all.double()[:, None]).exp()
    out = torch.empty(h, w, dtype=dtype, device=DEVICE)
    kernels.softmax_rows(inside(logits), log_all, weight, out)
    close(out, want)
    kernels.softmax_rows(logits, log_all.double(), torch.stack([weight, weight], 1)[:, 0], logits)
    close(logits, want)


@compared
def test_twice_the_same_bits(kernels: ModuleType) -> None:
    def all_of_them() -> list[Tensor]:
        logits, column, row = tile(70, 133), torch.zeros(133, device=DEVICE), torch.ones(70, device=DEVICE)
        top, total = torch.full((70,), -math.inf, device=DEVICE), torch.zeros(70, device=DEVICE)
        weighted, softmax, sigmoid = torch.empty(3, 70, 133, dtype=torch.float16, device=DEVICE)
        kernels.weighted_exponentials(logits, 70.0, row, column, weighted, False)
        kernels.softmax_rows(logits, row * 70, row, softmax)
        kernels.running_sums(logits, top, total)
        sums = *kernels.sigmoid_gradient(logits, -5.0, sigmoid), *kernels.exponential_sums(logits, 30.0, True)
        return [logits, top, total, weighted, softmax, sigmoid, *sums]

    for first, second in zip(all_of_them(), all_of_them(), strict=True):
        assert torch.equal(first, second)


@compared
def test_a_logit_that_is_no_number_shows(kernels: ModuleType) -> None:
    logits, out = tile(3, 5, places=False), torch.empty(3, 5, device=DEVICE)
    logits[1, 2] = math.nan
    top, total = torch.full((3,), -math.inf, device=DEVICE), torch.zeros(3, device=DEVICE)
    kernels.running_sums(logits, top, total)
    assert total.isnan().tolist() == [False, True, False]
    assert all(value.isnan() for value in kernels.sigmoid_gradient(logits, 0.0, out))
    rows, columns = kernels.exponential_sums(logits, 0.0, False)
    assert rows.isnan().tolist() == [False, True, False]
    assert columns.isnan().tolist() == [False, False, True, False, False]


@compared
def test_what_kernels_would_read_wrongly_is_refused(kernels: ModuleType) -> None:
    logits = tile(3, 5)
    for wrong in (logits.double(), logits.half(), logits.T):
        with pytest.raises(ValueError, match="contiguous rows"):
            kernels.exponential_sums(wrong, 0.0, False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or INTERPRETED, reason="no GPU")
def test_a_row_may_lie_beyond_two_to_the_31(kernels: ModuleType) -> None:
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("less than 12 GiB of memory free")
    far = torch.empty(2**31 + 96, device="cuda").as_strided((2, 96), (2**31, 1))
    logits = tile(2, 96, places=False)
    for row in range(2):
        far[row] = logits[row]
    rows, columns = kernels.exponential_sums(far, 30.0, False)
    want = (logits.double() - 30).exp()
    close(rows, want.sum(1))
    close(columns, want.sum(0))
    top, total = torch.full((2,), -math.inf, device="cuda"), torch.zeros(2, device="cuda")
    kernels.running_sums(far, top, total)
    close(top + total.log(), logits.logsumexp(1))
    kernels.softmax_rows(far, torch.zeros(2, device="cuda"), torch.ones(2, device="cuda"), far)
    close(far, logits.double().exp())
