"""Complex values: every rule that has to know them, Fourier transforms, and whole networks with complex values inside."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from every_kind import groups
from oracle import assert_agrees, initialize, normal
from rule_cases import SHAPE, Case, Differs, aten, check_table
from torch import Tensor, nn

Z = normal(*SHAPE, seed=1)
C = torch.complex(Z, normal(*SHAPE, seed=5))
D = torch.complex(normal(*SHAPE, seed=6), normal(*SHAPE, seed=7))
ROW = torch.linspace(0.5, 1, 5, dtype=torch.float64)


def of(target: object, *options: object, base: Tensor = C, keeps: bool = False, **named: object) -> Case:
    return Case(target, (Differs(base), *options), dict(named), keeps=keeps)


VALUES = {
    **{
        name: of(getattr(aten, name).default, keeps=True)
        for name in ["neg", "exp", "expm1", "square", "reciprocal", "abs", "tanh", "sin", "sqrt", "sgn"]
    },
    "angle": of(aten.angle.default, base=C + 4, keeps=True),
    "log": of(aten.log.default, base=C + 4, keeps=True),
    "angle_of_real": of(aten.angle.default, base=Z, keeps=True),
    "pow_2": of(aten.pow.Tensor_Scalar, 2, keeps=True),
    "pow_3": of(aten.pow.Tensor_Scalar, 3, keeps=True),
    "pow_other": of(aten.pow.Tensor_Scalar, 1.5, base=C + 4, keeps=True),
    "conj": of(aten._conj.default, keeps=True),
    "conj_physical": of(aten.conj_physical.default, keeps=True),
    "resolve_conj": of(aten.resolve_conj.default, keeps=True),
    "neg_view": of(aten._neg_view.default, base=Z, keeps=True),
    "real": of(aten.real.default, keeps=True),
    "imag": of(aten.imag.default, keeps=True),
    "view_as_real": of(aten.view_as_real.default),
    "view_as_complex": of(aten.view_as_complex.default, base=normal(2, 4, 3, 2)),
    "complex_first": Case(aten.complex.default, (Differs(Z), ROW), keeps=True),
    "complex_both": Case(aten.complex.default, (Differs(Z), Differs(ROW, seed=1))),
    "polar_size": Case(aten.polar.default, (Differs(Z.abs()), Z), keeps=True),
    "polar_angle": Case(aten.polar.default, (Z.abs(), Differs(Z)), keeps=True),
    "polar_both": Case(aten.polar.default, (Differs(Z.abs()), Differs(Z, seed=1))),
    "add": Case(aten.add.Tensor, (Differs(C), D), keeps=True),
    "add_real": Case(aten.add.Tensor, (D, Differs(Z)), keeps=True),
    "sub_both": Case(aten.sub.Tensor, (Differs(C), Differs(Z, seed=1))),
    "mul": Case(aten.mul.Tensor, (Differs(C), D), keeps=True),
    "mul_real": Case(aten.mul.Tensor, (Differs(Z), D), keeps=True),
    "mul_number": Case(aten.mul.Tensor, (Differs(Z), 0.5j), keeps=True),
    "mul_both": Case(aten.mul.Tensor, (Differs(C), Differs(D, seed=1))),
    "div": Case(aten.div.Tensor, (Differs(C), Differs(D + 4, seed=1))),
    "div_by_real": Case(aten.div.Tensor, (D, Differs(Z.abs() + 3)), keeps=True),
    "where": Case(aten.where.self, (Z > 0, Differs(Z), D), keeps=True),
    "where_differing": Case(aten.where.self, (Differs(Z > 0), Differs(C, seed=1), D)),
    "eq": Case(aten.eq.Tensor, (Differs(C), D), keeps=True),
    "addcmul": Case(aten.addcmul.default, (Differs(C), Differs(D, seed=1), D)),
    "to_real_part": Case(aten.clone.default, (Differs(C),), keeps=True),
    "wider": Case(aten._to_copy.default, (Differs(C),), {"dtype": torch.complex128}, keeps=True),
    "cumsum": of(aten.cumsum.default, 1),
    "prod": of(aten.prod.dim_int, 1),
}


@pytest.mark.parametrize("table", groups(VALUES, size=50))
def test_value(table: dict[str, Case]) -> None:
    check_table(table)


SIGNAL = normal(2, 64, seed=3)
WINDOW = torch.hann_window(16, dtype=torch.float64)
SPECTRUM = torch.stft(SIGNAL, 16, window=WINDOW, return_complex=True)
FOURIER = {
    "fft": of(aten.fft_fft.default),
    "fft_real": of(aten.fft_fft.default, base=Z),
    "fft_sized": of(aten.fft_fft.default, 8, 1, "ortho"),
    "fft_shorter": of(aten.fft_fft.default, 3, -2),
    "ifft": of(aten.fft_ifft.default, None, 2),
    "rfft": of(aten.fft_rfft.default, base=Z),
    "rfft_sized": of(aten.fft_rfft.default, 8, 0, base=Z),
    "irfft": of(aten.fft_irfft.default),
    "irfft_odd": of(aten.fft_irfft.default, 7, 1),
    "hfft": of(aten.fft_hfft.default),
    "ihfft": of(aten.fft_ihfft.default, base=Z),
    "fft2": of(aten.fft_fft2.default),
    "ifft2": of(aten.fft_ifft2.default, None, [1, 3], "ortho"),
    "rfft2": of(aten.fft_rfft2.default, [4, 4], base=Z),
    "irfft2": of(aten.fft_irfft2.default, [3, 6]),
    "fftn": of(aten.fft_fftn.default),
    "fftn_sized": of(aten.fft_fftn.default, [4, 4]),
    "ifftn": of(aten.fft_ifftn.default, None, [0, 2]),
    "rfftn": of(aten.fft_rfftn.default, base=Z),
    "irfftn": of(aten.fft_irfftn.default, None, [1, 2]),
    "fft_integers": of(aten.fft_fft.default, base=(3 * Z).round()),
    "shift": of(aten.fft_fftshift.default),
    "shift_one": of(aten.fft_ifftshift.default, [1]),
    "stft": of(aten.stft.default, 16, None, None, WINDOW, False, None, True, base=SIGNAL),
    "stft_one_signal": of(aten.stft.default, 16, 5, 12, WINDOW[:12], True, False, True, base=SIGNAL[0]),
    "stft_parts": of(aten.stft.default, 16, None, None, WINDOW, False, None, False, base=SIGNAL),
    "istft": of(aten.istft.default, 16, None, None, WINDOW, base=SPECTRUM),
    "istft_one_signal": of(aten.istft.default, 16, None, None, WINDOW, base=SPECTRUM[0]),
}


def test_fourier() -> None:
    check_table(FOURIER)


class SpectralLayer(nn.Module):
    """A Fourier layer with a real and an imaginary weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(2, 2, 1), nn.Conv1d(2, 2, 1)
        self.real, self.imag = nn.Parameter(torch.zeros(2, 2, 5)), nn.Parameter(torch.zeros(2, 2, 5))

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.complex(self.real, self.imag)
        mixed = (torch.fft.rfft(self.first(x)).unsqueeze(2) * weight).sum(1)
        return self.last(torch.fft.irfft(mixed, n=x.shape[-1]))


class Mixer(nn.Module):
    """Tokens mixed by the real part of a Fourier transform over features and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.fft.fft(torch.fft.fft(self.a(x), dim=-1), dim=-2).real).mean(1)


class Spectrogram(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 1, 3, padding=1), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        window = torch.hann_window(16, dtype=x.dtype)
        return self.b(torch.stft(self.a(x)[:, 0], 16, window=window, return_complex=True).abs().mean(-1))


class Rotary(nn.Module):
    """Positions as rotations of pairs of features."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        turn = torch.polar(torch.ones(6, 4, dtype=x.dtype), torch.arange(24, dtype=x.dtype).reshape(6, 4))
        pairs = torch.view_as_complex(self.q(x).reshape(*x.shape[:-1], 4, 2)) * turn
        q = torch.view_as_real(pairs).flatten(-2)
        return self.o(torch.softmax(q @ q.transpose(-1, -2), -1) @ x).mean(1)


class Conjugates(nn.Module):
    """Power spectrum and cross spectrum by conjugates."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fft(self.a(x))
        power = (spectrum * spectrum.conj()).real
        return self.b(power + spectrum.conj().imag + spectrum.mH.real.mT).mean(1)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (SpectralLayer, (3, 2, 8)),
        (Mixer, (4, 6, 8)),
        (Spectrogram, (4, 2, 64)),
        (Rotary, (4, 6, 8)),
        (Conjugates, (4, 6, 8)),
    ],
)
def test_network(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model = initialize(make())
    target = normal(*model(normal(*shape, seed=3)).shape, seed=4)
    found = assert_agrees(model, F.mse_loss, normal(*shape, seed=3), target)
    assert all(bool(g.any()) for g in found.gradients.values())
