"""From a module to what an artifact holds: an exported program for any number of rows, or ONNX made of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.errors import ArtifactError
from serving.protocol.signature import Signature

if TYPE_CHECKING:
    import torch


def exported(
    module: torch.nn.Module, signature: Signature, example: Mapping[str, Sequence[Any]]
) -> torch.export.ExportedProgram:
    """The module as a program for any number of rows, which takes what `Input` says.

    A module that takes flags the other way, as numbers or as torch.bool, gets them so. Raises ArtifactError where it
    gives a dict without the declared outputs, and whatever torch raises.
    """
    import torch

    # Two rows at least: torch.export would take a batch of one for a constant.
    columns = signature.example({name: listed(values) for name, values in example.items()}, times=2)
    arguments = tuple(torch.from_numpy(column) for column in columns)
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple(
        {0: batch} | {1 + place: torch.export.Dim.AUTO for place, length in enumerate(column.shape) if length == -1}
        for column in signature.inputs
    )
    flags = [place for place, column in enumerate(signature.inputs) if column.datatype == "BOOL"]
    if flags and not _runs(module, arguments) and _runs(other := _otherwise(module, flags), arguments):
        module = other
    with quiet():
        program = torch.export.export(module, arguments, dynamic_shapes=(shapes,) if _takes_varargs(module) else shapes)
    _keys(program, signature)
    return program


def _runs(module: torch.nn.Module, arguments: Sequence[torch.Tensor]) -> bool:
    """Whether the module takes the tensors; exporting would find out less."""
    import torch

    try:
        with torch.no_grad():
            module(*(argument.clone() for argument in arguments))
    except Exception:
        return False
    return True


def _otherwise(module: torch.nn.Module, flags: Sequence[int]) -> torch.nn.Module:
    """The module with the inputs at these places as torch.bool where they are numbers, and the other way round."""
    import torch

    class Otherwise(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *given: torch.Tensor) -> Any:
            taken = list(given)
            for place in flags:
                mask = given[place].dtype == torch.bool
                taken[place] = given[place].to(torch.float32) if mask else given[place] != 0
            return self.module(*taken)

    return Otherwise().eval()


def _keys(program: torch.export.ExportedProgram, signature: Signature) -> list[str]:
    """The keys of the dict that a program gives; none where it gives something else. Raises ArtifactError."""
    spec = program.call_spec.out_spec
    if spec is None or spec.type is not dict:
        return []
    keys = [str(key) for key in spec.context]
    require_outputs(keys, signature)
    return keys


def require_outputs(names: Iterable[str], signature: Signature) -> None:
    """Raises ArtifactError unless all outputs of the signature are among the names that a model gives."""
    given = list(names)
    missing = [output.name for output in signature.outputs if output.name not in given]
    if missing:
        raise ArtifactError(f"the model gives the outputs {given}; its manifest also names {missing}")


def listed(values: Any) -> list[Any]:
    """An example's values as JSON has them; arrays and tensors are taken, too."""
    plain: list[Any] = values.tolist() if hasattr(values, "tolist") else list(values)
    return plain


def _takes_varargs(module: torch.nn.Module) -> bool:
    code = type(module).forward.__code__
    return bool(code.co_flags & 0x04)


def save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Writes an exported program as a .pt2 archive."""
    import torch

    torch.export.save(program, path)


def save_onnx(program: torch.export.ExportedProgram, path: Path, signature: Signature) -> None:
    """Writes an exported program as ONNX, its inputs and outputs by their names. Raises ArtifactError."""
    import torch

    # torch names the outputs in the order in which the module gives them.
    names = _keys(program, signature) or [output.name for output in signature.outputs]
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ArtifactError("writing ONNX needs onnxscript; install it with: pip install 'trimtab[onnx]'") from error
    with quiet():
        torch.onnx.export(
            program, f=str(path), external_data=False, verbose=False,
            input_names=[i.name for i in signature.inputs], output_names=names,
        )  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of torch's own tools about torch's own names."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module=r"(torch|copyreg|onnxscript|onnx_ir)(\.|$)")
            warnings.filterwarnings("ignore", category=category, message=r".*LeafSpec")
        # What a recurrent layer of torch keeps beside its parameters, which are these.
        warnings.filterwarnings("ignore", category=UserWarning, message=r"The tensor attributes? .*_flat_weights")
        yield
