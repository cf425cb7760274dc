"""Plain PyTorch models: nothing in them knows how they are trained."""

from deepzero.models.correctors import FlowCorrector
from deepzero.models.denoisers import AUTOENCODERS, Autoencoder, DnCNN, UNetDenoiser
from deepzero.models.digits_cnn import DigitsCNN
from deepzero.models.gpt import GPT, CausalAttention, LowRankLinear, TransformerBlock, adapt_attention
from deepzero.models.lenet import LeNet
from deepzero.models.local_mixer import LocalMixer
from deepzero.models.mlp import MLP
from deepzero.models.model_registry import build, names, require_known
from deepzero.models.resnet import PaddedShortcut, ResNet, cifar_resnet, resnet18
from deepzero.models.simple_cnn import SimpleCNN
from deepzero.models.wide_cnn import WideCNN

__all__ = [
    "AUTOENCODERS",
    "GPT",
    "MLP",
    "Autoencoder",
    "CausalAttention",
    "DigitsCNN",
    "DnCNN",
    "FlowCorrector",
    "LeNet",
    "LocalMixer",
    "LowRankLinear",
    "PaddedShortcut",
    "ResNet",
    "SimpleCNN",
    "TransformerBlock",
    "UNetDenoiser",
    "WideCNN",
    "adapt_attention",
    "build",
    "cifar_resnet",
    "names",
    "require_known",
    "resnet18",
]
