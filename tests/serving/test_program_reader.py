"""The reader of exported programs against torch's own loader: same numbers, and what it does not know goes to torch."""

from __future__ import annotations

import gc
import io
import json
import weakref
import zipfile
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from serving import ArtifactError
from serving.artifacts import archive, program
from serving.artifacts.exporting import quiet


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.heads = nn.Embedding(50, 16), nn.Linear(16, 48)
        self.norm, self.out, self.dropout = nn.LayerNorm(16), nn.Linear(16, 3), nn.Dropout(0.1)

    def forward(self, words: Tensor) -> Tensor:
        hidden = self.norm(self.embedding(words))
        query, key, value = (part.unflatten(2, (2, 8)).transpose(1, 2) for part in self.heads(hidden).chunk(3, 2))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return nn.functional.gelu(self.out((hidden + self.dropout(mixed)).mean(1)))


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5)
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        outputs, (last, _) = self.layer(steps)
        return self.out(last[-1]), outputs.amax(1)


class Constants(nn.Module):
    """Sizes, types, infinite constants, lists of results, an empty parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.tensor([1.0, 2.0, float("inf")]))
        self.nothing = nn.Parameter(torch.zeros(0))

    def forward(self, amounts: Tensor, codes: Tensor) -> tuple[Tensor, ...]:
        rows = amounts.shape[0]
        wide = torch.cat([amounts.reshape(rows, 1), torch.full((rows, 3), rows / 4)], 1)
        left, right = torch.split(wide, 2, dim=1)
        found = self.table[codes]
        scored = left.sum(1) + right.mean(1) + torch.where(torch.isinf(found), -1.0, found) + self.nothing.sum()
        return scored, torch.sort(wide, 1)[0], wide.to(torch.float64).clamp(min=0.5).to(torch.float32)


class Masked(nn.Module):
    """Constants that JSON has no number for: what a mask puts in place of scores, and bounds that bound nothing."""

    def forward(self, values: Tensor) -> tuple[Tensor, ...]:
        scores = values.masked_fill(values < 0, float("-inf")).clamp(max=float("inf"))
        return scores.softmax(1), torch.nan_to_num(scores, nan=0.0, neginf=-1.0), torch.full_like(values, float("nan"))


class Kept(nn.Module):
    """What a relu takes is needed again, as itself and by a view."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 4)

    def forward(self, values: Tensor) -> tuple[Tensor, ...]:
        first = self.first(values)
        halves = first.unflatten(1, (2, 2))
        second = self.second(first)
        return torch.relu(first), halves.sum(2), torch.relu(second) - second, torch.relu(self.second(torch.relu(first)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, values: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(values)))


class Layers(nn.Module):
    """Linear layers of rows and of vectors, with and without a bias, one whose weight is read otherwise, too."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.bare, self.read = nn.Linear(6, 40), nn.Linear(40, 5, bias=False), nn.Linear(5, 5)
        self.vectors, self.large = nn.Linear(1, 4), nn.Linear(5, 600_000 // 5)

    def forward(self, values: Tensor) -> tuple[Tensor, ...]:
        inner = torch.relu(self.bare(torch.relu(self.rows(values))))
        return self.read(inner) @ self.read.weight, self.vectors(values.unsqueeze(2)), self.large(inner).sum(1)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]]] = {
    "attention": (Attention, lambda rows: (torch.randint(0, 50, (rows, 7)),)),
    "convolution": (Convolution, lambda rows: (torch.randn(rows, 3, 8, 8),)),
    "recurrent": (Recurrent, lambda rows: (torch.randn(rows, 5, 4),)),
    "constants": (Constants, lambda rows: (torch.randn(rows), torch.randint(0, 3, (rows,)))),
    "masked": (Masked, lambda rows: (torch.randn(rows, 6),)),
    "kept": (Kept, lambda rows: (torch.randn(rows, 6),)),
    "tied": (Tied, lambda rows: (torch.randn(rows, 6),)),
    "layers": (Layers, lambda rows: (torch.randn(rows, 6),)),
}


def archived(module: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    buffer = io.BytesIO()
    batch = torch.export.Dim("batch", min=1)
    with quiet():
        exported = torch.export.export(module.eval(), inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
        torch.export.save(exported, buffer)
    return buffer.getvalue()


def test_weights_of_linear_layers_are_laid_out_where_nothing_else_reads_them() -> None:
    content = archived(Layers(), (torch.randn(3, 6),))
    laid: list[set[str]] = []
    choose = program._laid_out

    def noted(*given: Any) -> set[str]:
        laid.append(choose(*given))
        return laid[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "_laid_out", noted)
        loaded = archive.load_program(content)

    assert laid == [{"p_rows_weight", "p_bare_weight"}]
    parameters = sum(parameter.nbytes for parameter in Layers().parameters())
    assert loaded.nbytes == parameters


@pytest.mark.filterwarnings("ignore:The tensor attributes self.layer._flat_weights")
@pytest.mark.parametrize("name", CASES)
def test_the_reader_gives_what_torchs_own_loader_gives_for_any_number_of_rows(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    build, inputs = CASES[name]
    torch.manual_seed(1)
    content = archived(build(), inputs(3))
    with caplog.at_level("DEBUG", "serving.artifacts.archive"):
        ours = archive.load_program(content)
    with quiet():
        theirs = archive.load_exported(content).module(check_guards=False)

    assert not [r for r in caplog.records if r.name == "serving.artifacts.archive"], (
        "the reader did not know the program"
    )
    with torch.inference_mode():
        for rows in (1, 2, 9):
            batch = inputs(rows)
            got, expected = ours.call(*batch), theirs(*batch)
            assert isinstance(got, tuple) == isinstance(expected, tuple)
            for left, right in zip(_all(got), _all(expected), strict=True):
                torch.testing.assert_close(left, right, equal_nan=True)


def _all(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def test_shared_weights_are_counted_once_and_freed_with_the_function() -> None:
    loaded = archive.load_program(archived(Tied(), (torch.randn(3, 6),)))

    assert loaded.nbytes == 4 * (36 + 6 + 6)
    gc.disable()
    try:
        alive = weakref.ref(loaded.call)
        del loaded
        assert alive() is None, "a cycle keeps the weights until the garbage collector comes"
    finally:
        gc.enable()


def test_a_program_that_the_reader_does_not_know_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    content = archived(Tied(), (torch.randn(3, 6),))
    expected = archive.load_program(content).call(torch.ones(2, 6))

    def refuse(*_: object) -> None:
        raise program.Unknown("a part from the future")

    monkeypatch.setattr(program, "build", refuse)
    with quiet():
        loaded = archive.load_program(content)

    torch.testing.assert_close(loaded.call(torch.ones(2, 6)), expected)
    assert loaded.nbytes == 4 * (36 + 6 + 6)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_damaged_archive_is_refused_or_read_and_never_anything_else(data: st.DataObject) -> None:
    content = bytearray(doubled())
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    try:
        loaded = archive.load_program(bytes(content))
    except ArtifactError:
        return
    assert callable(loaded.call)


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))

    def forward(self, value: Tensor) -> Tensor:
        return value * self.weight


@cache
def doubled() -> bytes:
    return archived(Doubled(), (torch.randn(2),))


def test_compressed_and_overlapping_members_are_refused_before_they_are_read() -> None:
    source, target = zipfile.ZipFile(io.BytesIO(doubled())), io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as bomb:
        for info in source.infolist():
            bomb.writestr(info.filename, source.read(info))
        bomb.writestr("model/data/weights/weight_9", bytes(50_000_000))

    assert len(target.getvalue()) < 200_000
    with pytest.raises(ArtifactError, match="compressed or overlapping"):
        archive.load_program(target.getvalue())


@pytest.mark.parametrize("size", [0, 3])
def test_a_weight_that_is_shorter_than_its_shape_is_refused(size: int) -> None:
    source, target = zipfile.ZipFile(io.BytesIO(doubled())), io.BytesIO()
    with zipfile.ZipFile(target, "w") as short:
        for info in source.infolist():
            data = source.read(info)
            short.writestr(info.filename, data[:size] if info.filename.endswith("weight_0") else data)

    with pytest.raises(ArtifactError, match="does not hold 'weight'"):
        archive.load_program(target.getvalue())


def test_names_in_the_graph_never_become_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value may be named anything: the function's own names are made here."""
    evil = "x): __import__('os').abort()  #"
    source, target = zipfile.ZipFile(io.BytesIO(doubled())), io.BytesIO()
    with zipfile.ZipFile(target, "w") as renamed:
        for info in source.infolist():
            data = source.read(info)
            if info.filename.endswith("models/model.json"):
                data = data.replace(b'"p_weight"', json.dumps(evil).encode())
                assert evil.encode() in data
            renamed.writestr(info.filename, data)

    loaded = archive.load_program(target.getvalue())
    assert loaded.call(torch.tensor([3.0])).item() == 6.0
