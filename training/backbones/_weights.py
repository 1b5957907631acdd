"""Read published weight files into state dicts. They come from the internet, so only tensors and plain values are loaded."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

from data_preparation.common.errors import UserError
from data_preparation.file_types import file_type_hint, file_type_of, read_head
from training.backbones import _standins

_WRAPPERS = ("model_state", "state_dict", "model_state_dict", "model", "base_model", "i3d")
_PREFIXES = ("module.", "_orig_mod.", "model.", "base_model.")  # from DataParallel, torch.compile, SlowFast, CoRe


class Weights(NamedTuple):
    """The tensors of a weight file by name. `parts` holds further networks beside the main one, such as CoRe's "regressor"."""

    state: dict[str, torch.Tensor]
    parts: dict[str, dict[str, torch.Tensor]]


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of the main network of a weight file, see read_weights."""
    return read_weights(path).state


def read_weights(path: Path) -> Weights:
    """The tensors of a weight file by name, without prefixes such as `module.`.

    Supported layouts: SlowFast's (`model_state`, keys `model.*`; TimeSformer's .pyth files), `state_dict` (keys
    `module.*`), `base_model` (CoRe), `i3d` (TSA-Net), a bare state dict (c3d.pickle), and .safetensors (timm's ViT files). Other content
    (flags, scores, an optimizer) is not loaded.

    Raises:
        UserError: the file is missing or damaged, cannot be read without running its code, or holds no tensors.
    """
    try:
        content = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else _standins.load(path)
    except OSError as error:
        raise UserError(
            f"weight file {path} cannot be read ({error.strerror}): give the path of a downloaded file"
        ) from None
    except _standins.UnsafeFile as error:
        raise UserError(
            f"weight file {path} is refused because it holds more than weights ({error}): do not trust it, choose another file"
        ) from None
    except Exception as error:  # a damaged or hostile file can raise anything
        raise _fault(path, error) from None
    tensors = named_tensors(content)
    if not tensors:
        raise _without_weights(path, content)
    odd = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if odd:
        raise UserError(
            f"weight file {path} holds NaN or infinite values in {len(odd)} of its tensors ({odd[0]}, ...): choose another file"
        )
    return Weights(_stripped(tensors), {name: _stripped(part) for name, part in _parts(content).items()})


def named_tensors(content: Any) -> dict[str, torch.Tensor]:
    """Find the state dict in a file's content: under a usual key, or under the only key that holds named tensors.

    Returns {} if there is none.
    """
    for _ in _WRAPPERS:  # wrappers may be nested; a malicious one may contain itself, so the depth is limited
        if isinstance(content, Mapping):
            content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    tensors = _tensors(content)
    if not tensors and isinstance(content, Mapping):
        candidates = [found for value in content.values() if (found := _tensors(value))]
        return candidates[0] if len(candidates) == 1 else {}
    return tensors


def _parts(content: Any) -> dict[str, dict[str, torch.Tensor]]:
    """The state dicts beside the main one, if that is under a usual key, by their own keys."""
    entries = content if isinstance(content, Mapping) and any(key in content for key in _WRAPPERS) else {}
    return {str(key): found for key, value in entries.items() if key not in _WRAPPERS and (found := _tensors(value))}


def _tensors(content: Any) -> dict[str, torch.Tensor]:
    items = content.items() if isinstance(content, Mapping) else ()
    return {k: v for k, v in items if isinstance(k, str) and isinstance(v, torch.Tensor)}


def _without_weights(path: Path, content: Any) -> UserError:
    """The error for a readable file without a state dict: what it holds instead and how to convert it."""
    entries = content if isinstance(content, Mapping) else {}
    models = [key for key, value in entries.items() if _is_model(value)]
    if models or _is_model(content):
        of = entries[models[0]].of if models else content.of
        part = f"[{models[0]!r}]" if models else ""
        return UserError(
            f"weight file {path} holds a whole model ({of}) and not a state dict; it is not loaded because its class can run code: {_TRUSTED}{_conversion(path, _LOADED, part + '.state_dict()')}"
        )
    if several := [key for key, value in entries.items() if _tensors(value)]:
        return UserError(
            f"weight file {path} holds several sets of weights ({', '.join(map(str, several))}): {_TRUSTED}{_conversion(path, _LOADED, f'[{several[0]!r}]')}"
        )
    keys = f" (its entries are {', '.join(map(str, list(entries)[:6]))})" if entries else ""
    return UserError(f"weight file {path} holds no named tensors{keys}: give a .pyth, .pth or c3d.pickle file")


def _is_model(value: Any) -> bool:
    return isinstance(value, _standins.StandIn) and value.is_model


_TRUSTED = "if you trust its author, save only its weights, once: "  # the command after it runs the code in the file
_LOADED = "torch.load('{0}', map_location='cpu', weights_only=False)"


def _conversion(path: Path, loaded: str, part: str = "", modules: str = "torch") -> str:
    """The shell command that loads a file with the code `loaded` and saves its weights, or the `part` with them."""
    new = path.with_suffix(".weights.pth").name
    return f"python -c \"import {modules}; torch.save({loaded.format(path)}{part}, '{new}')\""


def _fault(path: Path, error: Exception) -> UserError:
    """The error for an unreadable weight file, from its file type if that is known, else from the exception."""
    head = read_head(path)
    content, cause = file_type_of(head), _standins.cause_of(error)
    kind = content.kind if content else None
    if kind == "safetensors" and path.suffix != ".safetensors":
        return UserError(
            f"weight file {path} is a safetensors file: rename it to {path.with_suffix('.safetensors').name}"
        )
    if kind == "torch" and path.suffix == ".safetensors":
        return UserError(f"weight file {path} was written by torch.save: rename it to {path.with_suffix('.pth').name}")
    if content is not None and kind == "npz":
        loaded = "{{name: torch.from_numpy(array) for name, array in numpy.load('{0}').items()}}"
        return UserError(
            f"weight file {path} is {content.name}: convert it: {_conversion(path, loaded, modules='numpy, torch')}"
        )
    if found := file_type_hint(path, head, wanted={"torch", "pickle", "safetensors"}):
        return UserError(f"{path} is not a weight file: {found}")
    if "TorchScript" in str(error):
        loaded = "torch.jit.load('{0}')"
        return UserError(
            f"weight file {path} is a TorchScript program: {_TRUSTED}{_conversion(path, loaded, '.state_dict()')}"
        )
    form = "damaged" if path.suffix == ".safetensors" else _standins.scan(path).form
    if form == "pickle":
        loaded = "{{name: torch.as_tensor(array) for name, array in pickle.load(open('{0}', 'rb')).items()}}"
        return UserError(
            f"weight file {path} is a pickle that torch.save did not write, and holds more than arrays: {_TRUSTED}{_conversion(path, loaded, modules='pickle, torch')}"
        )
    if form == "torch" and isinstance(error, (pickle.UnpicklingError, TypeError, AttributeError)):
        if "Unsupported operand" in str(error):
            return UserError(
                f"weight file {path} was written with another pickle protocol than torch.save's own: {_TRUSTED}{_conversion(path, _LOADED)}"
            )
        part = "['state_dict']"  # the usual key; if the file has another one, the KeyError of the command shows it
        return UserError(
            f"weight file {path} holds more than weights ({cause}): {_TRUSTED}{_conversion(path, _LOADED, part)}"
        )
    return UserError(f"weight file {path} is damaged ({cause}): download it again")


def _stripped(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {_strip(name, _PREFIXES): tensor for name, tensor in tensors.items()}


def _strip(name: str, prefixes: tuple[str, ...]) -> str:
    """A parameter's name without the prefixes of wrappers, in whatever order they were put around the network."""
    while prefix := next((p for p in prefixes if name.startswith(p)), ""):
        name = name.removeprefix(prefix)
    return name


def load_strict(
    module: torch.nn.Module,
    state: Mapping[str, torch.Tensor],
    allow_missing: Iterable[str] = (),
    flag: str = "--pretrained_model",
) -> None:
    """Load `state` strictly: all names, shapes and kinds of dtype must match; only names in `allow_missing` may be missing.

    `flag` is what the message calls the file.

    Raises:
        UserError: lists missing and unexpected names and those with another shape or kind of dtype.
    """
    own = module.state_dict()
    missing = sorted(set(own) - set(state) - set(allow_missing))
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
    not_finite = [name for name in own if name in state and not torch.isfinite(state[name]).all()]
    lists = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("with another shape", misfits),
        ("with another dtype", kinds),
        ("with NaN or infinite values", not_finite),
    )
    faults = [
        f"{len(names)} {what} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
        for what, names in lists
        if names
    ]
    if faults:
        raise UserError(
            f"{flag} does not fit this network: {'; '.join(faults)}; choose the flags that the file was trained with"
        )
    module.load_state_dict(state, strict=False)
