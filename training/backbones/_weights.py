"""Published weight files -> state dicts. They are downloads: only tensors and plain values are ever loaded."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors.torch
import torch

from data_preparation.cli import UserError, first_line


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weight file by name, without the wrappers' prefixes.

    Reads SlowFast's layout (`model_state`, keys `model.*`; TimeSformer's .pyth files), `state_dict` (keys
    `module.*`), a bare state dict (c3d.pickle), and .safetensors (timm's ViT files).

    Raises:
        UserError: the file is missing or damaged, holds more than tensors and plain values, or holds no tensors.
    """
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(
            f"weight file {path} cannot be read ({error.strerror}): give the path of a downloaded file"
        ) from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"weight file {path} is refused, it holds more than weights{_unwanted(error)} or is damaged: download it again"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(f"weight file {path} is damaged ({first_line(error)}): download it again") from None
    for wrapper in ("model_state", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    items = content.items() if isinstance(content, Mapping) else ()
    tensors = {k: v for k, v in items if isinstance(k, str) and isinstance(v, torch.Tensor)}
    if not tensors:
        raise UserError(f"weight file {path} holds no weights by name: give a .pyth, .pth or c3d.pickle file")
    odd = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if odd:
        raise UserError(
            f"weight file {path} holds values that are no numbers, in {len(odd)} of its tensors ({odd[0]}, ...): choose another file"
        )
    return {_strip(name, ("module.", "model.")): tensor for name, tensor in tensors.items()}


def _unwanted(error: pickle.UnpicklingError) -> str:
    """What the file wanted to have run; never torch's advice on how to let it."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f" (it wants {found[1]})" if found else ""


def _strip(name: str, prefixes: Iterable[str]) -> str:
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    return name


def load_exactly(module: torch.nn.Module, state: Mapping[str, torch.Tensor], may_miss: Iterable[str] = ()) -> None:
    """Load `state`; every name and shape must fit, except that those in `may_miss` may be absent.

    Raises:
        UserError: listing what is missing, unexpected or of another shape.
    """
    own = module.state_dict()
    missing = sorted(set(own) - set(state) - set(may_miss))
    unexpected = sorted(set(state) - set(own))
    misfits = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    kinds = [
        f"{name} {state[name].dtype}"
        for name in own
        if name in state and state[name].is_floating_point() != own[name].is_floating_point()
    ]
    lists = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", misfits),
        ("of another type", kinds),
    )
    faults = [
        f"{len(names)} {what} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
        for what, names in lists
        if names
    ]
    if faults:
        raise UserError(
            f"--pretrained_model does not fit this network: {'; '.join(faults)}; choose the flags that the file was trained with"
        )
    module.load_state_dict(state, strict=False)
