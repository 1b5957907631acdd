"""Lets torchvision, and timm which needs it, be imported beside a CPU-only torch.

torchvision's wheel is built for CUDA; beside a CPU-only torch its compiled operators do not load, and its import looks
two of them up. Declaring them is enough: nothing here calls them. Imported before torchvision wherever that is used.
"""

import torch


def _declare_missing_operators() -> None:
    from importlib.util import find_spec

    if torch.version.cuda is not None or find_spec("torchvision") is None:
        return
    declarations = {
        "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    }
    for name, signature in declarations.items():
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", signature)


_declare_missing_operators()
