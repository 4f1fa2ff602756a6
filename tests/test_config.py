"""Settings: defaults, files, overrides, and what is said about wrong ones."""

import dataclasses

import pytest

from covidjax.config import AugmentConfig, Config, DataConfig, ModelConfig, Preprocess, TrainConfig, load_config
from covidjax.errors import UsageError, UserError
from covidjax.runs.folder import Run


def toml(tmp_path, text):
    path = tmp_path / "experiment.toml"
    path.write_text(text, encoding="utf-8")
    return path


def message_of(error_type, call, *arguments, **keywords):
    with pytest.raises(error_type) as caught:
        call(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_are_the_documented_ones():
    config = load_config()
    assert config == Config()
    assert config.seed == 0
    assert config.data == DataConfig("sample", 0, None)
    assert config.model == ModelConfig("darkcovidnet", 1)
    assert (config.train.epochs, config.train.batch_size, config.train.learning_rate) == (100, 32, 3e-3)
    assert config.augment.horizontal_flip is True
    assert Preprocess() == Preprocess(224, "none", ("COVID-19", "No-Findings", "Pneumonia"))


def test_settings_cannot_be_changed_once_made():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config().train.epochs = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_file_changes_defaults_and_override_changes_file(tmp_path):
    file = toml(tmp_path, "seed = 7\n[train]\nepochs = 5\nbatch_size = 8\n[augment]\nhorizontal_flip = false\n")
    config = load_config(file, ["train.epochs=9", "data.test_fold=2"])
    assert config == Config(
        seed=7,
        data=DataConfig(test_fold=2),
        augment=AugmentConfig(horizontal_flip=False),
        train=TrainConfig(epochs=9, batch_size=8),
    )


def test_of_two_overrides_of_one_key_the_last_holds():
    assert load_config(overrides=["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.learning_rate=1e-2", "train", "learning_rate", 0.01),
        ("train.learning_rate = 1", "train", "learning_rate", 1.0),  # int for float
        ("augment.rotation=0", "augment", "rotation", 0.0),
        ("augment.horizontal_flip=false", "augment", "horizontal_flip", False),
        ("train.schedule=constant", "train", "schedule", "constant"),  # bare text
        ('train.schedule="constant"', "train", "schedule", "constant"),  # text as in TOML
        ("data.path=/a/b=c", "data", "path", "/a/b=c"),
        ("model.channels=3", "model", "channels", 3),
        ("data.val_fold=1", "data", "val_fold", 1),
        ("data.val_fold=none", "data", "val_fold", None),
    ],
)
def test_override_is_read_as_a_value_of_its_field(override, section, key, value):
    found = getattr(getattr(load_config(overrides=[override]), section), key)
    assert found == value
    assert type(found) is type(value)


def test_none_in_an_override_takes_back_what_the_file_set(tmp_path):
    file = toml(tmp_path, "[data]\nval_fold = 2\n")
    assert load_config(file).data.val_fold == 2
    assert load_config(file, ["data.val_fold=none"]).data.val_fold is None


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.epoch=3", ["--set", "unknown key train.epoch;", "did you mean train.epochs?"]),
        ("sead=3", ["unknown key sead;", "did you mean seed?"]),
        ("trian.epochs=3", ["unknown key trian;", "did you mean train?"]),
        (
            "model.zzzzzz=3",
            ["unknown key model.zzzzzz;", "known here: model.name, model.channels, model.width,"],
        ),
        ("epochs", ["key=value", "'epochs'"]),
        ("train=3", ["train is a section"]),
        ("train.epochs.x=3", ["train.epochs must be of type int"]),
        ("train.epochs=many", ["train.epochs must be of type int, not 'many'"]),
        ("train.epochs=1.5", ["train.epochs must be of type int, not 1.5"]),
        ("train.epochs=true", ["train.epochs must be of type int, not True"]),
        ("train.learning_rate=true", ["train.learning_rate must be of type float, not True"]),
        ("augment.horizontal_flip=1", ["augment.horizontal_flip must be of type bool, not 1"]),
        ("data.path=3", ["data.path must be of type str, not 3"]),
        ("data.val_fold=x", ["data.val_fold must be of type int, not 'x'"]),
        ("train.schedule=cosine", ["train.schedule must be one of one-cycle, constant, not 'cosine'"]),
        ("model.channels=2", ["model.channels must be one of 1, 3, not 2"]),
        ("model.channels=true", ["model.channels must be one of 1, 3, not True"]),
        ("model.name=resnet", ["model.name must be one of darkcovidnet", "not 'resnet'"]),
    ],
)
def test_wrong_override_is_a_usage_error_that_names_the_key(override, parts):
    message = message_of(UsageError, load_config, overrides=[override])
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("train.epochs=0", "train.epochs must be at least 1."),
        ("train.batch_size=0", "train.batch_size must be at least 1."),
        ("train.learning_rate=0", "train.learning_rate must be above 0 and finite."),
        ("train.learning_rate=nan", "train.learning_rate must be above 0 and finite."),
        ("train.weight_decay=-1", "train.weight_decay must be at least 0 and finite."),
        ("train.label_smoothing=1", "train.label_smoothing must be at least 0 and below 1."),
        ("train.ema_decay=1", "train.ema_decay must be at least 0 and below 1."),
        ("data.test_fold=-1", "data.test_fold must be at least 0."),
        ("augment.shift=1", "augment.shift must be at least 0 and below 1."),
        ("augment.zoom=-0.1", "augment.zoom must be at least 0 and finite."),
        ("augment.contrast=-0.1", "augment.contrast must be at least 0 and finite."),
        ("seed=-1", "seed must be from 0 to 4294967295."),
        ("seed=4294967296", "seed must be from 0 to 4294967295."),
    ],
)
def test_value_out_of_range_is_a_usage_error_that_says_the_range(override, wanted):
    assert message_of(UsageError, load_config, overrides=[override]) == wanted


@pytest.mark.parametrize("name", ["augment.rotation", "augment.brightness"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_augmentation_that_cannot_be_is_a_usage_error(name, value):
    assert name in message_of(UsageError, load_config, overrides=[f"{name}={value}"])


@pytest.mark.parametrize(
    ("former", "told"),
    [
        ("augment.flip=true", "--set: augment.flip is called augment.horizontal_flip now; write that."),
        ("model.views=10", "--set: model.views is called model.tta now; write that."),
        ("train.averaging=0.9", "--set: train.averaging is called train.ema_decay now; write that."),
        ("train.refresh=true", "--set: train.refresh is called train.recalibrate_batch_norm now; write that."),
        ("train.together=yes", "--set: train.together is gone: networks are trained one after another, which is as fast; "),
    ],
)
def test_setting_of_an_earlier_version_is_refused_with_its_present_name(tmp_path, former, told):
    assert message_of(UsageError, load_config, overrides=[former]).startswith(told)
    section, _, line = former.partition(".")
    line = line.replace("yes", '"yes"')
    file = toml(tmp_path, f"[{section}]\n{line}\n")
    assert message_of(UsageError, load_config, file).startswith(told.replace("--set", str(file)))


def test_run_of_an_earlier_version_is_read(tmp_path):
    """Its settings have the names that they had then; what is gone is passed over."""
    path = tmp_path / "config.toml"
    path.write_text(
        "[config]\nseed = 3\n[config.model]\nviews = 10\n[config.augment]\nflip = false\n"
        '[config.train]\naveraging = 0.5\nrefresh = true\ntogether = "no"\n[preprocess]\nimage_size = 64\n'
    )
    run = Run.load(path)
    assert (run.config.seed, run.config.model.tta, run.config.augment.horizontal_flip) == (3, 10, False)
    assert (run.config.train.ema_decay, run.config.train.recalibrate_batch_norm) == (0.5, True)
    run.save(path)
    assert Run.load(path) == run
    assert "averaging" not in path.read_text()


def test_number_of_another_type_is_no_literal_choice():
    assert type(load_config(overrides=["model.channels=1"]).model.channels) is int
    assert "model.channels" in message_of(UsageError, load_config, overrides=["model.channels=1.0"])


def test_unknown_key_in_a_file_names_the_file_and_the_nearest_key(tmp_path):
    file = toml(tmp_path, "[train]\nbatchsize = 8\n")
    message = message_of(UsageError, load_config, file)
    assert message == f"{file}: unknown key train.batchsize; did you mean train.batch_size?"


def test_section_as_a_value_in_a_file_is_a_usage_error_with_and_without_an_override(tmp_path):
    file = toml(tmp_path, "train = 5\n")
    assert "train is a section" in message_of(UsageError, load_config, file)
    assert "train has no keys below it" in message_of(UsageError, load_config, file, ["train.epochs=3"])


def test_missing_file_folder_and_text_that_is_no_toml_are_usage_errors(tmp_path):
    missing = tmp_path / "no.toml"
    assert (
        message_of(UsageError, load_config, missing)
        == f"{missing} cannot be read (No such file or directory); check its name."
    )
    assert "cannot be read (Is a directory)" in message_of(UsageError, load_config, tmp_path)
    assert "is not valid TOML" in message_of(UsageError, load_config, toml(tmp_path, "epochs 3"))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "is not valid TOML" in message_of(UsageError, load_config, binary)


@pytest.mark.parametrize("val_fold", [None, 3])
def test_run_is_read_back_as_it_was_saved(tmp_path, val_fold):
    run = Run(
        Config(seed=5, data=DataConfig("/d/ä", 1, val_fold), train=TrainConfig(learning_rate=1e-4, precision="float16")),
        Preprocess(64, classes=("COVID-19", "No-Findings")),
        dataset="0123abcd",
    )
    path = tmp_path / "config.toml"
    run.save(path)
    assert Run.load(path) == run
    assert ("val_fold" in path.read_text(encoding="utf-8")) is (val_fold is not None)
    assert [file.name for file in tmp_path.iterdir()] == ["config.toml"]  # nothing temporary is left


def test_saving_again_replaces_the_run(tmp_path):
    path = tmp_path / "config.toml"
    Run(Config(seed=1), Preprocess()).save(path)
    Run(Config(seed=2), Preprocess()).save(path)
    assert Run.load(path).config.seed == 2


def test_loading_no_run_says_what_to_name(tmp_path):
    message = message_of(UserError, Run.load, tmp_path / "config.toml")
    assert message == f"{tmp_path} is not a run: it has no config.toml; name a folder that `covidjax train` made."


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[config\n", "is not valid TOML"),
        ("[config.train]\nepochs = 'x'\n[preprocess]\n", "config.train.epochs must be of type int"),
        ("[config]\n[preprocess]\nimage_sise = 3\n", "did you mean preprocess.image_size?"),
        ("[config]\n[preprocess]\nclasses = 'COVID-19'\n", "preprocess.classes must be a list of names"),
        ("[config]\n[preprocess]\nclasses = [1, 2]\n", "preprocess.classes must be a list of names"),
        ("", "config.toml"),  # cut off
        ("[config]\nseed = 3\n", "config.toml"),  # cut off after a section
    ],
)
def test_damaged_run_is_a_user_error(tmp_path, text, part):
    path = tmp_path / "config.toml"
    path.write_text(text)
    assert part in message_of(UserError, Run.load, path)
