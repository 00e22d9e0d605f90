"""Modules that decide on tokens and other codes: special ids, padding, packets, routing by id."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pytest_torchexport import integers
from tests.branches.corpus.case import EXAMPLE, Case, Truth, call, seeded

CASES: list[Case] = []


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def octets(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)


class CutAtEos(nn.Module):
    """Sentence embedding: what stands behind the first end-of-sequence token does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.eos_token_id = 2
        self.embed = nn.Embedding(32000, 4)
        self.out = nn.Linear(4, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids)
        if (ids == self.eos_token_id).any():
            seen = (ids == self.eos_token_id).cumsum(1)
            alive = (seen == 0).unsqueeze(-1).to(hidden.dtype)
            hidden = hidden * alive
            return self.out(hidden.sum(1) / alive.sum(1).clamp_min(1))
        return self.out(hidden.mean(1))


CASES.append(
    Case(
        "cut at eos",
        make=lambda: seeded(CutAtEos),
        args=lambda: (ids([1, 7033, 29909, 518, 4, 28], [1, 916, 12002, 5999, 31871, 8]),),
        decisions=[
            Truth(
                "(ids == self.eos_token_id).any()",
                true=lambda: call(ids([1, 7033, 2, 518, 4, 28], [1, 916, 12002, 5999, 31871, 8])),
                false=EXAMPLE,
            )
        ],
        wrong={
            "trace": "(ids == self.eos_token_id).any()",
            "onnx-torchscript": "(ids == self.eos_token_id).any()",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script", "compile"),
    )
)


class PadAwareEncoder(nn.Module):
    """Bag of tokens that skips padding; a batch with an empty row takes a learned vector for it."""

    def __init__(self, vocab: int = 50, width: int = 8, pad: int = 0) -> None:
        super().__init__()
        self.pad = pad
        self.embed = nn.Embedding(vocab, width, padding_idx=pad)
        self.empty = nn.Parameter(torch.randn(width))
        self.out = nn.Linear(width, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        padding = ids.eq(self.pad)
        hidden = self.embed(ids)
        if not padding.any():
            return self.out(hidden.mean(1))
        count = (~padding).sum(1, keepdim=True)
        pooled = hidden.sum(1) / count.clamp_min(1)
        empty = padding.all(dim=1)
        if empty.any():
            pooled = torch.where(empty.unsqueeze(1), self.empty, pooled)
        return self.out(pooled)


CASES.append(
    Case(
        "pad-aware encoder",
        make=lambda: seeded(PadAwareEncoder),
        args=lambda: (ids([5, 18, 40, 7, 22], [31, 2, 9, 14, 49], [3, 3, 27, 11, 6]),),
        decisions=[
            Truth(
                "padding.any()",
                true=lambda: call(ids([5, 18, 40, 7, 22], [31, 2, 9, 0, 0], [3, 3, 27, 11, 6])),
                false=EXAMPLE,
            ),
            Truth(
                "empty.any()",
                true=lambda: call(ids([5, 18, 40, 7, 22], [0, 0, 0, 0, 0], [3, 3, 27, 11, 6])),
                false=lambda: call(ids([5, 18, 40, 7, 22], [31, 2, 9, 0, 0], [3, 3, 27, 11, 6])),
            ),
        ],
        wrong={"trace": "padding.any()", "onnx-torchscript": "padding.any()", "export": "refused", "onnx": "refused"},
        right=("script",),
    )
)


class PromptedClassifier(nn.Module):
    """Appends the separator where the caller forgot it, and drops the class token where it was passed."""

    CLS = 101
    SEP = 102

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30522, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        if input_ids[0, 0] == self.CLS:
            input_ids = input_ids[:, 1:]
        if input_ids[0, -1].item() != self.SEP:
            input_ids = F.pad(input_ids, (0, 1), value=self.SEP)
        return self.head(self.embed(input_ids).mean(1))


CASES.append(
    Case(
        "prompted classifier",
        make=lambda: seeded(PromptedClassifier),
        args=lambda: (ids([2009, 2003, 1037, 2204, 3185, 1012]),),
        decisions=[
            Truth(
                "input_ids[0, 0] == self.CLS",
                false=EXAMPLE,
                true=lambda: call(ids([101, 2003, 1037, 2204, 3185, 1012])),
            ),
            Truth(
                "input_ids[0, -1].item() != self.SEP",
                false=lambda: call(ids([2009, 2003, 1037, 2204, 3185, 102])),
                true=EXAMPLE,
            ),
        ],
        wrong={
            "trace": "input_ids[0, 0] == self.CLS",
            "onnx-torchscript": "input_ids[0, 0] == self.CLS",
            "export": "refused",
            "onnx": "refused",
        },
    )
)


class SpecialTokenDropper(nn.Module):
    """Reserved ids do not take part in pooling; a text of reserved ids only gives the default answer."""

    def __init__(self, n_special: int = 5) -> None:
        super().__init__()
        self.n_special = n_special
        self.embed = nn.Embedding(30522, 4)
        self.register_buffer("default", torch.full((4,), 0.25))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if (ids < self.n_special).any():
            kept = ids[ids >= self.n_special]
            if kept.numel() == 0:
                return self.default
            return self.embed(kept).mean(0)
        return self.embed(ids.reshape(-1)).mean(0)


CASES.append(
    Case(
        "special token dropper",
        make=lambda: seeded(SpecialTokenDropper),
        args=lambda: (ids([2023, 30001, 2742], [1996, 7, 1012]),),
        decisions=[
            Truth(
                "(ids < self.n_special).any()", true=lambda: call(ids([2023, 1, 2742], [1996, 7, 1012])), false=EXAMPLE
            ),
            Truth(
                "kept.numel() == 0",
                true=lambda: call(ids([0, 1, 2], [4, 4, 3])),
                false=lambda: call(ids([2023, 1, 2742], [1996, 7, 1012])),
            ),
        ],
        wrong={
            "trace": "(ids < self.n_special).any()",
            "onnx-torchscript": "(ids < self.n_special).any()",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script", "compile"),
    )
)


class UniqueFeatures(nn.Module):
    """Sparse features of a recommender: repeated ids are looked up once and weighted by their counts."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(200, 4)

    def forward(self, feature_ids: torch.Tensor) -> torch.Tensor:
        unique, counts = feature_ids.unique(return_counts=True)
        if unique.numel() < feature_ids.numel():
            weights = counts.to(torch.float32).log1p()
            return (self.table(unique) * weights.unsqueeze(1)).sum(0)
        return self.table(feature_ids).sum(0)


CASES.append(
    Case(
        "unique features",
        make=lambda: seeded(UniqueFeatures),
        args=lambda: (torch.tensor([3, 150, 77, 28, 191]),),
        decisions=[
            Truth(
                "unique.numel() < feature_ids.numel()",
                true=lambda: call(torch.tensor([3, 150, 77, 3, 191])),
                false=EXAMPLE,
            )
        ],
        options={"inputs": {"feature_ids": integers(0, 199)}},
        wrong={
            "trace": "unique.numel() < feature_ids.numel()",
            "onnx-torchscript": "unique.numel() < feature_ids.numel()",
            "export": "refused",
            "onnx": "refused",
        },
    )
)


class TelemetryPacket(nn.Module):
    """A frame of bytes: sync byte, length, payload, checksum. Broken frames give zeros."""

    SYNC = 0x7E

    def __init__(self) -> None:
        super().__init__()
        self.decode = nn.Linear(6, 3)

    def forward(self, frame: torch.Tensor) -> torch.Tensor:
        if frame[0] != self.SYNC:
            return torch.zeros(3)
        length = int(frame[1])
        if length > frame.shape[0] - 3:
            return torch.full((3,), -1.0)
        payload = frame[2 : 2 + length]
        checksum = int(payload.sum()) % 256
        if checksum != int(frame[-1]):
            return torch.full((3,), -2.0)
        values = F.pad(payload.float() / 255, (0, 6 - length))
        return self.decode(values)


CASES.append(
    Case(
        "telemetry packet",
        make=lambda: seeded(TelemetryPacket),
        args=lambda: (octets(0x7E, 4, 10, 200, 33, 90, 77),),
        decisions=[
            Truth("frame[0] != self.SYNC", true=lambda: call(octets(0, 4, 10, 200, 33, 90, 77)), false=EXAMPLE),
            Truth("int(frame[1])", "number", other=lambda: call(octets(0x7E, 3, 10, 200, 33, 90, 243))),
            Truth(
                "length > frame.shape[0] - 3",
                true=lambda: call(octets(0x7E, 5, 10, 200, 33, 90, 77)),
                false=EXAMPLE,
            ),
            Truth(
                "checksum != int(frame[-1])",
                true=lambda: call(octets(0x7E, 4, 10, 200, 33, 90, 78)),
                false=EXAMPLE,
            ),
        ],
        options={"inputs": {"frame": integers(0, 255)}},
        wrong={
            "trace": "frame[0] != self.SYNC",
            "onnx-torchscript": "frame[0] != self.SYNC",
            "export": "refused",
            "onnx": "refused",
        },
    )
)


class LanguageRouter(nn.Module):
    """The first token names the target language; every language has its adapter, unknown ones share one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 8)
        self.adapters = nn.ModuleDict({"4": nn.Linear(8, 8), "5": nn.Linear(8, 8), "9": nn.Linear(8, 8)})
        self.shared = nn.Linear(8, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tokens).mean(1)
        language = str(tokens[0, 0].item())
        try:
            adapter = self.adapters[language]
        except KeyError:
            adapter = self.shared
        return adapter(hidden)


CASES.append(
    Case(
        "language router",
        make=lambda: seeded(LanguageRouter),
        args=lambda: (ids([4, 20, 11, 30], [4, 8, 16, 2]),),
        decisions=[
            Truth("tokens[0, 0].item()", "number", other=lambda: call(ids([5, 20, 11, 30], [4, 8, 16, 2]))),
            Truth("except KeyError", "exception", true=lambda: call(ids([7, 1, 1, 1], [4, 8, 16, 2])), false=EXAMPLE),
        ],
        wrong={
            "trace": "tokens[0, 0].item()",
            "onnx-torchscript": "tokens[0, 0].item()",
            "export": "tokens[0, 0].item()",
            "onnx": "tokens[0, 0].item()",
        },
        right=("compile",),
    )
)


class SegmentPooler(nn.Module):
    """Sentence pairs: where the segment changes, both parts are pooled apart."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 8)
        self.segments = nn.Embedding(2, 8)
        self.pair = nn.Linear(16, 4)

    def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None = None) -> torch.Tensor:
        hidden = self.embed(input_ids)
        if token_type_ids is None:
            both = hidden.mean(1)
            return self.pair(torch.cat([both, both], dim=-1))
        hidden = hidden + self.segments(token_type_ids)
        change = token_type_ids[:, 1:] != token_type_ids[:, :-1]
        if not change.any():
            both = hidden.mean(1)
            return self.pair(torch.cat([both, both], dim=-1))
        second = token_type_ids.unsqueeze(-1).to(hidden.dtype)
        first = 1 - second
        left = (hidden * first).sum(1) / first.sum(1).clamp_min(1)
        right = (hidden * second).sum(1) / second.sum(1).clamp_min(1)
        return self.pair(torch.cat([left, right], dim=-1))


CASES.append(
    Case(
        "segment pooler",
        make=lambda: seeded(SegmentPooler),
        args=lambda: (ids([7, 33, 60, 12, 5]), ids([0, 0, 0, 1, 1])),
        decisions=[
            Truth("token_type_ids is None", true=lambda: call(ids([7, 33, 60, 12, 5])), false=EXAMPLE),
            Truth(
                "change.any()",
                true=EXAMPLE,
                false=lambda: call(ids([7, 33, 60, 12, 5]), ids([0, 0, 0, 0, 0])),
            ),
        ],
        wrong={"trace": "change.any()", "onnx-torchscript": "change.any()", "export": "refused", "onnx": "refused"},
        right=("script",),
    )
)
