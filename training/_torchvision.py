"""Make torchvision, which timm requires, importable together with a CPU-only torch. Import this module before torchvision.

The torchvision wheel is built for CUDA. Its compiled operators do not load with a CPU-only torch, and `import torchvision`
looks up two of them. Declaring these two is enough: this project never calls them.
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
