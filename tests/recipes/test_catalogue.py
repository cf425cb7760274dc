import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from deepzero import models
from deepzero.errors import InvalidInputError
from deepzero.models.digits_cnn import DigitsCNN
from deepzero.models.resnet import ResNet
from deepzero.models.simple_cnn import SimpleCNN
from deepzero.recipes import RECIPES, catalogue_of, find
from deepzero.recipes.catalogue import COMMANDS
from deepzero.sparsity import smart_ratio


def build(name: str, **options: Any) -> DigitsCNN | ResNet | SimpleCNN:
    config = find(name).config()
    return models.build(config.model.name, **{**config.model.options, **options})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_recipe_is_complete(command: str) -> None:
    for name, recipe in catalogue_of(command).items():
        assert recipe.name == name
        assert recipe.summary.endswith(".")
        assert recipe.cost
        assert recipe.config() == recipe.config()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_default_recipe(command: str) -> None:
    module = importlib.import_module(f"deepzero.recipes.{COMMANDS[command]}")
    assert module.DEFAULT in catalogue_of(command)


def test_the_main_job_is_the_whole_pipeline() -> None:
    config = find("digits").config()
    assert config.estimator.method == "cge"
    assert (config.sparsity.sparsity, config.sparsity.ratios) == (0.9, "zo-grasp")
    assert (config.sparsity.every, config.sparsity.unit) == (1, "step")
    model = build("digits", image_size=8, in_channels=1)
    assert 4500 < sum(p.numel() for p in model.parameters()) < 5500
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


def test_the_dense_variant_differs_in_sparsity_only() -> None:
    sparse, dense = find("digits").config(), find("digits-dense").config()
    assert dense.sparsity.sparsity == 0
    assert (dense.data, dense.model, dense.estimator, dense.training) == (
        sparse.data,
        sparse.model,
        sparse.estimator,
        sparse.training,
    )


def test_the_paper_recipe_keeps_the_settings_of_the_paper() -> None:
    config = find("cifar10-resnet20").config()
    assert config.model.name == "resnet20"
    assert (config.data.name, config.data.batch_size, config.data.drop_last) == ("cifar10", 256, False)
    assert (config.data.padding, config.data.flip) == (4, True)
    assert (config.estimator.method, config.estimator.step_size, config.estimator.stencil) == ("cge", 5e-3, "forward")
    assert (config.sparsity.sparsity, config.sparsity.every, config.sparsity.unit) == (0.9, 5, "epoch")
    training = config.training
    assert (training.epochs, training.learning_rate, training.momentum) == (50, 0.1, 0.9)
    assert (training.weight_decay, training.warmup_epochs) == (5e-4, 3)
    model = build("cifar10-resnet20")
    kept = sum(ratio * model.get_parameter(name).numel() for name, ratio in smart_ratio(model, 0.9).items())
    assert kept == pytest.approx(26_833, rel=1e-3)


@pytest.mark.parametrize(("depth", "parameters"), [(1, 730), (2, 3700), (3, 6670), (4, 9640), (5, 12610)])
def test_the_cnn_of_the_paper_has_its_sizes(depth: int, parameters: int) -> None:
    assert sum(p.numel() for p in build("cifar10-cnn", depth=depth).parameters()) == parameters


IMAGES = {"digits": (1, 8), "fashion-mnist": (1, 28), "cifar10": (3, 32)}


@pytest.mark.parametrize("name", RECIPES)
def test_the_network_of_a_recipe_fits_its_images(name: str) -> None:
    """Ten logits an image, which depend on the image and on every layer: all ten classes get a gradient."""
    channels, size = IMAGES[find(name).config().data.name]
    options = {} if name.startswith("cifar10") else {"image_size": size, "in_channels": channels}
    model = build(name, **options)
    images = torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(0))
    logits = model(images)
    assert logits.shape == (3, 10)
    assert all(not torch.equal(logits[i], logits[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    F.cross_entropy(logits, torch.tensor([0, 4, 9])).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    last = list(model.parameters())[-1]
    assert last.shape == (10,)
    assert bool((last.grad != 0).all())


def test_fashion_mnist_spends_a_step_by_cost_and_redraws_at_every_one() -> None:
    sparsity = find("fashion-mnist-cnn").config().sparsity
    assert (sparsity.ratios, sparsity.exponent, sparsity.weights) == ("cost-aware", 0.5, "smart-ratio")
    assert (sparsity.sparsity, sparsity.pattern, sparsity.every, sparsity.unit) == (0.9, "dynamic", 1, "step")


def test_an_unknown_recipe_names_the_nearest_and_all() -> None:
    with pytest.raises(
        InvalidInputError, match=r"unknown recipe 'digit' \(did you mean digits\?\); there are: digits, "
    ):
        find("digit")
    with pytest.raises(InvalidInputError, match="unknown recipe 'zzz'; there are"):
        find("zzz")
    with pytest.raises(InvalidInputError, match=r"unknown correction 'wake-smal' \(did you mean wake-small\?\)"):
        catalogue_of("correct").find("wake-smal")
