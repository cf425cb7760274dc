import platform

import torch

import deepzero
from deepzero.training import hardware, versions


def test_versions_are_those_in_use() -> None:
    assert versions() == {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepzero": deepzero.__version__,
    }


def test_hardware_names_processor_and_cores() -> None:
    found = hardware(torch.device("cpu"))
    assert found["cpu"]
    assert found["cores"] >= 1
    assert found["threads"] == torch.get_num_threads()
    assert found["gpu"] is None
