"""Write a network as ONNX: the input of the backbone as the DataLoader gives it, the head, and the prediction."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

from data_preparation.actions import Action
from data_preparation.common.errors import UserError, first_line
from training.config import TrainConfig
from training.data.batch import Tensors
from training.data.facts import DataFacts
from training.model import ScoringModel

_BATCH = 2  # of the example inputs: the exporter takes a dimension of 1 for a constant
HEAD = "head."  # begins the names of the head's outputs, because a prediction may have the same name


class Network(nn.Module):
    """From a clip (B, T, 3, H, W) uint8 and the given values of the method to the predictions and the outputs of the head."""

    def __init__(self, model: ScoringModel, given_names: list[str]) -> None:
        super().__init__()
        self.model, self.given_names = model, given_names

    def named(self, clip: torch.Tensor, *values: torch.Tensor) -> Tensors:
        """The predictions by name, then the outputs of the head by names that begin with `HEAD`."""
        model, given = self.model, dict(zip(self.given_names, values, strict=True))
        outputs = model.method(model.backbone, {"clip": model.prepare(clip)}, given, {})
        return {**model.method.predict(outputs, given), **{f"{HEAD}{name}": t for name, t in outputs.items()}}

    def forward(self, clip: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.named(clip, *values).values())


def onnx_fault(config: TrainConfig, model: ScoringModel) -> str | None:
    """Why a network cannot be written as ONNX, or None."""
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        return f"--onnx True needs {' and '.join(missing)}: pip install onnx onnxscript, or give --onnx False"
    reason = model.method.why_no_onnx()
    return reason and f"--method {config.method} cannot be written as ONNX because {reason}: give --onnx False"


def example_inputs(config: TrainConfig, model: ScoringModel, facts: DataFacts, batch: int = _BATCH) -> Tensors:
    """Inputs of `Network` by name: clips of noise, and the given values of an action."""
    shape = (batch, config.frame_num, 3, *config.input_size)
    clip = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    kind, rules = next(iter(facts.rules.items()), ("", None))
    action = Action("01", 1, 1, config.frame_num, kind=kind, rules=rules, difficulty=3.0)
    given = default_collate([{n: torch.as_tensor(v) for n, v in model.method.given(action).items()}] * batch)
    return {"clip": clip, **given}


def _traced(network: Network, inputs: tuple, dynamic_shapes: tuple) -> torch.export.ExportedProgram:
    """The program of a network. torch.onnx.export would trace it, too, but take the batch for a constant where it cannot vary."""
    try:
        return torch.export.export(network, inputs, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception:  # slower, but it also follows len(tensor)
        return torch.export.export(network, inputs, dynamic_shapes=dynamic_shapes, strict=True)


def write_onnx(path: Path, config: TrainConfig, model: ScoringModel, facts: DataFacts) -> list[str]:
    """Write the network with a batch of any size; return a line for each input and output with its type and shape.

    Raises:
        UserError: it cannot be written as ONNX.
        OSError: the disk is full or not writable.
    """
    if fault := onnx_fault(config, model):
        raise UserError(fault)
    inputs = example_inputs(config, model, facts)
    network = Network(model, [name for name in inputs if name != "clip"]).eval()
    any_size = {0: torch.export.Dim("batch")}
    values = (tuple(any_size for _ in network.given_names),) if network.given_names else ()
    with torch.no_grad():
        outputs = network.named(*inputs.values())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                traced = _traced(network, tuple(inputs.values()), (any_size, *values))
                names: dict[str, Any] = {"input_names": list(inputs), "output_names": list(outputs)}
                program = torch.onnx.export(traced, dynamo=True, verbose=False, **names)
        except Exception as error:  # the exporter raises what the operators raise
            raise UserError(
                f"--model {config.model} with --method {config.method} cannot be written as ONNX ({type(error).__name__}: {first_line(error)[:200]}): give --onnx False"
            ) from error
    assert program is not None
    for graph in (program.model.graph, *(function.graph for function in program.model.functions.values())):
        for node in graph.all_nodes():
            node.metadata_props.clear()  # stack traces with the paths of the source files
    program.save(str(path))
    return [
        f"{kind} `{name}`: {str(tensor.dtype).removeprefix('torch.')} (batch{''.join(f', {n}' for n in tensor.shape[1:])})"
        for kind, tensors in (("input", inputs), ("output", outputs))
        for name, tensor in tensors.items()
    ]
