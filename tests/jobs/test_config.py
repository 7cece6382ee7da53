"""The YAML of a run: merged with its bases, overridden, checked; errors are one line that names file and key."""

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.config.loading import load_config, to_yaml
from jobs.config.schema import RunConfig
from jobs.errors import ConfigError
from tests.testbed.processes import REPOSITORY
from trainer.training.optimizer import OptimConfig

SMALL = {"run": "runs/a", "model": {"kind": "vae"}, "data": {"shards": "data/a"}}
TEXT = yaml.safe_dump(SMALL)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes YAML files and works in their folder, so that messages name them as a person does."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="run.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
        return name

    return write


def error_of(path, *overrides):
    with pytest.raises(ConfigError) as raised:
        load_config(path, overrides)
    message = str(raised.value)
    assert "\n" not in message
    return message


# ---- what is wrong is told in one line


OPTIM = "betas, clip, decay, ema, eps, final_lr, lr, posthoc, schedule, warmup, weight_decay"
TOP = "data, init_from, init_weights, model, optim, ray, run, seed, tracking, trainer"

WRONG = {
    "unknown section": ("optm: {lr: 1}", f"optm: unknown key; did you mean 'optim'? allowed are {TOP}"),
    "unknown key": ("optim: {warm_up: 1}", f"optim.warm_up: unknown key; did you mean 'warmup'? allowed are {OPTIM}"),
    "nothing like it": ("optim: {zzqq: 1}", f"optim.zzqq: unknown key; allowed are {OPTIM}"),
    "unknown key of an alternative": (
        "model: {kind: vae, encoder: {kind: mlp, hiden: [1]}}",
        "model.encoder.hiden: unknown key; did you mean 'hidden'? allowed are activation, hidden, kind",
    ),
    "unknown alternative": (
        "model: {kind: vae, encoder: {kind: mpl}}",
        "model.encoder.kind: there is no 'mpl'; it is one of 'mlp', 'conv', 'resnet'",
    ),
    "no number": (
        "optim: {lr: fast}",
        "optim.lr: input should be a valid number, unable to parse string as a number, got 'fast'",
    ),
    "out of range": ("optim: {lr: -1}", "optim.lr: input should be greater than 0, got -1"),
    "a part of an image": (
        "trainer: {images: 1.5}",
        "trainer.images: input should be a valid integer, got a number with a fractional part, got 1.5",
    ),
    "an item of a list": (
        "model: {kind: vae, encoder: {kind: mlp, hidden: [8, x]}}",
        "model.encoder.hidden.1: input should be a valid integer, unable to parse string as an integer, got 'x'",
    ),
    "too short a list": ("optim: {betas: [0.9]}", "optim.betas.1: is missing"),
    "no choice": (
        "tracking: {mode: of}",
        "tracking.mode: input should be 'auto', 'online', 'offline' or 'off', got 'of'",
    ),
    "a list for a section": (
        "optim: [1]",
        "optim: input should be a section with keys, got [1]",
    ),
    "an empty section": (
        "optim:",
        "optim: input should be a section with keys, got None",
    ),
    "a number for a model": (
        "model: 3",
        "model: input should be a section with keys, got 3",
    ),
    "nothing to read": ("data: {}", "data: give either shards or mixture"),
    "a number for a key": ("1: x", "1: keys should be strings, got 1"),
    "neither a URL nor a list of them": (
        "data: {shards: 3}",
        "data.shards: input should be a valid string or a list, got 3; write it in quotes",
    ),
    "no word and no number": (
        "data: {shards: a, streams: x}",
        "data.streams: input should be a valid integer, unable to parse string as an integer or 'auto', got 'x'",
    ),
    "an unknown key of an item": (
        "model: {kind: ladder, stages: [{width: 8}, {width: 8, latents: 4}]}",
        "model.stages.1.latents: unknown key; did you mean 'latent'? allowed are cells_down, cells_up, groups, latent, "
        "repeat, shrink, width",
    ),
    "keys that do not agree": (
        "model: {kind: ladder, stages: [{width: 8, groups: 0}]}",
        "model.stages: the last, at the top, has no groups of latents (groups: 1 or more)",
    ),
    "keys that do not agree, in words": (
        "trainer: {channels_last: true, sharding: fsdp}",
        "trainer.channels_last: true needs sharding: ddp; FSDP2 shards contiguous parameters only",
    ),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_value_is_told_with_its_file_and_key(write, text, message):
    values = SMALL | yaml.safe_load(text)
    assert error_of(write(values)) == f"run.yaml: {message}"


@pytest.mark.parametrize("key", ["run", "model", "data"])
def test_a_missing_section_is_told(write, key):
    values = {name: value for name, value in SMALL.items() if name != key}
    assert error_of(write(values)) == f"run.yaml: {key}: is missing"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "run.yaml: a configuration is a YAML mapping with keys such as run, model and data"),
        ("- run\n", "run.yaml: a configuration is a YAML mapping with keys such as run, model and data"),
        ("runs/a\n", "run.yaml: a configuration is a YAML mapping with keys such as run, model and data"),
        ("run: [a\n", "run.yaml: not YAML: while parsing a flow sequence in"),
        ("run: a: b\n", "run.yaml: not YAML: mapping values are not allowed here in"),
        ("run: !!python/object/apply:os.getcwd []\n", "run.yaml: not YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_configuration_is_told(write, text, message):
    assert error_of(write(text)).startswith(message)


def test_a_file_that_is_no_text_is_told(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00run")
    assert error_of(str(tmp_path / "run.yaml")).startswith(f"{tmp_path}/run.yaml: not YAML: ")


def test_a_file_that_is_not_there_is_told(write, tmp_path):
    assert error_of("none.yaml") == "none.yaml: No such file or directory"
    (tmp_path / "folder.yaml").mkdir()
    assert error_of("folder.yaml") == "folder.yaml: Is a directory"
    assert "none.yaml: No such file or directory" in error_of(write("base: none.yaml\n"))


@pytest.mark.parametrize("override", ["optim.lr", "=3", "", "opt im.lr=3", "--lr=3"])
def test_an_override_of_another_form_is_told(write, override):
    assert error_of(write(TEXT), override) == f"{override!r}: an override is key=value, as in optim.lr=1e-4"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=[", "'optim.lr=[': the value is not YAML"),
        ("optim.lrr=3", f"the command line: optim.lrr: unknown key; did you mean 'lr'? allowed are {OPTIM}"),
        ("optim.lr=0", "the command line: optim.lr: input should be greater than 0, got 0"),
        ("optim.lr.x=3", "the command line: optim.lr: input should be a valid number"),
        ("seed=-1", "the command line: seed: input should be greater than or equal to 0, got -1"),
        (
            "optim=3",
            "the command line: optim: input should be a section with keys, got 3",
        ),
    ],
)
def test_a_wrong_override_is_told_as_one(write, override, message):
    assert error_of(write(TEXT), override) == message


def test_the_file_that_gave_the_wrong_value_is_named(write):
    write(SMALL | {"optim": {"lr": -1}, "trainer": {"images": 10}}, "base.yaml")
    write("base: base.yaml\ntrainer: {images: -10}\n", "middle.yaml")
    path = write("base: middle.yaml\n")
    assert error_of(path, "trainer.images=1").startswith("base.yaml: optim.lr: ")
    assert error_of(path, "optim.lr=1").startswith("middle.yaml: trainer.images: ")
    assert error_of(path, "optim.lr=1", "trainer.images=x").startswith("the command line: trainer.images: ")


@pytest.mark.parametrize("length", [1, 2, 3])
def test_bases_in_a_circle_are_told(write, length):
    for i in range(length):
        write(f"base: {(i + 1) % length}.yaml\n", f"{i}.yaml")
    assert error_of("0.yaml").endswith("base: 0.yaml leads back to itself")


def test_bases_in_a_circle_through_folders_are_told(write):
    write("base: folder/b.yaml\n", "a.yaml")
    write("base: ../a.yaml\n", "folder/b.yaml")
    assert "leads back to itself" in error_of("a.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {latent: 3}", "run.yaml: model.kind: is missing"),
        ("ray: {workers: many}", "run.yaml: ray.workers: input should be a valid integer"),
    ],
)
def test_unions_are_told_without_words_of_the_schema(write, text, message):
    assert error_of(write(SMALL | yaml.safe_load(text))).startswith(message)


# ---- merging and overriding


def test_a_file_is_laid_over_its_base_in_depth(write):
    write(
        SMALL | {"optim": {"lr": 0.1, "warmup": 7}, "trainer": {"images": 10, "checkpoints": {"keep": 5}}}, "base.yaml"
    )
    config = load_config(write("base: base.yaml\nrun: runs/b\noptim: {lr: 0.2}\ntrainer: {batch: 4}\n"))
    assert (config.run, config.data.shards) == ("runs/b", "data/a")
    assert (config.optim.lr, config.optim.warmup) == (0.2, 7)
    assert (config.trainer.images, config.trainer.batch, config.trainer.checkpoints.keep) == (10, 4, 5)


@pytest.mark.parametrize("scale", ["[2, 1]", "[0, 0]", "[-1, 1]", "[0.5, 2]", "[.nan, 1]"])
def test_the_scale_of_a_random_crop_is_a_range_of_fractions(write, scale):
    message = error_of(write(TEXT), f"data.transform={{size: [4, 4], crop: random, scale: {scale}}}")
    assert message.startswith("the command line: data.transform.scale: ")
    assert "is not a range of fractions: 0 < low <= high <= 1" in message


def test_keys_of_a_base_can_be_unset(write):
    data = {"shards": "a", "transform": {"size": [4, 4]}}
    base = {"seed": 4, "optim": {"lr": 0.1, "betas": [0.5, 0.6]}, "data": data}
    write(SMALL | base, "base.yaml")
    config = load_config(write("base: base.yaml\nunset: [optim.betas, data.transform, seed]\noptim: {warmup: 5}\n"))
    assert (config.seed, config.data.transform, config.optim.lr, config.optim.warmup) == (0, None, 0.1, 5)
    assert config.optim.betas == OptimConfig().betas
    path = write("base: base.yaml\n")
    assert load_config(path, ["unset=optim"]).optim == OptimConfig()
    assert load_config(path, ["unset=[optim.lr, seed]", "optim.warmup=5"]).optim.lr == OptimConfig().lr
    assert error_of(path, "unset=optim.eps") == "the command line: unset: optim.eps: no base sets this key"
    alone = write(SMALL | {"unset": ["optim.lr"]}, "alone.yaml")
    assert error_of(alone) == "alone.yaml: unset: optim.lr: no base sets this key"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.workers=x", "data.workers: input should be a valid integer, unable to parse string as an integer or 'a"),
        ("data.shards=[a,3]", "data.shards.1: input should be a valid string, got 3"),
        ("ray.workers=[2,x]", "ray.workers.1: input should be a valid integer, unable to parse string as an integer"),
        ("optim=3", "optim: input should be a section with keys, got 3"),
    ],
)
def test_a_key_with_several_types_says_all_that_it_may_be(write, override, message):
    assert error_of(write(SMALL), override).startswith(f"the command line: {message}")


def test_bases_are_found_beside_the_file_that_names_them(write, tmp_path, monkeypatch):
    write(SMALL, "shared/base.yaml")
    write("base: ../shared/base.yaml\nseed: 1\n", "mine/middle.yaml")
    path = write("base: mine/middle.yaml\n")
    monkeypatch.chdir("/")
    assert load_config(str(tmp_path / path)).seed == 1


def test_a_section_of_another_kind_replaces_that_of_the_base_as_a_whole(write):
    model = {"kind": "vae", "latent": 9, "encoder": {"kind": "mlp", "hidden": [3]}}
    write(SMALL | {"model": model}, "base.yaml")
    config = load_config(write("base: base.yaml\nmodel: {kind: hvae}\n"))
    assert config.model == load_config(write(SMALL | {"model": {"kind": "hvae"}}, "plain.yaml")).model
    config = load_config(write("base: base.yaml\nmodel: {encoder: {kind: conv}}\n"))
    assert (config.model.kind, config.model.latent, config.model.encoder.kind) == ("vae", 9, "conv")
    config = load_config(write("base: base.yaml\nmodel: {kind: vae, latent: 4}\n"))  # the same kind: laid over
    assert (config.model.latent, config.model.encoder.hidden) == (4, (3,))


def test_lists_replace_lists(write):
    write(SMALL | {"model": {"kind": "vae", "encoder": {"kind": "mlp", "hidden": [3, 4, 5]}}}, "base.yaml")
    config = load_config(write("base: base.yaml\nmodel: {encoder: {hidden: [6]}}\n"))
    assert config.model.encoder.hidden == (6,)


OVERRIDES = {
    "optim.lr=1e-4": 1e-4,
    "optim.lr=1E-4": 1e-4,
    "optim.lr=2.5e-3": 2.5e-3,
    "optim.lr=1": 1.0,
    "optim.weight_decay=.5": 0.5,
    "optim.betas=[0.5, 0.9]": (0.5, 0.9),
    "trainer.images=1e6": 1_000_000,
    "trainer.images=2_000": 2_000,
    "trainer.compile=true": True,
    "trainer.compile=false": False,
    "trainer.micro_batch=null": None,
    "trainer.checkpoints.keep=4": 4,
    "tracking.mode=off": "off",
    "tracking.project=on": "on",
    "tracking.project=yes": "yes",
    "data.memory=1GiB": 2**30,
    "data.workers=auto": "auto",
    "data.workers=0": 0,
    "data.validation=s3://bucket/folder?x=1&y=a=b": "s3://bucket/folder?x=1&y=a=b",
    "ray.workers=[1, 4]": (1, 4),
    "run='2'": "2",
    'run="a #1"': "a #1",
    "run=2": "2",
    "run=2024-01-01": "2024-01-01",
    "run=007": "007",
    "run=no": "no",
    "run=a #1": "a #1",
    "run=a: b": "a: b",
    "run={a}": "{a}",
    "run=@home": "@home",
    "run=*star": "*star",
    "run=[x": "[x",
    "run=[x]": "[x]",
    "data.validation=": "",
    "data.shards=[2023]/train": "[2023]/train",
    "data.shards=[a, b]": ("a", "b"),
    "data.shards=3": "3",
    "init_from=null": None,
    "init_from=": None,
    "init_from=123": "123",
}


@pytest.mark.parametrize(("override", "expected"), OVERRIDES.items())
def test_overrides_are_read_as_they_are_meant(write, override, expected):
    value = load_config(write(TEXT), [override])
    for part in override.partition("=")[0].split("."):
        value = getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)


def test_a_run_without_a_name_is_refused(write):
    assert error_of(write(TEXT), "run=") == "the command line: run: is empty; it names a folder, got ''"


def test_numbers_as_names_in_a_file_need_quotes_and_dates_need_none(write):
    data, model = "data: {shards: a}\n", "model: {kind: vae, encoder: {kind: mlp}, decoder: {kind: mlp}}\n"
    assert load_config(write(f"run: 2024-01-01\n{data}{model}")).run == "2024-01-01"
    assert error_of(write(f"run: 007\n{data}{model}")).endswith("valid string, got 7; write it in quotes")


def test_the_last_override_counts_and_a_kind_replaces(write):
    config = load_config(write(TEXT), ["seed=1", "seed=2", "model.latent=5", "model.kind=vae", "optim={lr: 3}"])
    assert (config.seed, config.model.latent, config.optim.lr) == (2, 5, 3.0)
    assert load_config(write(TEXT), ["model={kind: hvae}"]).model.kind == "hvae"


@pytest.mark.parametrize(("written", "value"), [("1e-4", 1e-4), ("1e3", 1000.0), ("5", 5.0), ("-1.5e+2", None)])
def test_numbers_in_a_file_are_numbers(write, written, value):
    path = write(f"{TEXT}optim: {{lr: {written}}}\n")
    if value is None:
        assert error_of(path) == "run.yaml: optim.lr: input should be greater than 0, got -150.0"
    else:
        assert load_config(path).optim.lr == value


# ---- back to YAML


def small(**sections):
    return RunConfig.model_validate(SMALL | sections)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "jobs" / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_of_ours_loads_and_comes_back_from_its_yaml(write, path):
    config = load_config(str(path))
    again = load_config(write(to_yaml(config)))
    assert again == config


@pytest.mark.parametrize("name", ["off", "yes", "null", "1.0", "0x10", "2026-11-22", "a: b", "é #1", "- x", "1_0", "~"])
def test_names_come_back_from_the_yaml_whatever_they_look_like(write, name):
    config = small(run=name)
    assert load_config(write(to_yaml(config))).run == name


@pytest.mark.parametrize("name", ["1e5", "1e-4"])
def test_names_that_look_like_numbers_come_back_from_the_yaml(write, name):
    config = small(run=name)
    assert load_config(write(to_yaml(config))).run == name


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lr=st.floats(1e-300, 1e300),
    eps=st.floats(1e-300, 1),
    images=st.integers(1, 10**15),
    betas=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_numbers_come_back_from_the_yaml_to_the_bit(write, lr, eps, images, betas):
    config = small(optim={"lr": lr, "eps": eps, "betas": betas}, trainer={"images": images})
    assert load_config(write(to_yaml(config))) == config
