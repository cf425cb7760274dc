"""Arrays as parameters of a black box: updated in place where that is safe, refused at construction where it is not."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deepzero as dz
from deepzero.errors import InvalidInputError
from deepzero.objective import parameters_of


def square(params: dict[str, Any]) -> float:
    """Sum of squares, each entry weighted by its place: (i + 1) w_i^2."""
    w = torch.as_tensor(np.asarray(params["w"])).double()
    return float((torch.arange(1, w.numel() + 1).reshape(w.shape) * w**2).sum())


def step(box: dz.BlackBox) -> torch.Tensor:
    """One step of gradient descent at rate 0.1 with exact differences; returns the gradient."""
    zo = dz.CGE(box, step_size=0.5, stencil=dz.CENTRAL)
    zo.backward()
    (parameter,) = box.parameters()
    torch.optim.SGD([parameter], lr=0.125).step()
    assert parameter.grad is not None
    return parameter.grad


def read_only() -> np.ndarray[Any, Any]:
    array = np.ones(3)
    array.setflags(write=False)
    return array


def field() -> np.ndarray[Any, Any]:
    return np.zeros(3, dtype=[("flag", "u1"), ("w", "f8")])["w"]


def inference() -> Tensor:
    with torch.inference_mode():
        return torch.ones(3)


def windows() -> np.ndarray[Any, Any]:
    return np.lib.stride_tricks.as_strided(np.ones(4), (3, 2), (8, 8))


REFUSED: dict[str, tuple[Callable[[], Any], str, Callable[[Any], Any] | None]] = {
    "read-only": (read_only, r"read-only .*np.array\(w\)", np.array),
    "broadcast": (lambda: np.broadcast_to(np.ones(3), (2, 3)), r"read-only .*np.array\(w\)", np.array),
    "windows": (windows, r"share memory.*np.array\(w\)", np.array),
    "backwards": (lambda: np.ones(6)[::-2], r"backwards.*np.array\(w\)", np.array),
    "backwards in one dimension": (lambda: np.ones((3, 4))[:, ::-1], "backwards", np.array),
    "byte order": (
        lambda: np.ones(3, dtype=np.dtype("f8").newbyteorder("S")),
        r"byte order.*w.astype\('float64'\)",
        lambda w: w.astype("float64"),
    ),
    "field of a record": (field, r"field of a record.*np.array\(w\)", np.array),
    "longdouble": (
        lambda: np.ones(3, dtype=np.longdouble),
        r"longdouble|float128.*w.astype\(np.float64\)",
        lambda w: w.astype(np.float64),
    ),
    "integers": (lambda: np.ones(3, dtype=int), r"real numbers, got int64.*w.astype", lambda w: w.astype(float)),
    "truth values": (lambda: np.ones(3, dtype=bool), "real numbers, got bool", lambda w: w.astype(float)),
    "objects": (lambda: np.array([1.0, 2], dtype=object), "real numbers, got object", lambda w: w.astype(float)),
    "text": (lambda: np.array(["1.0"]), "real numbers, got <U3", lambda w: w.astype(float)),
    "complex array": (lambda: np.ones(3, dtype=complex), r"w.real.copy\(\)", lambda w: w.real.copy()),
    "matrix": (lambda: np.ones((1, 1)).view(np.matrix), r"subclass matrix.*np.asarray\(w\)", np.asarray),
    "masked": (lambda: np.ma.masked_less(np.ones(3), 0), r"masked.*w.filled", lambda w: w.filled(0.0)),
    "number": (lambda: 1.5, r"is a number \(1.5\).*np.array\(w, dtype=float\)", lambda w: np.array(w, dtype=float)),
    "NumPy number": (lambda: np.float32(1), "is a number", lambda w: np.array(w, dtype=float)),
    "list": (
        lambda: [1],
        r"tensor or a NumPy array, got list; pass np.array\(w, dtype=float\)",
        lambda w: np.array(w, float),
    ),
    "expanded": (lambda: torch.ones(3, 1).expand(3, 4), r"share memory.*w.contiguous\(\)", Tensor.contiguous),
    "meta": (lambda: torch.ones(3, device="meta"), r"meta device.*torch.zeros\(\(3,\)\)", lambda w: torch.zeros((3,))),
    "sparse": (lambda: torch.eye(3).to_sparse(), r"not a dense tensor.*w.to_dense\(\)", Tensor.to_dense),
    "computed": (lambda: nn.Parameter(torch.ones(3)) * 2, "autograd", lambda w: w.detach().clone()),
    "entry of a parameter": (lambda: nn.Parameter(torch.ones(3))[:2], "autograd", lambda w: w.detach().clone()),
    "inference": (inference, r"inference_mode.*w.clone\(\)", Tensor.clone),
    "flipped": (lambda: torch.ones(3, dtype=torch.cfloat).conj().imag, r"w.resolve_neg\(\)", Tensor.resolve_neg),
    "float8": (lambda: torch.ones(3).to(torch.float8_e4m3fn), r"w.float\(\)", Tensor.float),
    "integer tensor": (lambda: torch.ones(3, dtype=torch.int32), r"real numbers, got torch.int32", Tensor.float),
    "complex tensor": (lambda: torch.ones(3, dtype=torch.cfloat), "two arrays", lambda w: w.real.clone()),
    "lazy": (lambda: nn.LazyLinear(2).weight, "no shape yet; call the lazy module once", None),
    "subclass": (lambda: torch.ones(3).as_subclass(type("Own", (Tensor,), {})), "subclass Own", None),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_updated_in_place_is_refused_with_what_to_type(kind: str) -> None:
    make, message, instead = REFUSED[kind]
    value = make()
    with pytest.raises(InvalidInputError, match=rf"(?s)params\['w'\].*{message}"):
        dz.BlackBox(square, {"w": value})
    if instead is not None:
        step(dz.BlackBox(square, {"w": instead(value)}))


def test_read_only_arrays_are_not_written() -> None:
    array = read_only()
    with pytest.raises(InvalidInputError):
        dz.BlackBox(square, {"w": array})
    assert array.tolist() == [1, 1, 1]


def test_a_file_that_is_mapped_read_only_is_refused_and_a_writable_one_is_trained(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", np.ones(3))
    with pytest.raises(InvalidInputError, match=r'read-only.*mmap_mode="r\+"'):
        dz.BlackBox(square, {"w": np.load(tmp_path / "w.npy", mmap_mode="r")})
    mapped = np.load(tmp_path / "w.npy", mmap_mode="r+")
    step(dz.BlackBox(square, {"w": mapped}))
    mapped.flush()
    assert np.load(tmp_path / "w.npy").tolist() == [0.75, 0.5, 0.25]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "layout",
    [
        lambda a: a,
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        lambda a: np.stack([a, a], axis=2)[:, :, 1],
        lambda a: a.T.copy().T,
    ],
)
def test_every_layout_without_overlap_is_updated_in_place(dtype: Any, layout: Callable[[Any], Any]) -> None:
    """The gradient of sum (i + 1) w_i^2 at 1 is 2 (i + 1), whichever way the entries lie in memory."""
    array = layout(np.ones((2, 3), dtype=dtype))
    place = 1 + np.arange(6.0).reshape(2, 3)
    gradient = step(dz.BlackBox(square, {"w": array}))
    assert gradient.tolist() == (2 * place).tolist()
    assert array.tolist() == (1 - place / 4).tolist()


def test_a_tensor_that_requires_gradients_is_its_own_parameter() -> None:
    """An optimizer that was given the tensor itself must see the estimate."""
    for w in (nn.Parameter(torch.ones(2)), torch.ones(2, requires_grad=True)):
        box = dz.BlackBox(square, {"w": w})
        dz.CGE(box, step_size=0.5, stencil=dz.CENTRAL).backward()
        torch.optim.SGD([w], lr=0.125).step()
        assert w.tolist() == [0.75, 0.5]


def test_an_array_without_entries_beside_others() -> None:
    box = dz.BlackBox(square, {"w": np.ones(2), "none": np.zeros((0, 3))})
    for zo in (dz.CGE(box, step_size=0.5, stencil=dz.CENTRAL), dz.RGE(box, queries=2)):
        assert zo.estimate().gradients["none"].shape == (0, 3)


def scaled_sum(x: Any, scale: float) -> float:
    return scale * float(x.sum())


@pytest.mark.parametrize(
    ("array", "kind"), [(np.ones(3), np.ndarray), (torch.ones(3), Tensor), (np.ones(()), np.ndarray)]
)
def test_a_bare_array_is_handed_on_as_it_is(array: Any, kind: type) -> None:
    seen = []

    def fn(x: Any, scale: float) -> float:
        seen.append(type(x))
        return scaled_sum(x, scale)

    box = dz.BlackBox(fn, array)
    found = dz.CGE(box, step_size=0.5).estimate(3.0)
    assert box.values["x"] is array
    assert found.gradients["x"].tolist() == np.full(array.shape, 3.0).tolist()
    assert set(seen) == {kind}


def test_a_bare_array_travels_to_other_processes() -> None:
    box = dz.BlackBox(scaled_sum, np.ones(3))
    function = pickle.loads(pickle.dumps(box.worker_function()))
    assert function.losses([parameters_of(box)], (2.0,)) == [6.0]


def test_bare_arrays_are_stacked() -> None:
    box = dz.BlackBox(lambda x: (x**2).sum(axis=1), np.ones(3), batched=2)
    assert dz.CGE(box, step_size=0.5, stencil=dz.CENTRAL).estimate().gradients["x"].tolist() == [2, 2, 2]


def test_a_module_gives_its_trainable_parameters_by_name() -> None:
    model = nn.Linear(2, 1)
    nn.init.ones_(model.weight)
    model.bias.requires_grad_(False)
    names = []

    def fn(params: dict[str, Tensor]) -> float:
        names.append(list(params))
        return float((params["weight"] ** 2).sum())

    box = dz.BlackBox(fn, model)
    dz.CGE(box, step_size=0.5, stencil=dz.CENTRAL).backward()
    torch.optim.SGD(model.parameters(), lr=0.25).step()
    assert model.weight.tolist() == [[0.5, 0.5]]
    assert names[0] == ["weight"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            [1.0, 2.0],
            r"params must be arrays by name, one array or tensor, or a torch.nn.Module, .* got list; pass np.array",
        ),
        (3.0, r"params must be arrays by name.* got float; pass np.array\(params, dtype=float\)"),
        ("0.5", r'got str; for example \{"w": np.zeros\(3\)\}'),
        ([np.ones(2), np.ones(3)], r'got list; for example \{"w": np.zeros\(3\)\}'),
        (None, "got NoneType; for example"),
        ({}, "must name at least one array"),
        ({"layer": {"w": np.ones(2)}}, r"params\['layer'\] is a dict: names are not nested; .* such as 'layer.w'"),
        ({"layer": nn.Linear(2, 1)}, r"params\['layer'\] is a Linear: names are not nested"),
        ({"w": "0.5"}, r"params\['w'\] must be a tensor or a NumPy array, got str$"),
        (nn.Linear(1, 1).requires_grad_(False), "no trainable parameter"),
        (np.zeros((0, 2)), "hold no number"),
        ({"w": np.zeros(0), "v": torch.zeros(2, 0)}, "hold no number"),
        ({0: np.zeros(2)}, "names of params must be strings, got 0; try '0'"),
        (np.zeros(2, dtype=int), r"params\['x'\] must hold real numbers"),
    ],
)
def test_what_is_no_set_of_arrays(params: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        dz.BlackBox(square, params)


FLAT = np.arange(6.0)


@pytest.mark.parametrize(
    ("params", "apart"),
    [
        ({"a": FLAT[:3], "b": FLAT[3:]}, True),
        ({"a": FLAT[:3], "b": FLAT[2:]}, False),
        ({"b": FLAT, "a": FLAT}, False),
        ({"a": np.asfortranarray(np.ones((2, 3))), "b": torch.ones(2)}, True),
        ({"a": FLAT.reshape(2, 3).T, "b": torch.from_numpy(FLAT)[4:5]}, False),
        ({"a": FLAT[:0], "b": FLAT, "c": FLAT[6:]}, True),
    ],
    ids=["side by side", "overlapping", "the same", "two", "array and tensor", "without entries"],
)
def test_an_array_is_moved_under_one_name_only(params: Any, apart: bool) -> None:
    """Two names of one number would be differenced one by one and moved together."""
    if apart:
        assert set(dz.BlackBox(square, params).values) == set(params)
        return
    with pytest.raises(InvalidInputError, match=r"params\['\w'\] and params\['\w'\] share memory.*or copies"):
        dz.BlackBox(square, params)
