"""Compute the features of all annotated actions with a backbone and write them to a file for --model features.

    python -m training.extract_features --output features.npz --run runs/<name>
    python -m training.extract_features --output features.npz --model i3d --pretrained_model model_rgb.pth [training flags]

With --run the backbone, its weights (best.pt) and the clips are those of that run; training flags may then only give paths of
data and settings of the computation. Without --run training flags define everything. Clips are sampled as in validation,
without randomness. A stopped command resumes if you start it again. Several ranks divide the actions among them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data_preparation import datasets
from data_preparation.actions import Action, plain_key
from data_preparation.common.command_line import flag, parse, run, split_flags, to_argv
from data_preparation.common.errors import UserError
from data_preparation.common.files import reporting_write_errors, write_atomic
from data_preparation.identity import TrainedOn
from training import plugins
from training.config import TrainConfig, as_record, differences, path_faults
from training.data.dataset import ActionDataset, ClipAlone
from training.data.features import ABOUT, FeatureFile
from training.data.loader import batches_of, keep_workers
from training.data.sources import source_of
from training.data.workers import start_server
from training.engine.prediction import autocast, resolve_precision, to_device
from training.model import ScoringModel, build_model
from training.runtime import checkpoint, collectives
from training.runtime.logs import start_log
from training.runtime.ranks import Ranks, read_ranks
from training.runtime.run_folder import RunFolder
from training.trained_on import of_weight_file

log = logging.getLogger("training")

_PART = 64  # actions per part file; an interruption loses at most one part per rank


@dataclass(frozen=True)
class FeaturesConfig:
    """Write the features of all annotated actions to a file. Training flags choose the backbone and its clips."""

    output: Path = flag(Path("features.npz"), "Feature file to write (.npz).")
    run: Path | None = flag(None, "Run folder whose backbone computes the features; none uses the training flags.")

    def __post_init__(self) -> None:
        if self.output.suffix.lower() != ".npz":
            raise UserError(f"--output {self.output} is not an .npz file: give a path that ends in .npz")


def fingerprint(config: TrainConfig, model: ScoringModel, precision: str, actions: Sequence[Action]) -> str:
    """Hash of everything that the features depend on: backbone, weights, normalisation, sampled frames, frame ranges."""
    digest = hashlib.sha256()
    own = [field.name for field in dataclasses.fields(plugins.flags_of(plugins.BACKBONES, config.model))]
    names = ["model", "frame_num", "frame_method", "spatial_size", "data_aug", *own]
    names += ["spatial_width"] * (config.spatial_width > 0)
    names += ["geometry"] * (config.geometry != "standard")  # an extraction begun before this flag existed can resume
    record = as_record(config)
    digest.update(repr([(name, record[name]) for name in names] + [config.needs, precision]).encode())
    digest.update(repr([(plain_key(a.key), a.start_frame, a.end_frame) for a in actions]).encode())
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor) and not name.startswith("method."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def load_model(options: FeaturesConfig, config: TrainConfig) -> ScoringModel:
    """Load the backbone with the weights of a run, or with those of the training flags.

    Raises:
        UserError: the weights are missing or do not fit.
    """
    model = build_model(config)
    if options.run is not None:
        folder = RunFolder(options.run)
        if not folder.best_checkpoint.exists():
            raise UserError(f"{options.run} has no best checkpoint yet: train it for at least one epoch")
        state = checkpoint.load(folder.best_checkpoint, required={"model"})["model"]
        own = {name: tensor for name, tensor in state.items() if not name.startswith("method.")}
        missing, unexpected = model.load_state_dict(own, strict=False)
        if unexpected or any(not name.startswith("method.") for name in missing):
            raise UserError(
                f"{folder.best_checkpoint} does not fit the network of {folder.config_file}: restore both from a copy"
            )
    return model.eval()


def part_file(parts: Path, number: int) -> Path:
    return parts / f"{number:05d}.npz"


@torch.no_grad()
def compute_part(
    model: ScoringModel, data: ActionDataset, config: TrainConfig, device: torch.device, part: Sequence[int]
) -> dict[str, np.ndarray]:
    """Features of the actions with the indices `part`: action name -> (N, D) float32."""
    found: dict[str, np.ndarray] = {}
    precision = resolve_precision(config.precision, device)
    for loaded in batches_of(data, [[(0, i) for i in part]], config, device):
        batch = to_device(loaded, device)
        with autocast(precision, device):
            features_BND = model.backbone(model.prepare(batch.clips["clip"])).float().cpu().numpy()
        found |= {data.actions[i].name: row for i, row in zip(batch.action_index.tolist(), features_BND, strict=True)}
    return found


def array_bytes(arrays: dict[str, Any]) -> bytes:
    """The bytes of an .npz file, the same for the same arrays."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def missing_parts(parts: Path, count: int) -> Iterator[int]:
    """Numbers of the part files that do not exist yet."""
    return (number for number in range(count) if not part_file(parts, number).exists())


def extract(options: FeaturesConfig, config: TrainConfig, ranks: Ranks) -> str:
    """Compute the missing parts and join them; return a one-line description of the feature file.

    Raises:
        UserError: frames or files are missing, the weights do not fit, or the disk is full.
    """
    actions = list(datasets.load(config.dataset_kind, config.annotation_files).actions.values())
    if faults := source_of(config).faults(actions):
        raise UserError.of(faults)
    device = collectives.choose_device(config.gpu, ranks)
    model = load_model(options, config).to(device)
    collectives.connect(ranks, device, timedelta(minutes=config.peer_timeout_min))
    precision = resolve_precision(config.precision, device)
    parts = options.output.with_name(f"{options.output.name}.parts-{fingerprint(config, model, precision, actions)}")
    data = ActionDataset(actions, config, ClipAlone(), augment=False)
    batches = [range(start, min(start + _PART, len(actions))) for start in range(0, len(actions), _PART)]
    with reporting_write_errors(parts):
        parts.mkdir(parents=True, exist_ok=True)
    mine = list(missing_parts(parts, len(batches)))[ranks.rank :: ranks.world_size]
    collectives.barrier()  # every rank has listed the missing parts before any rank writes one
    shows_bar = ranks.is_first and sys.stderr.isatty()
    with keep_workers():
        for number in tqdm(mine, desc="features", unit="part", disable=not shows_bar):
            arrays = compute_part(model, data, config, device, batches[number])
            with reporting_write_errors(parts):
                write_atomic(part_file(parts, number), array_bytes(arrays))
            log.info("Part %d of %d: features of %d actions", number + 1, len(batches), len(arrays))
    collectives.barrier()
    about = partial(about_features, options, config, actions)
    return collectives.on_first_rank(lambda: join_parts(options.output, parts, len(batches), actions, about()))


def about_features(options: FeaturesConfig, config: TrainConfig, actions: Sequence[Action]) -> dict[str, Any]:
    """What the feature file states besides the features, see FeatureFile.about.

    Raises:
        UserError: the weights do not state readably what they were trained on.
    """
    weights = config.weight_file if options.run is None else RunFolder(options.run).best_checkpoint
    trained_on = of_weight_file(weights) if weights else TrainedOn()
    return {"trained_on": trained_on.as_text(), "videos": source_of(config).video_hashes(actions)}


def join_parts(output: Path, parts: Path, count: int, actions: Sequence[Action], about: Mapping[str, Any]) -> str:
    """Join all parts into one file, in the order of the annotations, and delete the parts."""
    arrays: dict[str, np.ndarray] = {}
    for number in range(count):
        with np.load(part_file(parts, number), allow_pickle=False) as loaded:
            arrays |= dict(loaded)
    with reporting_write_errors(output):
        arrays = {action.name: arrays[action.name] for action in actions}
        write_atomic(output, array_bytes({**arrays, ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8)}))
    shutil.rmtree(parts)
    written = FeatureFile(output)
    if faults := written.faults(actions):
        raise UserError.of(faults)
    vectors = next(iter(written.rows.values())).shape[0]
    return (
        f"{len(actions)} actions, {vectors} vector{'s' if vectors > 1 else ''} of {written.width} values each: {output}"
    )


def _config_of_run(run_dir: Path, given: Sequence[str]) -> TrainConfig:
    """The configuration of a run with overrides for data paths and settings of the computation.

    Raises:
        UserError: a flag is wrong or would change the features.
    """
    saved = RunFolder(run_dir).existing_config()
    config = parse(type(saved), [*to_argv(saved), *given])
    if fixed := [each for each in differences(saved, config)[0] if not each.startswith("--precision")]:
        raise UserError(
            f"--run {run_dir} was trained with different flags ({'; '.join(fixed)}): leave them out, or leave --run out"
        )
    return dataclasses.replace(config, pretrained_model="none")  # the weights come from best.pt


def main(argv: Sequence[str]) -> int:
    options, rest = split_flags(FeaturesConfig, argv, prog="python -m training.extract_features", also=TrainConfig)
    config = parse(TrainConfig, rest) if options.run is None else _config_of_run(options.run, rest)
    if config.reads != "video":
        raise UserError("--model features reads features and computes none: choose a backbone that reads video")
    if faults := path_faults(config):
        raise UserError.of(faults)
    ranks = read_ranks()
    start_log(config.loglevel, ranks)
    start_server(config.loader_workers)

    def extract_and_report() -> int:
        text = extract(options, config, ranks)
        if ranks.is_first:
            print(text)
        collectives.disconnect()
        return 0

    return collectives.exit_status(extract_and_report)


if __name__ == "__main__":
    run(main)
