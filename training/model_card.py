"""The model card of an exported model, made from its run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data_preparation import datasets
from training import plugins
from training.config import TrainConfig
from training.evaluate import result_lines
from training.pretrained import ONNX, Exported
from training.runtime.run_folder import RunFolder, read_json
from training.tasks import task_of


def model_card(run: RunFolder, exported: Exported, coverage: Sequence[str], onnx: Sequence[str]) -> str:
    """The model card as Markdown. `coverage` are lines about the intervals, `onnx` about the inputs and outputs of model.onnx."""
    config, record = exported.config, exported.record
    parts = [
        ("", _heading(run.title, config)),
        ("Use", _use(config)),
        ("Input", _input(exported)),
        ("ONNX", _onnx(onnx)),
        ("Data", _data(record["flags"], read_json(run.splits_file) or {})),
        ("Result", _result(record)),
        ("Intervals", "\n".join(f"* {line}" for line in coverage)),
        ("What it was trained on", _GUARD),
        ("Licences", _licences(record["flags"], config)),
        ("Versions", _versions(record)),
    ]
    return "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in parts if text) + "\n"


def _heading(title: str, config: TrainConfig) -> str:
    what = {"score": "Scores", "label": "Classifies"}.get(config.task, "Features of")
    tags = "\n".join(f"- {tag}" for tag in ("action-quality-assessment", "video", config.model, config.method))
    return f"""---
library_name: deepsports
license: other
tags:
{tags}
---

# {title}

{what} actions in video. Backbone `{config.model}`, method `{config.method}`, trained with DeepSports. The flags are in `config.json`."""


def _use(config: TrainConfig) -> str:
    start = "The backbone starts another training with `--pretrained_model FOLDER/model.safetensors`."
    if not task_of(config.task).has_test:
        return f"This is a pretraining: it scores nothing. {start}"
    return f"""In the DeepSports repository, with this folder as FOLDER:

```bash
python -m training.predict --run FOLDER --video my_video.mp4
```

```python
from training.pretrained import from_pretrained

scorer = from_pretrained("FOLDER")  # reads safetensors and JSON only; nothing is unpickled
```

{start}"""


def _input(exported: Exported) -> str:
    config, model = exported.config, exported.model
    height, width = config.input_size
    mean, deviation = (
        ", ".join(f"{value:.4g}" for value in values.tolist()) for values in (model.input_mean, model.input_std)
    )
    view = "the centre crop of a resized frame" if config.data_aug else "the whole frame, resized"
    notes = "".join(f" Note: {note}." for note in model.method.notes())
    return (
        f"A clip is {config.frame_num} frames of an action (`--frame_method {config.frame_method}`), each {view} to "
        f"{width} x {height} pixels (width x height), RGB, 0 to 255. The network scales pixels to 0 to 1 and normalises them itself "
        f"(mean {mean}; standard deviation {deviation}).{notes}"
    )


def _onnx(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    listed = "\n".join(f"* {line}" for line in lines)
    return f"""`{ONNX}` holds backbone, head and prediction in float32, for a batch of any size. The clip has the dimensions (batch, frames,
channels, height, width); pixels are 0 to 255 and are normalised inside. Names that begin with `head.` are the outputs of the head.

{listed}"""


def _data(flags: dict[str, Any], splits: dict[str, Any]) -> str:
    sizes = ", ".join(
        f"{len(splits.get(part, ()))} {name}"
        for part, name in (("train", "training"), ("val", "validation"), ("test", "test"))
    )
    fold = f", fold {flags['fold']}" if flags["split"] == "event" or flags["fold"] != 1 else ""
    return f"Data set format `{flags['dataset_kind']}`, split `{flags['split']}`{fold}, seed {flags['seed']}: {sizes} actions."


def _result(record: dict[str, Any]) -> str:
    checkpoint, summary = record["checkpoint"], record["result"]
    chosen = f"Validation chose epoch {checkpoint['best_epoch']}."
    if summary is None:
        return f"{chosen} The test split was not opened, so there is no test result."
    lines = "\n".join(f"* {line.strip()}" for line in result_lines(summary))
    return f'{chosen} The test split was opened once, with its weights. Lines "without video" are baselines.\n\n{lines}'


_GUARD = """The header of `model.safetensors` lists the actions of training and validation, and those of the weights before, as hashes and
frame numbers: no names, no pictures. A DeepSports training that starts from this file is refused if its test split holds one of them."""


def _licences(flags: dict[str, Any], config: TrainConfig) -> str:
    lines = [datasets.licence(flags["dataset_kind"])]
    start = flags["pretrained_model"]
    if start.lower() != "none" and start.lower() != "scratch":
        of_weights = plugins.flags_of(plugins.BACKBONES, config.model).weights_licence
        lines.append(
            f"The training started from the weights `{start}`: their licence applies to these weights, too. {of_weights}"
        )
    else:
        lines.append("The training started from random weights.")
    lines.append("The code of DeepSports is under Apache-2.0. This card grants no rights in data or weights.")
    return "\n".join(f"* {line.strip()}" for line in lines)


def _versions(record: dict[str, Any]) -> str:
    environment = record["trained_with"]
    revision = environment.get("code_revision") or "unknown"
    changed = " with uncommitted changes" if environment.get("code_changed") else ""
    packages = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items() if version)
    return (
        f"Trained with code revision `{revision}`{changed}, Python {environment.get('python', 'unknown')}, {packages}."
    )
