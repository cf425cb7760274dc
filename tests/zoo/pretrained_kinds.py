"""Networks of the transformers library, from tiny configurations with random weights: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from torch import Tensor, nn

BATCH, LENGTH, VOCABULARY = 3, 5, 20


def tokens(seed: int, length: int = LENGTH) -> Tensor:
    return torch.randint(1, VOCABULARY, (BATCH, length), generator=torch.Generator().manual_seed(seed))


def bert() -> nn.Module:
    """Dropout on, and attention with a mask."""
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
        num_labels=3,
    )
    return transformers.BertForSequenceClassification(config).train()


def bert_batch() -> dict[str, Tensor]:
    attended = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    attended[1, 3:] = 0
    return {"input_ids": tokens(0), "attention_mask": attended, "labels": torch.tensor([0, 2, 1])}


def gpt2() -> nn.Module:
    """Dropout on, head tied to the embedding, the cache that its forward makes by default."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=8,
        n_embd=8,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=2,
        loss_type="ForCausalLM",
    )
    return transformers.GPT2LMHeadModel(config).train()


def llama() -> nn.Module:
    """Rotary positions, grouped queries, RMS norm in float32."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8,
    )
    return transformers.LlamaForCausalLM(config).train()


def t5() -> nn.Module:
    """Encoder and decoder, trained attention bias, dropout on."""
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=8,
        d_kv=4,
        d_ff=12,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=2,
        relative_attention_num_buckets=6,
        relative_attention_max_distance=8,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config).train()


def t5_batch() -> dict[str, Tensor]:
    labels = tokens(1, length=4)
    labels[0, -1] = -100
    return {"input_ids": tokens(0), "labels": labels}


def language_batch() -> dict[str, Tensor]:
    return {"input_ids": tokens(0), "labels": tokens(0)}


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    return transformers.ViTForImageClassification(config).train()


def swin() -> nn.Module:
    """Shifted windows, stochastic depth."""
    config = transformers.SwinConfig(
        image_size=16,
        patch_size=2,
        embed_dim=4,
        depths=[2, 1],
        num_heads=[1, 2],
        window_size=4,
        mlp_ratio=2.0,
        drop_path_rate=0.2,
        num_labels=3,
    )
    return transformers.SwinForImageClassification(config).train()


def pictures(size: int) -> Callable[[], dict[str, Tensor]]:
    def batch() -> dict[str, Tensor]:
        values = torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(2))
        return {"pixel_values": values, "labels": torch.tensor([0, 2, 1])}

    return batch


def mamba() -> nn.Module:
    """A selective state space: a recurrence over the sequence, written out."""
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        state_size=3,
        num_hidden_layers=1,
        expand=2,
        time_step_rank=2,
        time_step_min=0.5,
        time_step_max=2.0,
        initializer_range=0.5,
    )
    return transformers.MambaForCausalLM(config).train()


class LowRank(nn.Module):
    """LoRA: a frozen layer beside a product of two thin matrices."""

    def __init__(self, frozen: nn.Module, width: int, height: int, rank: int = 2) -> None:
        super().__init__()
        self.frozen = frozen
        self.down = nn.Parameter(torch.randn(width, rank) / width**0.5)
        self.up = nn.Parameter(torch.zeros(rank, height))
        self.scale = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.scale * (x @ self.down @ self.up)


def adapted_gpt2() -> nn.Module:
    """GPT-2 whose attention projections carry low-rank adapters; all else is frozen."""
    model = gpt2().eval().requires_grad_(requires_grad=False)
    for block in model.transformer.h:
        block.attn.c_attn = LowRank(block.attn.c_attn, width=8, height=24)
    return model
