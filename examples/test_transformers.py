"""Two models from Hugging Face's `transformers`, tiny and with random weights: BERT, and a decoder with a KV cache.

BERT returns a `ModelOutput`, a dictionary that can be indexed like a tuple; the comparison knows both. The decoder is
exported for one step of generation: it takes the keys and values of the tokens so far and returns them with those of the
new token, so the length of the past is dynamic, and the cache an input and an output.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim

from pytest_torchexport import integers

transformers = pytest.importorskip("transformers")

VOCABULARY = 100


@pytest.mark.export_equivalent(backends=["trace", "compile", "export", "onnx"])
def test_bert(export_check):
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    model = transformers.BertModel(config).eval()
    length = Dim("length", min=2, max=16)
    example = {"input_ids": torch.randint(0, VOCABULARY, (2, 8)), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    export_check(
        model,
        kwargs=example,
        inputs={"input_ids": integers(0, VOCABULARY - 1), "attention_mask": integers(0, 1)},
        dynamic_shapes={"input_ids": {1: length}, "attention_mask": {1: length}},
    )


class DecoderStep(nn.Module):
    """One step of generation, with the cache as plain tensors: a pair of keys and values for each layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, past: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    ) -> tuple[torch.Tensor, tuple[tuple[torch.Tensor, torch.Tensor], ...]]:
        cache = transformers.DynamicCache(past)
        out = self.model(input_ids=input_ids, past_key_values=cache, use_cache=True)
        return out.logits, tuple((layer.keys, layer.values) for layer in out.past_key_values.layers)


@pytest.mark.export_equivalent(backends=["trace", "compile", "export", "onnx"])
def test_decoder_with_cache(export_check):
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    model = DecoderStep(transformers.LlamaForCausalLM(config).eval()).eval()
    past = tuple((torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)) for _ in range(config.num_hidden_layers))
    length = Dim("past_length", min=2, max=20)
    export_check(
        model,
        (torch.randint(0, VOCABULARY, (1, 1)), past),
        inputs={"input_ids": integers(0, VOCABULARY - 1)},
        dynamic_shapes={"input_ids": None, "past": tuple(({2: length}, {2: length}) for _ in past)},
    )
