"""TrainConfig: the flags of a training. Imports no torch.

This file has the common flags. The flags of a backbone are in backbones/NAME/flags.py, those of a method in
methods/NAME/flags.py. `config_class` composes the common flags and those of the chosen backbone and method into one flat
dataclass; `TrainConfig(...)` and `parse(TrainConfig, argv)` return an instance of it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from data_preparation import datasets
from data_preparation.actions import chosen_videos
from data_preparation.common.command_line import flag, to_argv
from data_preparation.common.errors import UserError
from training import plugins
from training.plugins import BACKBONES, METHODS, BackboneFlags, MethodFlags
from training.tasks import task_of

FRAME_METHODS = (
    "random", "spaced_fixed", "spaced_varied", "spaced_fixed_new", "spaced_varied_new", "end_aligned", "end_aligned_spaced", "segments", "dense",
)  # fmt: skip
GEOMETRIES = ("standard", "centre_crop", "swapped", "swapped_nearest")
AUGMENTATIONS = ("none", "randaugment")
OPTIMIZERS = ("Adam", "AdamW", "SGD", "RMSProp")
NO_WEIGHTS = ("none", "scratch")
AUTO = 0  # --batch_size auto and --accumulate auto, until training/fitting.py has chosen numbers

# input normalisation: (mean, standard deviation) of each RGB channel, for pixels in [0, 1]
INPUT_SCALES: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    # MTL-AQA's training clips, as in DeepSports
    "mtl_aqa": ((0.2719, 0.4617, 0.5961), (0.1870, 0.1881, 0.2604)),
    "timesformer": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),  # released TimeSformer weights
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # C3D-AVG's input to C3D
    "vit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # timm's ViT weights
    "0_255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),  # the Sports-1M port of C3D
}


@dataclass(frozen=True)
class TrainConfig(BackboneFlags, MethodFlags):
    """Train a model and, with --evaluate True, open the test split once at the end."""

    # --- paths
    root_dir: Path = flag(
        Path("./"), "Folder of the prepared frames (whole_videos_frames).", short="-root", may_change=True, path=True
    )
    annotation_path: Path = flag(
        Path("./final_annotations_dict.pkl"),
        "Annotation file (.pkl, .csv, .json), or the folder of the released files.",
        short="-ann",
        may_change=True,
        path=True,
    )
    train_path: Path = flag(
        Path("./train_split_0.pkl"), "Train list (.pkl, .csv, .json).", short="-tr", may_change=True, path=True
    )
    test_path: Path = flag(
        Path("./test_split_0.pkl"), "Test list (.pkl, .csv, .json).", short="-te", may_change=True, path=True
    )
    dataset_kind: str = flag(
        datasets.DEFAULT,
        "Format of the annotations (data_preparation/datasets); mtl_aqa also reads CSV and JSON files of dives.",
        choices=datasets.names(),
    )
    leave_out: str = flag(
        "none",
        "List of actions (.csv, .json, .pkl) to leave out of training, validation and test.",
        allowed="path, none",
        may_change=True,
        path=True,
    )
    captions_path: str = flag(
        "none",
        "Captions (final_captions_dict.pkl) for --method multitask; none leaves the caption task out.",
        allowed="path, none",
        may_change=True,
        path=True,
    )
    vocabulary_path: str = flag(
        "none",
        "Vocabulary of the captions (vocab.json).",
        allowed="path, none",
        may_change=True,
        path=True,
        in_model=True,
    )
    videos: tuple[str, ...] = flag(
        ("all",),
        "Videos to use: all, or names such as 01 02, or folders of videos.",
        short="-vid",
        allowed="all, or names of videos",
    )
    runs_dir: Path = flag(Path("./runs"), "Folder that holds the run folders.", may_change=True, path=True)
    run_name: str = flag("default", "Name of the run folder. A stopped run of that name is resumed.", may_change=True)
    output: Path = flag(
        Path("./losses.png"),
        "PNG file of the loss plot; a relative path is inside the run folder.",
        short="-out",
        allowed=".png path",
        may_change=True,
    )

    # --- data
    train_val_split_ratio: float = flag(
        0.8,
        "Fraction of the train list to train on; the rest is for validation.",
        short="-sr",
        allowed="number in (0, 1)",
    )
    split: str = flag(
        "official",
        "official uses the two lists, or fold --fold of the published folds; event holds out whole events (groups or videos) of both lists for test and validation. A data set may have further splits.",
        allowed="official, event, or the name of a split of the data set",
    )
    folds: int = flag(5, "Number of folds of --split event.", minimum=2)
    fold: int = flag(1, "The fold (from 1) that --split event uses as test set, or the published fold.", minimum=1)
    split_seed: int = flag(
        0, "Seed of the folds of --split event, independent of --seed; keep it the same for all folds.", minimum=0
    )
    frame_num: int = flag(8, "Frames per clip.", short="-fn", minimum=1)
    frame_method: str = flag(
        "spaced_fixed", "How the frames of a clip are sampled.", short="-fm", choices=FRAME_METHODS
    )
    spatial_size: int = flag(224, "Height and width of the input in pixels.", short="-ss", minimum=1)
    spatial_width: int = flag(
        0,
        "Width of the input in pixels if it is not square, such as 683 with --spatial_size 384 for whole frames of 960 x 540; 0: as --spatial_size.",
        minimum=0,
    )
    normalize: bool = flag(
        False,
        "Normalise with MTL-AQA's RGB mean and standard deviation (same as --input_scale mtl_aqa).",
        short="-norm",
    )
    input_scale: str = flag(
        "auto",
        "Normalisation of the input. auto: with a weight file that of the file (timesformer, or vit for a ViT of timm), without one unit (pixels in [0, 1]); always imagenet for c3d, i3d, mscadc, st_abn and tsm.",
        choices=("auto", *INPUT_SCALES),
    )
    data_aug: bool = flag(
        False,
        "Train on random crops and flips and evaluate on the centre crop; False resizes the whole frame to a square.",
        short="-da",
    )
    geometry: str = flag(
        "standard",
        "Crops of --data_aug True. standard: frames of 455 x 256 (width x height, for --spatial_size 224). centre_crop: in training, too, with random flips (USDL, TSA-Net). swapped: 256 wide and 455 tall, a mistake in the code of TPT; swapped_nearest: the same with the nearest pixel (CoRe, PECoP).",
        choices=GEOMETRIES,
    )
    flip: bool = flag(
        False,
        "Flip whole training clips left to right with probability 0.5; --data_aug True does so itself. Not for classes that tell left from right.",
    )
    augment: str = flag(
        "none",
        "Augmentation of training clips, the same for all frames of a clip: randaugment applies two of nine strong operations (rotation, posterise, solarise, colour, contrast, brightness, sharpness, autocontrast, noise), drawn for each clip.",
        choices=AUGMENTATIONS,
    )
    augment_on: str = flag(
        "loader",
        "Where --augment changes the pixels: loader, in the workers, or device, whole batches in the training process on its GPU, which frees the workers. The draws are the same, and on a CPU all pixels; a GPU may round some to the next level.",
        choices=("loader", "device"),
    )
    frame_decode: str = flag(
        "full",
        "How frames are decoded. full: in full size, then resized. scaled: at half of the size or less, if that is large enough for the input, which is faster; pixels differ by a few levels. gpu: on the GPU, which frees the workers; pixels differ by a level.",
        choices=("full", "scaled", "gpu"),
    )
    test_crops: int = flag(
        1,
        "Crops of each clip in the test, whose predictions are averaged: 1 (centre), 3 (also both ends of the long side), 5 (centre and corners), 10 (these and their flips; not for classes that tell left from right). Needs --data_aug True.",
        allowed="1, 3, 5, 10",
        may_change=True,
    )
    test_clips: int = flag(
        1,
        "Clips of each action in the test, at other frames, whose predictions are averaged; TSM has 2 with --frame_method segments (twice_sample) and 10 with dense.",
        minimum=1,
        may_change=True,
    )
    full_res: bool = flag(
        False,
        "Crops of the test are as high as the resized frames (256 for --spatial_size 224), as TSM's full resolution; for --test_crops 1 or 3 and a model of any size.",
        may_change=True,
    )
    test_average: str = flag(
        "probability",
        "What the test averages over clips and crops to predict a class: probability, or logit (TSM). Final scores are averaged in points.",
        choices=("probability", "logit"),
        may_change=True,
    )
    batch_size: int = flag(
        4,
        "Actions per optimizer step, over all GPUs together. auto takes as many as fit the memory at the first start (a power of two per GPU); later starts keep that number.",
        short="-bs",
        minimum=1,
        words={"auto": AUTO},
    )
    accumulate: int = flag(
        1,
        "Process the batch in this many parts to save memory; the loss still uses the whole batch. auto takes as few as the memory allows.",
        minimum=1,
        words={"auto": AUTO},
    )
    workers: int = flag(2, "DataLoader workers of each rank; 0 loads in the main process.", minimum=0, may_change=True)
    prefetch: int = flag(4, "Batches that each worker prefetches.", minimum=1, may_change=True)

    cache: str = flag(
        "none",
        "Keep decoded frames on each node, shared by its ranks and workers and filled on first use: in memory (ram), or in a folder on a disk of the node. They are removed at the end. The pixels are the same.",
        allowed="none, ram, path",
        may_change=True,
    )
    cache_gb: float = flag(
        0.0,
        "Size of --cache in GiB. 0: half of what is free at the start, of the disk or (ram) of the job's memory.",
        minimum=0,
        may_change=True,
    )

    # --- the backbone
    model: str = flag("timesformer", "Backbone, from video to features.", choices=plugins.names(BACKBONES))
    pretrained_model: str = flag(
        "none",
        "Weight file (.pyth, .pth, .safetensors, c3d.pickle) to start from; none or scratch for random weights.",
        short="-pm",
        allowed="path, none, scratch",
        path=True,
    )
    freeze: bool = flag(False, "Freeze the backbone and train the head only.", short="-f")
    features_once: bool = flag(
        True,
        "With --freeze True and clips that never change (no augmentation, --frame_method spaced_fixed), compute the features once at each start and train the head on them. False computes them in each step; results are equal up to rounding.",
        may_change=True,
    )
    batch_norm: str = flag(
        "frozen",
        "Batch norm of the backbone: frozen uses the running statistics of the weight file, trained those of the batch. first trains the first batch norm alone; the others also keep their weights and biases (TSM's partial batch norm).",
        choices=("frozen", "trained", "first"),
    )
    bn_group: int = flag(
        2, "Actions of the global batch that share batch norm statistics (--batch_norm trained or first).", minimum=1
    )
    bn_windows: str = flag(
        "apart",
        "apart gives each window of a clip its own batch norm statistics; with together all windows share them (--batch_norm trained or first).",
        choices=("apart", "together"),
    )
    checkpoint_activations: str = flag(
        "False",
        "Activation checkpointing. True stores only the input of each block and computes the block again in the backward pass: least memory, a third slower. selective also stores the results of convolutions, matrix products and attention, and computes only the rest again.",
        choices=("False", "True", "selective"),
        may_change=True,
    )

    # --- the method
    method: str = flag("regression", "What to learn from the features.", choices=plugins.names(METHODS))

    # --- optimisation
    epochs: int = flag(5, "Number of passes over the training actions.", short="-ep", minimum=1, may_change=True)
    optimizer: str = flag("AdamW", "Optimizer.", short="-opt", choices=OPTIMIZERS)
    amsgrad: bool = flag(False, "Use the AMSGrad variant of Adam and AdamW.", short="-ams")
    learning_rate: float = flag(0.00001, "Learning rate (peak value if there is a schedule).", short="-lr", minimum=0)
    weight_decay: float = flag(0.00001, "Weight decay.", short="-wd", minimum=0)
    momentum: float = flag(0.9, "Momentum of SGD and RMSProp.", short="-mom", minimum=0)
    nesterov: bool = flag(False, "Use Nesterov momentum with SGD.")
    bias_lr_scale: float = flag(
        1.0, "Multiplies the learning rate of biases, except those of batch norm and layer norm.", minimum=0
    )
    decay_of: str = flag(
        "all",
        "Parameters that --weight_decay acts on: all, or weights (not biases and parameters of batch norm and layer norm).",
        choices=("all", "weights"),
    )
    backbone_lr_scale: float = flag(1.0, "Multiplies the learning rate of the backbone.", minimum=0)
    lr_schedule: str = flag(
        "constant",
        "Learning rate schedule after the warm-up; steps multiplies the rate by --lr_gamma after each epoch in --lr_steps.",
        choices=("constant", "cosine", "steps"),
    )
    lr_steps: tuple[int, ...] = flag((30, 60), "Epochs after which --lr_schedule steps lowers the rate.", minimum=1)
    lr_gamma: float = flag(0.1, "Factor of --lr_schedule steps.", minimum=0)
    warmup_steps: int = flag(0, "Steps of linear warm-up of the learning rate from zero.", minimum=0)
    clip_grad: float = flag(0.0, "Maximum gradient norm; 0 turns clipping off.", minimum=0)
    ema: float = flag(
        0.0,
        "Decay of the exponential moving average of the weights, such as 0.999; validation and test then use the average. 0 turns it off.",
        minimum=0,
        maximum=0.999999,
    )
    patience: int = flag(
        0,
        "Stop after this many epochs without a better validation result; 0 never stops early.",
        minimum=0,
        may_change=True,
    )

    # --- execution
    gpu: bool = flag(True, "Use the GPU if there is one; False uses the CPU.", short="-gpu", may_change=True)
    precision: str = flag(
        "auto", "Precision of the forward pass; auto is bf16 on GPUs that support it, fp16 on other GPUs, fp32 on the CPU.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )  # fmt: skip
    compile: bool = flag(
        False,
        "Compile the backbone with torch.compile (timesformer: its repeated block, others: the whole network, which takes minutes). The first steps are slower, the later ones faster.",
        may_change=True,
    )
    cuda_graphs: bool = flag(
        False,
        "Launch the kernels of the compiled backbone as CUDA graphs, not one by one; needs --compile True and a GPU. It saves time where a GPU waits for launches, such as with few or small clips, and takes memory for the graphs.",
        may_change=True,
    )
    deterministic: bool = flag(
        False,
        "Use only algorithms that give the same bits each time, so that a run on a GPU that was stopped and resumed equals one that was not. Slower. A run on a CPU does so anyway.",
    )
    seed: int = flag(0, "Seed of everything random: weights, split, order, frames, crops, dropout.", minimum=0)
    resume: bool = flag(
        True, "Resume the run in the run folder; False refuses a folder that holds a run.", may_change=True
    )
    checkpoint_every: str = flag(
        "10min",
        "Save a checkpoint every so many steps or minutes, and after each epoch; a killed job loses at most that much. 0 saves only after epochs.",
        allowed="whole number of steps, or minutes such as 10min",
        may_change=True,
    )
    keep_checkpoints: int = flag(
        2, "Number of latest checkpoints to keep, in addition to the best one.", minimum=2, may_change=True
    )
    peer_timeout_min: float = flag(
        10.0,
        "Minutes that a rank waits for other ranks or for its workers before it stops with an error.",
        minimum=0.05,
        maximum=10080,
        may_change=True,
    )
    evaluate: bool = flag(
        False, "At the end, evaluate the best checkpoint on the test split, once.", short="-eval", may_change=True
    )
    log_every: int = flag(10, "Log every so many steps.", minimum=1, may_change=True)
    tensorboard: bool = flag(
        False, "Also write TensorBoard events to the run folder (pip install tensorboard).", may_change=True
    )
    wandb: bool = flag(
        False,
        "Also write a run of Weights & Biases to the run folder (pip install wandb); it is sent nowhere unless WANDB_MODE is set.",
        may_change=True,
    )
    loglevel: str = flag(
        "INFO",
        "Level of log messages.",
        short="-log",
        choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
        may_change=True,
    )

    def __new__(cls, *_: Any, **values: Any) -> TrainConfig:
        if cls is TrainConfig:
            cls = config_class(*(str(values.get(name, cls.__dataclass_fields__[name].default)) for name in CHOOSING))
            if foreign := [name for name in values if name not in cls.__dataclass_fields__]:
                raise UserError.of(filter(None, map(cls.unknown_flag_text, foreign)))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if faults := config_faults(self):
            raise UserError.of(faults)

    def __reduce__(self) -> tuple:
        # pickle cannot import a composed class by name
        return _restored, ({field.name: getattr(self, field.name) for field in dataclasses.fields(self)},)

    @classmethod
    def for_argv(cls, argv: Sequence[str]) -> type[TrainConfig]:
        """The composed class for the --model and --method of a command line, or their defaults.

        data_preparation.common.command_line calls this before parsing.
        """
        if cls is not TrainConfig:
            return cls
        if fault := plugins.folder_fault():
            raise UserError(fault)
        return config_class(*(_chosen(name, argv) for name in CHOOSING))

    @classmethod
    def unknown_flag_text(cls, name: str) -> str | None:
        """The error message if the flag belongs to a backbone or method that was not chosen, else None."""
        full, owners = plugins.owners(name)
        return f"--{full} belongs to {' and '.join(owners)}: leave it out, or choose that" if owners else None

    @property
    def run_dir(self) -> Path:
        return self.runs_dir / self.run_name

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the frames that the backbone reads."""
        return self.spatial_size, self.spatial_width or self.spatial_size

    @property
    def test_size(self) -> tuple[int, int]:
        """(height, width) of the frames that the backbone reads in the test."""
        from training.data.plan import crop_source_size  # imports numpy, for which each step of a job would wait

        return (min(crop_source_size(self.spatial_size)),) * 2 if self.full_res else self.input_size

    @property
    def accumulates_automatically(self) -> bool:
        """Whether the number of parts is chosen. With --batch_size auto it is, unless a number above 1 is given."""
        return self.accumulate == AUTO or (self.batch_size == AUTO and self.accumulate == 1)

    @property
    def views_text(self) -> str:
        """What the predictions of the test are the mean of; empty for the one view of a validation."""
        if (self.test_clips, self.test_crops, self.full_res) == (1, 1, False):
            return ""
        clips, crops = self.test_clips, self.test_crops
        parts = f"{clips} clip{'s' if clips > 1 else ''} x {crops} crop{'s' if crops > 1 else ''}"
        size = " of full resolution" if self.full_res else ""
        return f"{parts}{size}{' (logits)' if self.test_average == 'logit' else ''}"

    @property
    def weight_file(self) -> Path | None:
        """The pretrained weights, or None for random ones."""
        return None if self.pretrained_model.lower() in NO_WEIGHTS else Path(self.pretrained_model)

    @property
    def loader_workers(self) -> int:
        """DataLoader workers of each rank; 0 with --model features, which needs none."""
        return self.workers if self.reads == "video" else 0

    @property
    def save_steps(self) -> int:
        """Steps between two checkpoints; 0 if --checkpoint_every is in minutes or 0."""
        return 0 if self.checkpoint_every.endswith("min") else int(self.checkpoint_every)

    @property
    def save_seconds(self) -> float:
        """Seconds between two checkpoints; infinite if --checkpoint_every is in steps."""
        every = self.checkpoint_every
        return float(every.removesuffix("min")) * 60 if every.endswith("min") else math.inf

    @property
    def leave_out_file(self) -> Path | None:
        return None if self.leave_out.lower() == "none" else Path(self.leave_out)

    @property
    def captions_file(self) -> Path | None:
        return None if self.captions_path.lower() == "none" else Path(self.captions_path)

    @property
    def vocabulary_file(self) -> Path | None:
        return None if self.vocabulary_path.lower() == "none" else Path(self.vocabulary_path)

    @property
    def chosen_videos(self) -> frozenset[str] | None:
        """The videos (or folders of videos) to use, or None for all."""
        return chosen_videos(self.videos)

    @property
    def annotation_files(self) -> datasets.AnnotationFiles:
        """The annotation files; the split lists only if the data set reads them, the test list only if there is a test."""
        reads = datasets.reads_lists(self.dataset_kind) and not self._divides_all
        train = self.train_path if reads else None
        test = self.test_path if reads and task_of(self.task).has_test else None
        return datasets.AnnotationFiles(self.annotation_path, train, test, self.captions_file)

    @property
    def _divides_all(self) -> bool:
        """Whether --split event divides all actions: a data set other than MTL-AQA needs no lists with the default names."""
        lists = [(self.train_path, "train_split_0.pkl"), (self.test_path, "test_split_0.pkl")]
        absent = all(path.name == name and not path.exists() for path, name in lists)
        return absent and self.split == "event" and self.dataset_kind != datasets.DEFAULT

    @property
    def train_list(self) -> Path:
        """The file that lists the training actions, for messages."""
        return self.annotation_files.train or self.annotation_path

    @property
    def test_list(self) -> Path:
        """The file that lists the test actions, for messages."""
        return self.annotation_files.test or self.annotation_path


def _chosen(name: str, argv: Sequence[str]) -> str:
    """The value of a flag on a command line (the last one, if it is repeated), else its default."""
    field = TrainConfig.__dataclass_fields__[name]
    chosen = str(field.default)
    for word, following in pairwise([*argv, ""]):
        flag_name, equals, value = word.partition("=")
        if flag_name == f"--{name}":
            chosen = (value if equals else following).strip()
    known = {choice.lower(): choice for choice in field.metadata["choices"]}
    return known.get(chosen.lower(), str(field.default))  # parse() refuses unknown values later


CHOOSING = (plugins.FLAG_OF[BACKBONES], plugins.FLAG_OF[METHODS])  # the flags that choose the plug-ins


@cache
def config_class(model: str, method: str) -> type[TrainConfig]:
    """Compose the flat dataclass of the common flags, the flags of a backbone and those of a method, in this order.

    Raises:
        UserError: there is no such backbone or method, or it redefines a flag.
    """
    parts = []
    for kind, name in ((BACKBONES, model), (METHODS, method)):
        if name not in plugins.names(kind):
            raise UserError(f"--{plugins.FLAG_OF[kind]} {name}: give one of {', '.join(plugins.names(kind))}")
        parts.append(plugins.flags_of(kind, name))
    taken = {field.name: "the common flags" for field in dataclasses.fields(TrainConfig)}
    for part, owner in zip(parts, (f"--model {model}", f"--method {method}"), strict=True):
        for field in dataclasses.fields(part):
            if field.name in taken:
                raise UserError(f"{owner} has a flag --{field.name}, as {taken[field.name]}: give it another name")
            taken[field.name] = owner
    # dataclass collects fields from the last base class to the first
    own = [part for part in reversed(parts) if part not in TrainConfig.__bases__]
    return dataclass(frozen=True)(type("TrainConfig", (*own, TrainConfig), {"__doc__": TrainConfig.__doc__}))


def _restored(values: dict[str, Any]) -> TrainConfig:
    return TrainConfig(**values)


def config_faults(c: TrainConfig) -> list[str]:
    """Check combinations of flags; return one error message per fault."""
    faults = [*c.backbone_faults(), *c.method_faults()]
    offers = c.offers | ({"frames"} if c.reads == "video" else set())
    if c.needs not in offers:
        faults.append(
            f"--method {c.method} needs {c.needs} of the backbone and --model {c.model} offers {', '.join(sorted(offers))}: choose another --model"
        )
    if c.evaluate and not task_of(c.task).has_test:
        faults.append(
            f"--evaluate True does not fit --method {c.method}, a pretraining without a test split: give --evaluate False"
        )
    if not 0 < c.train_val_split_ratio < 1:
        faults.append(
            f"--train_val_split_ratio {c.train_val_split_ratio:g} leaves nothing for training or validation: give a number between 0 and 1"
        )
    if c.output.suffix.lower() != ".png":
        faults.append(f"--output {c.output} is not a .png file: give a path that ends in .png")
    if not re.fullmatch(r"[\w+=][\w.+=-]{0,99}", c.run_name):
        faults.append(
            f"--run_name '{c.run_name}' is not a valid folder name: use up to 100 letters, digits, '-', '_', '+', '=' and '.', and do not start with '-' or '.'"
        )
    try:
        chosen_videos(c.videos)
    except UserError as error:
        faults.append(str(error))
    if c.accumulate and c.batch_size % c.accumulate:
        faults.append(
            f"--batch_size {c.batch_size} cannot be split into --accumulate {c.accumulate} parts: give a multiple of {c.accumulate}"
        )
    if c.split == "event" and c.fold > c.folds:
        faults.append(f"--fold {c.fold} is larger than --folds {c.folds}: give 1 to {c.folds}")
    if c.geometry != "standard" and not c.data_aug:
        faults.append(
            f"--geometry {c.geometry} requires crops: give --data_aug True, or leave it out to resize whole frames to a square"
        )
    if c.spatial_width and not c.any_size:
        faults.append(f"--model {c.model} needs a square input: leave --spatial_width out, or choose --model tsm")
    if c.spatial_width and c.data_aug:
        faults.append("--spatial_width with --data_aug True: crops are square, leave one of them out")
    if c.flip and c.data_aug:
        faults.append("--flip True with --data_aug True: crops are flipped already, leave --flip out")
    if c.reads != "video" and (c.flip or c.augment != "none"):
        faults.append(f"--model {c.model} reads no frames: leave --flip and --augment out")
    if c.augment_on == "device" and c.augment == "none":
        faults.append("--augment_on device without augmentation: give --augment randaugment, or leave it out")
    if c.reads != "video" and c.cache.lower() != "none":
        faults.append(f"--model {c.model} reads no frames: leave --cache out")
    if c.cache.lower() not in ("none", "ram") and not Path(c.cache).is_absolute():
        faults.append(
            f"--cache {c.cache} is a relative path: give none, ram or a folder such as /tmp/cache on a disk of the nodes"
        )
    if c.cache_gb and c.cache.lower() == "none":
        faults.append(f"--cache_gb {c.cache_gb:g} without a cache: give --cache ram or a folder, or leave it out")
    if c.reads != "video" and c.frame_decode != "full":
        faults.append(f"--model {c.model} reads no frames: leave --frame_decode out")
    if c.frame_decode == "gpu" and c.cache.lower() != "none":
        faults.append(
            "--frame_decode gpu gives the workers no pixels to keep: leave --cache out, or give --frame_decode full"
        )
    if c.frame_decode == "gpu" and c.augment != "none" and c.augment_on == "loader":
        faults.append(
            "--frame_decode gpu gives the workers no pixels to augment: give --augment_on device, or leave it out"
        )
    if c.cuda_graphs and not c.compile:
        faults.append("--cuda_graphs True needs a compiled backbone: give --compile True, or leave --cuda_graphs out")
    if c.cuda_graphs and c.checkpoint_activations == "selective":
        faults.append(
            "--cuda_graphs True with --checkpoint_activations selective: PyTorch runs such blocks uncompiled, give --checkpoint_activations True or False"
        )
    faults += test_view_faults(c)
    if c.normalize and c.input_scale not in ("auto", "mtl_aqa"):
        faults.append(f"--normalize True contradicts --input_scale {c.input_scale}: give one of them")
    if not re.fullmatch(r"\d+|\d+(\.\d+)?min", c.checkpoint_every) or re.fullmatch(r"0+(\.0+)?min", c.checkpoint_every):
        faults.append(
            f"--checkpoint_every {c.checkpoint_every} is neither a number of steps nor minutes: give for example 500, 10min or 0"
        )
    if fault := batch_norm_fault(c, 1):
        faults.append(fault)
    if c.nesterov and not (c.optimizer == "SGD" and c.momentum > 0):
        faults.append(
            "--nesterov True requires SGD with momentum: give --optimizer SGD and --momentum above 0, or leave --nesterov out"
        )
    if (c.captions_file is None) != (c.vocabulary_file is None):
        faults.append("--captions_path and --vocabulary_path must be given together: give both, or none for both")
    return faults


def test_view_faults(c: TrainConfig) -> list[str]:
    """Check the flags of the views of the test; return one error message per fault."""
    if not c.views_text:
        if c.test_average == "logit":
            return ["--test_average logit has nothing to average: give --test_crops or --test_clips, or leave it out"]
        return []
    given = [
        f"--{name}" for name in ("test_crops", "test_clips", "full_res") if getattr(c, name) > 1 - (name == "full_res")
    ]
    if c.reads != "video" or not task_of(c.task).has_test:
        reason = (
            f"--model {c.model} reads no frames" if c.reads != "video" else f"--method {c.method} has no test split"
        )
        return [f"{reason}: leave {' and '.join(given)} out"]
    faults = []
    if c.test_crops not in (1, 3, 5, 10):
        faults.append(f"--test_crops {c.test_crops}: give 1, 3, 5 or 10")
    if (c.test_crops > 1 or c.full_res) and not c.data_aug:
        faults.append(f"{' and '.join(given)}: without --data_aug True there are no crops: give it, or leave them out")
    if c.full_res and c.test_crops > 3:
        faults.append(
            f"--full_res True with --test_crops {c.test_crops}: crops as high as the frame have no corners, give 1 or 3"
        )
    if c.full_res and not c.any_size:
        faults.append(
            f"--full_res True: --model {c.model} needs frames of --spatial_size, choose --model tsm or leave it out"
        )
    if c.test_average == "logit" and c.task != "label":
        faults.append("--test_average logit is for classes: leave it out, final scores are averaged in points")
    return faults


def batch_norm_fault(c: TrainConfig, ranks: int) -> str | None:
    """Check that each part of the batch holds complete groups of --batch_norm trained on this many ranks."""
    parts = ranks * max(c.accumulate, 1)
    if c.batch_norm == "frozen" or c.batch_size % parts or c.batch_size // parts % c.bn_group == 0:
        return None
    return f"--batch_size {c.batch_size} in {parts} parts ({ranks} ranks, --accumulate {c.accumulate}) gives {c.batch_size // parts} actions each, which is not a multiple of --bn_group {c.bn_group}: change one of them"


# commands that open an existing run folder may override these flags: the paths of the data and settings of the computation
DATA_PATHS = ("root_dir", "annotation_path", "train_path", "test_path", "leave_out", "captions_path", "vocabulary_path")


def plugin_paths() -> dict[str, dataclasses.Field]:
    """The flags of all backbones and methods that are paths of data files, by name."""
    flags = [plugins.flags_of(kind, name) for kind in (BACKBONES, METHODS) for name in plugins.names(kind)]
    return {field.name: field for each in flags for field in dataclasses.fields(each) if field.metadata["path"]}


REOPENED = (*DATA_PATHS, *plugin_paths(), "precision", "workers", "prefetch")


def as_in_run(name: str) -> Any:
    """A dataclass field for a training flag in a command that opens an existing run; its default is the value in config.json."""
    metadata = {**plugin_paths(), **TrainConfig.__dataclass_fields__}[name].metadata
    return dataclasses.field(default=None, metadata={**metadata, "default": "as in the run"})


def reopened(saved: TrainConfig, options: Any) -> TrainConfig:
    """The configuration of a run, with the overrides given by the `as_in_run` flags in `options`.

    Raises:
        UserError: a flag belongs to another backbone or method than the run's.
    """
    return dataclasses.replace(saved, **given_again(saved, options))


def given_again(saved: TrainConfig, options: Any) -> dict[str, Any]:
    """The overrides given by the `as_in_run` flags in `options`, by name.

    Raises:
        UserError: a flag belongs to another backbone or method than the run's.
    """
    given = {name: value for name in REOPENED if (value := getattr(options, name, None)) is not None}
    if foreign := [name for name in given if not hasattr(saved, name)]:
        raise UserError.of(filter(None, map(saved.unknown_flag_text, foreign)))
    return given


def missing_data(c: TrainConfig) -> dict[str, Path]:
    """The missing files and folders of the data set, by flag name."""
    used = c.annotation_files
    files: dict[str, Path | None] = {"annotation_path": used.annotations, "train_path": used.train}
    files |= {
        "test_path": used.test,
        "leave_out": c.leave_out_file,
        "captions_path": c.captions_file,
        "vocabulary_path": c.vocabulary_file,
    }
    own = {name: str(getattr(c, name)) for name in plugin_paths() if hasattr(c, name)}
    files |= {name: Path(path) for name, path in own.items() if path.lower() not in NO_WEIGHTS}
    missing = {name: file for name, file in files.items() if file and not file.exists()}
    return ({} if c.reads != "video" or c.root_dir.is_dir() else {"root_dir": c.root_dir}) | missing


def moved_data_fault(c: TrainConfig, options: Any, command: str) -> str | None:
    """Return an error message if data of the run `options.run` are missing, else None.

    It lists all missing paths and the complete command with placeholders for the new ones.
    """
    if not (missing := missing_data(c)):
        return None
    above = _common_folder([path.parent for path in missing.values()])
    new = {name: f"NEW/{path.relative_to(above) if above else path.name}" for name, path in missing.items()}
    given = to_argv(dataclasses.replace(options, **dict.fromkeys(missing)))
    base = f", relative to {Path.cwd()}" if any(not path.is_absolute() for path in missing.values()) else ""
    listed = ", ".join(f"--{name} {path}" for name, path in missing.items())
    flags = shlex.join([*given, *(word for name, path in new.items() for word in (f"--{name}", path))])
    return f"the data of {options.run} are not at the paths of its flags ({listed}{base}): give their new paths: {command} {flags}"


def _common_folder(folders: list[Path]) -> Path | None:
    """The deepest folder that contains all of `folders`, or None if there is none or it is the root."""
    try:
        common = Path(os.path.commonpath(folders))
    except ValueError:  # a mixture of absolute and relative paths
        return None
    return None if common == Path(common.anchor) else common


def _is_installed(package: str) -> bool:
    """Whether a package can be imported. A folder of that name without a package does not count, such as W&B's output."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def path_faults(c: TrainConfig) -> list[str]:
    """Check that the paths that a run needs exist; return one error message per missing path."""
    faults = []
    for name, path in missing_data(c).items():
        if name == "root_dir":
            faults.append(
                f"--root_dir {path} is not a folder: prepare the frames first (python -m data_preparation.extract)"
            )
        else:
            end = ", or none" if name in ("leave_out", "captions_path", "vocabulary_path") else ""
            faults.append(f"--{name} {path} is not a file or folder (relative to {Path.cwd()}): give its path{end}")
    if c.tensorboard and not _is_installed("tensorboard"):
        faults.append("--tensorboard True needs TensorBoard: pip install tensorboard, or give --tensorboard False")
    if c.wandb and not _is_installed("wandb"):
        faults.append("--wandb True needs Weights & Biases: pip install wandb, or give --wandb False")
    if c.weight_file and not c.weight_file.is_file():
        faults.append(
            f"--pretrained_model {c.weight_file} is not a file: download it, or give none to train from scratch"
        )
    return faults


def as_record(config: TrainConfig) -> dict:
    """The configuration as a dictionary of JSON types."""
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in ((f.name, getattr(config, f.name)) for f in dataclasses.fields(config))
    }


def from_record(record: dict) -> TrainConfig:
    """The inverse of `as_record`.

    Raises:
        UserError: the record is damaged or has unknown fields.
    """
    if not isinstance(record, dict):
        raise UserError("the run's configuration is damaged: restore config.json from a copy")
    cls = config_class(*(str(record.get(name, TrainConfig.__dataclass_fields__[name].default)) for name in CHOOSING))
    fields = {f.name: f for f in dataclasses.fields(cls)}
    # the first edition wrote the flags of all backbones and methods; flags of those that were not chosen have no effect
    record = {name: value for name, value in record.items() if name in fields or not plugins.owners(name)[1]}
    if unknown := sorted(set(record) - set(fields)):
        raise UserError(
            f"the run's configuration has fields that this version does not know: {', '.join(unknown)}; use the code revision that wrote it"
        )
    if not record:
        raise UserError("the run's configuration is empty: restore config.json from a copy")
    values: dict[str, Any] = {
        name: Path(value)
        if isinstance(fields[name].default, Path) and isinstance(value, str)
        else str(value)  # in earlier versions --checkpoint_every was a number, --checkpoint_activations true or false
        if isinstance(fields[name].default, str)
        else tuple(value)
        if isinstance(value, list)
        else value
        for name, value in record.items()
    }
    for name, value in values.items():
        if not isinstance(
            value, (int, float) if isinstance(fields[name].default, float) else type(fields[name].default)
        ):
            raise UserError(
                f"the run's configuration is damaged ({name} is {value!r}): restore config.json from a copy"
            )
    try:
        return cls(**values)
    except (TypeError, AttributeError) as error:
        raise UserError(f"the run's configuration is damaged ({error}): restore config.json from a copy") from None


def changeable(config: TrainConfig) -> set[str]:
    """The flags that a resumed run may change."""
    return {field.name for field in dataclasses.fields(config) if field.metadata["may_change"]}


def differences(old: TrainConfig, new: TrainConfig) -> tuple[list[str], list[str]]:
    """The differences as '--name: old -> new': those that prevent a resume, and those that do not."""
    fixed: list[str] = []
    free: list[str] = []
    fields = {f.name: f for config in (old, new) for f in dataclasses.fields(config)}
    chosen = {
        name
        for name, is_auto in (("batch_size", new.batch_size == AUTO), ("accumulate", new.accumulates_automatically))
        if is_auto
    }
    for name, field in fields.items():
        if name in chosen:  # from what the run has
            continue
        # a flag that one of them lacks belongs to another backbone or method: --model or --method differs then
        was, is_now = (getattr(config, name, None) for config in (old, new))
        if was != is_now and hasattr(old, name) and hasattr(new, name):
            # the cosine schedule depends on the number of epochs
            may = field.metadata["may_change"] and not (name == "epochs" and new.lr_schedule == "cosine")
            (free if may else fixed).append(f"--{name}: {was} -> {is_now}")
    return fixed, free


@dataclass(frozen=True)
class ReopenConfig:
    """Flags of a command that opens the data of a trained run again."""

    run: Path = flag(None, "Run folder.")
    gpu: bool = flag(True, "Use the GPU if there is one.")
    root_dir: Path | None = as_in_run("root_dir")
    annotation_path: Path | None = as_in_run("annotation_path")
    train_path: Path | None = as_in_run("train_path")
    test_path: Path | None = as_in_run("test_path")
    leave_out: str | None = as_in_run("leave_out")
    captions_path: str | None = as_in_run("captions_path")
    vocabulary_path: str | None = as_in_run("vocabulary_path")
    precision: str | None = as_in_run("precision")
    workers: int | None = as_in_run("workers")
    prefetch: int | None = as_in_run("prefetch")

    def __post_init__(self) -> None:
        if self.run is None:
            raise UserError("--run is missing: give the run folder, such as runs/default")


def with_plugin_paths(base: type) -> type:
    """The flags of `base` (a class named _NAME) and the data paths of all backbones and methods, such as --boxes, which are as in
    the run unless they are given."""
    paths = [(name, Path | None, as_in_run(name)) for name in plugin_paths()]
    about = {"__doc__": base.__doc__, "__module__": base.__module__}
    return dataclasses.make_dataclass(base.__name__.lstrip("_"), paths, bases=(base,), namespace=about, frozen=True)
