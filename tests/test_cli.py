"""Flags: one dataclass feeds the command line, the shipped flag files and the README files."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_preparation.common.command_line import build_parser, flag_faults, parse, to_argv
from data_preparation.common.errors import UserError
from launch.config import LaunchConfig, read_flag_file, split_argv
from launch.readme_tables import tables
from tests.conftest import REPOSITORY, run_python
from training import plugins
from training.config import TrainConfig, as_record, differences, from_record

# name: (short form, default) of the original's flag table; `spaced_fixed` is the documented `space_fixed`'s true name
ORIGINAL_FLAGS = {
    "loglevel": ("-log", "INFO"), "gpu": ("-gpu", True), "root_dir": ("-root", Path("./")),
    "train_path": ("-tr", Path("./train_split_0.pkl")), "test_path": ("-te", Path("./test_split_0.pkl")),
    "batch_size": ("-bs", 4), "epochs": ("-ep", 5), "learning_rate": ("-lr", 1e-5), "weight_decay": ("-wd", 1e-5),
    "momentum": ("-mom", 0.9), "train_val_split_ratio": ("-sr", 0.8), "frame_num": ("-fn", 8),
    "frame_method": ("-fm", "spaced_fixed"), "spatial_size": ("-ss", 224), "freeze": ("-f", False),
    "dropout": ("-dr", (0.5, 0.5)), "activation": ("-act", "None"), "topology": ("-top", (512, 256)),
    "output": ("-out", Path("./losses.png")), "annotation_path": ("-ann", Path("./final_annotations_dict.pkl")),
    "attention_type": ("-at", "divided_space_time"), "optimizer": ("-opt", "AdamW"), "patch_size": ("-ps", 16),
    "embed_dim": ("-ed", 768), "pretrained_model": ("-pm", "none"), "evaluate": ("-eval", False),
    "normalize": ("-norm", False), "data_aug": ("-da", False), "amsgrad": ("-ams", False), "videos": ("-vid", ("all",)),
    "loss_mse_weight": (None, 1.0), "loss_spcoef_weight": (None, 0.0), "use_decoder": (None, False),
}  # fmt: skip

NEW_FLAGS = {
    "runs_dir", "run_name", "workers", "prefetch", "model", "depth", "num_heads", "drop_path", "method",
    "spcoef_strength", "spcoef_norm", "lr_schedule", "warmup_steps", "clip_grad", "patience", "precision", "seed",
    "resume", "checkpoint_every", "keep_checkpoints", "cache", "cache_gb", "peer_timeout_min", "log_every", "leave_out", "captions_path", "vocabulary_path", "split", "folds", "fold", "split_seed",
    "input_scale", "accumulate", "deterministic", "time_embed_resize", "checkpoint_activations", "ema", "compile", "cuda_graphs", "tensorboard", "wandb", "features_once",
    "dataset_kind", "batch_norm", "bn_group", "bn_windows", "nesterov", "backbone_lr_scale", "lr_steps", "lr_gamma", "geometry",
    "bias_lr_scale", "decay_of", "flip", "augment", "spatial_width", "augment_on", "frame_decode", "test_crops", "test_clips", "full_res", "test_average",
}  # fmt: skip

# what belongs to --model timesformer and --method regression, the defaults
OWNED = {
    "attention_type", "patch_size", "embed_dim", "depth", "num_heads", "drop_path", "time_embed_resize", "topology",
    "dropout", "activation", "use_decoder", "loss_mse_weight", "loss_spcoef_weight", "spcoef_strength", "spcoef_norm",
}  # fmt: skip


def test_the_originals_flags_keep_names_short_forms_and_defaults():
    fields = {f.name: f for f in dataclasses.fields(TrainConfig())}
    for name, (short, default) in ORIGINAL_FLAGS.items():
        assert fields[name].metadata["short"] == short, name
        assert fields[name].default == default, name


def test_adding_a_flag_is_deliberate():
    of_default = {f.name for f in dataclasses.fields(TrainConfig())}
    common = {f.name for f in dataclasses.fields(TrainConfig)}
    assert of_default == set(ORIGINAL_FLAGS) | NEW_FLAGS
    assert of_default - common == OWNED
    assert [name for name in of_default if bool(plugins.owners(name)[1]) != (name in OWNED)] == []


@pytest.mark.parametrize("short_form", [True, False])
def test_every_original_flag_is_understood(short_form: bool):
    values = {
        "loglevel": ["debug"], "gpu": ["false"], "root_dir": ["/a"], "train_path": ["/t"], "test_path": ["/u"],
        "batch_size": ["6"], "epochs": ["7"], "learning_rate": ["1e-3"], "weight_decay": ["0"], "momentum": ["0.5"],
        "train_val_split_ratio": ["0.7"], "frame_num": ["16"], "frame_method": ["Spaced_Varied"], "spatial_size": ["64"],
        "freeze": ["True"], "dropout": ["0.1", "0.2", "0.3"], "activation": ["leakyrelu"], "topology": ["8", "9", "10"],
        "output": ["x.png"], "annotation_path": ["/n"], "attention_type": ["space_only"], "optimizer": ["rmsprop"],
        "patch_size": ["8"], "embed_dim": ["96"], "pretrained_model": ["scratch"], "evaluate": ["True"],
        "normalize": ["True"], "data_aug": ["True"], "amsgrad": ["True"], "videos": ["01", "02"],
        "loss_mse_weight": ["-1"], "loss_spcoef_weight": ["0.5"], "use_decoder": ["True"],
    }  # fmt: skip
    assert set(values) == set(ORIGINAL_FLAGS)
    argv = []
    for name, words in values.items():
        short = ORIGINAL_FLAGS[name][0]
        argv += [short if short_form and short else f"--{name}", *words]
    config = parse(TrainConfig, argv)
    assert config.activation == "LeakyReLU"
    assert config.optimizer == "RMSProp"
    assert config.frame_method == "spaced_varied"
    assert config.dropout == (0.1, 0.2, 0.3)
    assert config.loss_mse_weight == -1
    assert config.chosen_videos == {"01", "02"}
    assert config.weight_file is None
    assert not config.gpu
    unchanged = {n for n, (_, default) in ORIGINAL_FLAGS.items() if getattr(config, n) == default}
    assert not unchanged


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--frame_method", "space_fixed"], ["space_fixed", "did you mean spaced_fixed"]),
        (["--batchsize", "3"], ["--batchsize", "did you mean --batch_size"]),
        (["--batch_size", "0"], ["'0'", "[1, inf]"]),
        (["--learning_rate", "nan"], ["nan"]),
        (["--gpu", "Yes"], ["'Yes'", "True, False"]),
        (["--topology", "8", "--dropout", "0.1", "0.2"], ["--topology", "--dropout"]),
        (["--dropout", "1.5", "0.1"], ["1.5"]),
        (["--train_val_split_ratio", "1"], ["--train_val_split_ratio"]),
        (["--output", "losses.jpg"], [".png"]),
        (["--spatial_size", "100"], ["--patch_size"]),
        (["--embed_dim", "100"], ["--num_heads"]),
        (["--model", "c3d"], ["--frame_num"]),
        (["--videos", "../first"], ["--videos"]),
        (["--run_name", "a/b"], ["--run_name"]),
        (["--model", "resnet"], ["c3d, features, i3d, ", ", timesformer"]),
        (["stray"], ["stray"]),
    ],
)
def test_a_bad_flag_is_one_sentence_with_the_fix(argv: list[str], words: list[str]):
    with pytest.raises(UserError) as error:
        parse(TrainConfig, argv)
    for word in words:
        assert word in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_all_wrong_flags_of_a_command_line_are_named_at_once():
    argv = ["stray", "--batchsize", "8", "--epochs", "0", "-lr", "fast", "--gpu=Yes", "--dropout", "1.5", "0.1", "2"]
    with pytest.raises(UserError) as error:
        parse(
            TrainConfig,
            [*argv, "--fold", "1", "2", "--nodes", "2", "--seed"],
            others={"give it before --": LaunchConfig},
        )
    expected = [
        "'stray'", "did you mean --batch_size?", "-ep/--epochs: '0'", "--learning_rate: 'fast'", "--gpu: 'Yes'",
        "--dropout: '1.5'", "--dropout: '2'", "--fold takes one value: leave out '2'",
        "unknown flag '--nodes' here: give it before --", "--seed: expected one argument",
    ]  # fmt: skip
    lines = str(error.value).splitlines()
    assert len(lines) == len(expected)
    for line, words in zip(lines, expected, strict=True):
        assert words in line


@pytest.mark.parametrize(
    "command",
    ["data_preparation.extract", "data_preparation.verify", "data_preparation.download annotations", "training.train",
     "training.evaluate", "launch.submit", "launch.sweep submit", "launch.pipeline", "launch.status"],
)  # fmt: skip
def test_every_command_names_all_its_wrong_flags(command: str):
    module, *words = command.split()
    with pytest.raises(UserError) as error:
        importlib.import_module(module).main([*words, "--nonsense", "3", "--fantasy"])
    assert "--nonsense" in str(error.value)
    assert "--fantasy" in str(error.value)


WORDS = [
    "--epochs",
    "-ep",
    "--gpu",
    "--topology",
    "--epochs=3",
    "--bs=1",
    "3",
    "0",
    "-1",
    "-1e-3",
    "x",
    "",
    "--",
    "-",
    "True",
    "-h1",
]


@given(st.lists(st.sampled_from(WORDS), max_size=5))
def test_the_faults_of_a_command_line_are_argparses(argv: list[str]):
    """A command line has faults exactly if argparse refuses it."""
    words = [f" {word}" if word in ("-1", "-1e-3") else word for word in argv]
    try:
        _, unknown = build_parser(TrainConfig.for_argv(words)).parse_known_args(words)
        refused = bool(unknown)
    except UserError:
        refused = True
    assert bool(flag_faults(TrainConfig, argv)) == refused


def test_a_bad_flag_or_path_ends_with_status_2_before_anything_is_made(tmp_path: Path):
    for flags, word in (
        (["--epochs", "0"], "--epochs"),
        (["--root_dir", str(tmp_path / "none"), "--runs_dir", str(tmp_path / "runs")], "--root_dir"),
    ):
        done = run_python("-m", "training.train", *flags, check=False)
        assert done.returncode == 2
        assert word in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@given(
    st.builds(
        TrainConfig,
        batch_size=st.integers(1, 999),
        learning_rate=st.floats(0, 1),
        gpu=st.booleans(),
        loss_spcoef_weight=st.floats(-10, 10),
        videos=st.sampled_from([("all",), ("01", "26")]),
        activation=st.sampled_from(["None", "GELU"]),
        seed=st.integers(0, 2**31),
    )
)
def test_a_configuration_survives_the_command_line_and_the_run_folder(config: TrainConfig):
    assert parse(TrainConfig, to_argv(config)) == config
    assert from_record(as_record(config)) == config
    assert differences(config, from_record(as_record(config))) == ([], [])


def test_the_last_of_repeated_flags_wins():
    assert parse(TrainConfig, ["--epochs", "3", "--epochs", "4"]).epochs == 4


FLAG_FILES = [
    "model_train_config.sh",
    "job_files/drawn_clips_config.sh",
    "job_files/quickstart_config.sh",
    "job_files/small_cpu_config.sh",
]
FLAG_FILES += sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("job_files/methods/*.sh"))


@pytest.mark.parametrize("file", FLAG_FILES)
def test_shipped_flag_files_are_understood(file: str):
    parse(TrainConfig, read_flag_file(REPOSITORY / file))


def test_the_shipped_settings_are_the_originals():
    config = parse(TrainConfig, read_flag_file(REPOSITORY / "model_train_config.sh"))
    assert (config.batch_size, config.epochs, config.frame_num, config.learning_rate) == (8, 200, 48, 1e-5)
    assert (config.topology, config.dropout, config.activation) == ((512, 512), (0.2, 0.2), "LeakyReLU")
    assert (config.frame_method, config.data_aug, config.amsgrad) == ("spaced_varied_new", True, True)
    assert (config.normalize, config.input_scale) == (False, "auto")  # but the weight file's own normalisation
    assert config.evaluate
    assert config.weight_file.name == "TimeSformer_divST_96x32_224_HowTo100M.pyth"


def test_the_readmes_hold_the_flag_tables():
    for file, of_file in tables().items():
        readme = (REPOSITORY / file).read_text()
        for name, table in of_file.items():
            expected = f"<!-- {name} -->\n{table}\n<!-- end of {name} -->"
            assert expected in readme, f"{name} of {file}: run python -m launch.readme_tables"


def test_launch_and_training_flags_are_split():
    assert split_argv(["--nodes", "2", "--", "--epochs", "3"]) == (["--nodes", "2"], ["--epochs", "3"])
    assert split_argv(["--nodes", "2"]) == (["--nodes", "2"], [])
