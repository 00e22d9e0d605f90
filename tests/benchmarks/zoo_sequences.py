"""Architectures that see sequences: recurrent, attentive, spectral; and language models of transformers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from tests.benchmarks.zoo import Made, architecture

if TYPE_CHECKING:
    from collections.abc import Callable


class _Tagger(nn.Module):
    def __init__(self, cell: Callable[..., nn.RNNBase], *, both: bool) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(40, 12), cell(12, 16, batch_first=True, bidirectional=both)
        self.head = nn.Linear(32 if both else 16, 5)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, last = self.rnn(self.embed(tokens))
        return self.head(hidden).log_softmax(-1), last[0] if isinstance(last, tuple) else last


@architecture
def lstm() -> Made:
    return _Tagger(nn.LSTM, both=True), (torch.randint(0, 40, (3, 9)),), {}


@architecture
def gru() -> Made:
    return _Tagger(nn.GRU, both=False), (torch.randint(0, 40, (3, 9)),), {}


class _LstmCell(nn.Module):
    """An LSTM that is written out, as many models do."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.out = nn.Linear(6 + 12, 48), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = cell = x.new_zeros(x.shape[0], 12)
        for step in x.unbind(1):
            i, f, g, o = self.gates(torch.cat([step, hidden], dim=1)).chunk(4, dim=1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
        return self.out(hidden)


@architecture
def unrolled_lstm() -> Made:
    return _LstmCell(), (torch.randn(3, 5, 6),), {}


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu", norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x))


@architecture
def transformer_encoder() -> Made:
    return _Encoder(), (torch.randn(2, 7, 32),), {}


class _Masked(nn.Module):
    """Causal attention with a padding mask, fused by torch."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(32, 96), nn.Linear(32, 32), nn.LayerNorm(32)
        self.register_buffer("causal", torch.ones(16, 16, dtype=torch.bool).tril())

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, length, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        allowed = self.causal[:length, :length] & mask[:, None, None, :]
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return x + self.out(y.transpose(1, 2).reshape(n, length, 32))


@architecture
def masked_attention() -> Made:
    mask = torch.arange(8)[None] < torch.tensor([[5], [8]])
    # Where a row is masked altogether eager gives zeros, and ONNX Runtime the mean of the values.
    return _Masked(), (torch.randn(2, 8, 32), mask), {"assume": lambda x, mask: bool(mask[:, 0].all())}


class _HalfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.norm = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32), nn.LayerNorm(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.q(x) @ self.k(x).transpose(-2, -1) / math.sqrt(32)
        weights = scores.float().softmax(-1).to(x.dtype)
        return self.norm(x + weights @ self.v(x))


@architecture
def float16_attention() -> Made:
    return _HalfAttention().half(), (torch.randn(2, 9, 32).half(),), {}


class _Spectrogram(nn.Module):
    """A short-time Fourier transform by hand, the power on mel-like bands, a logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(32))
        self.register_buffer("bands", torch.rand(17, 8))
        self.conv = nn.Conv1d(8, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frames = x.unfold(-1, 32, 16) * self.window
        power = torch.fft.rfft(frames).abs().pow(2)
        return self.conv(torch.log(power @ self.bands + 1e-3).transpose(1, 2))


@architecture
def spectrogram() -> Made:
    return _Spectrogram(), (torch.randn(2, 160),), {}


class _Temporal(nn.Module):
    """Causal dilated convolutions with gates, weights normalised in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv1d(4, 16, 1)
        self.gates = nn.ModuleList(nn.Conv1d(16, 32, 2, dilation=d) for d in (1, 2, 4))
        self.out = nn.Conv1d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner(x)
        for conv in self.gates:
            one, gate = conv(functional.pad(x, (int(conv.dilation[0]), 0))).chunk(2, dim=1)
            x = x + torch.tanh(one) * torch.sigmoid(gate)
        return functional.softplus(self.out(x))


@architecture
def wavenet() -> Made:
    return _Temporal(), (torch.randn(2, 4, 20),), {}


class _Language(nn.Module):
    """A model of transformers, called with plain tensors and returning one."""

    def __init__(self, model: nn.Module, *, decoder: bool = False) -> None:
        super().__init__()
        self.model, self.decoder = model, decoder

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        more = {"decoder_input_ids": tokens} if self.decoder else {}
        found: Any = self.model(input_ids=tokens, attention_mask=mask, use_cache=False, return_dict=False, **more)
        return found[0]


def _language(model: nn.Module, *, decoder: bool = False) -> Made:
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[0, 6:] = 0
    options = {"assume": lambda tokens, mask: bool((mask[:, 0] == 1).all())}
    return _Language(model, decoder=decoder), (torch.randint(3, 60, (2, 8)), mask), options


_SMALL: dict[str, Any] = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@architecture
def bert() -> Made:
    from transformers import BertConfig, BertModel

    config = BertConfig(**_SMALL, intermediate_size=64, max_position_embeddings=32, attn_implementation="eager")
    return _language(BertModel(config, add_pooling_layer=False))


@architecture
def gpt2() -> Made:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=60, n_positions=32, n_embd=32, n_layer=2, n_head=4, attn_implementation="eager", eos_token_id=2
    )
    return _language(GPT2LMHeadModel(config))


@architecture
def t5() -> Made:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    return _language(T5ForConditionalGeneration(config), decoder=True)


@architecture
def llama() -> Made:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**_SMALL, intermediate_size=64, num_key_value_heads=2, max_position_embeddings=32)
    return _language(LlamaForCausalLM(config))
