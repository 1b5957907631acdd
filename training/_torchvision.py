"""Make torchvision, which timm requires, importable together with a CPU-only torch. Import this module before torchvision.

torchvision's usual wheel is built for CUDA. Its compiled operators do not load with a CPU-only torch, and `import torchvision`
looks up two of them. Declaring these two is enough; only training.detect calls one, and says so where it does not run. The wheel
for CPUs has its operators. They are not declared then, because PyTorch ends the process if one operator is declared twice.
"""

from importlib.util import find_spec
from pathlib import Path

import torch


def _operators_load() -> bool:
    """Whether torchvision's compiled operators load, or torchvision is not installed. Does not import torchvision."""
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
            return True
        except OSError:
            continue
    return False


def _declare_missing_operators() -> None:
    if torch.version.cuda is not None or _operators_load():
        return
    declarations = {
        "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    }
    for name, signature in declarations.items():
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", signature)


_declare_missing_operators()
