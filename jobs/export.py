"""Export the model of a run: weights, configuration and a model card.

    python -m jobs.export RUN_URL --out URL [--weights W] [--format diffusers]

`trainer.load(URL)` opens what was exported, and so does `init_from:` of another run. With `--format diffusers` the
export is in URL/model, and `DiffusionPipeline.from_pretrained(URL, trust_remote_code=True)` opens URL.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage, absolute
from jobs.cli import command_parser, run
from jobs.config.loading import config_of
from jobs.config.tokenizers import known_tokenizers
from jobs.diffusers_format.write import INDEX, MODEL, write_pipeline
from jobs.errors import ConfigError
from trainer.checkpoints.export import BEST, best_commit, load, weights_at, write_model
from trainer.checkpoints.journal import Row, read_metrics
from trainer.checkpoints.lineage import Lineage
from trainer.checkpoints.provenance import code
from trainer.checkpoints.weights import HELP as WEIGHTS
from trainer.checkpoints.weights import in_words
from trainer.errors import TrainingError
from trainer.images import ImageSpec
from trainer.models import KINDS
from trainer.tracking.captions import caption_of

NAMES = 50  # class names in a model card
PROMPT = "a caption"  # in the example of a model card
DECODING = {  # kinds of models whose samples are draws or means
    get_args(kind.model_fields["kind"].annotation)[0] for kind in KINDS if "decode" in kind.SamplingOptions.model_fields
}
CARD = "README.md"  # where model hubs look for it


def main(arguments: Sequence[str]) -> None:
    parser = command_parser("export", __doc__)
    parser.add_argument("run", help="URL of the run's folder")
    parser.add_argument("--out", required=True, help="URL of the folder that the model goes to")
    parser.add_argument("--weights", default="ema", help=WEIGHTS)
    parser.add_argument(
        "--format",
        choices=("safetensors", "diffusers"),
        default="safetensors",
        help="safetensors (default), or a pipeline for diffusers, with this repository in PYTHONPATH",
    )
    options = parser.parse_args(arguments)
    if options.format == "safetensors":
        images = export(options.run, options.out, options.weights)
    else:
        images = export_pipeline(options.run, options.out, options.weights)
    print(f"exported {options.weights} weights after {images:,} images: {absolute(options.out)}")


def export(run_url: str, out: str, weights: str = "ema") -> int:
    """Write the model of a run's newest commit to `out`; returns the images after which its weights are what they are.

    Raises TrainingError if there is none, ConfigError if something is there already, StorageError.
    """
    source, target = Storage(run_url), Storage(out)
    if target.exists("model.json"):
        raise ConfigError(f"{target.url}: is the folder of a run; give --out another folder")
    if target.exists("config.json"):
        raise ConfigError(f"{target.url}: holds a model already; give --out another folder")
    lineage = Lineage(source)
    commit = next(lineage.history(), None)
    if commit is None:
        raise TrainingError(f"{source.url}: no checkpoint here; name the folder of a run (its key `run`)")
    if weights == BEST:
        commit = best_commit(lineage)
    images, tensors = weights_at(lineage, commit, weights)
    description = json.loads(source.read("model.json"))
    config = config_of(source)
    trained = lineage.attempts()[commit.attempt].facts.get("provenance")
    facts = {"images_seen": images, "weights": weights, "batch": config.trainer.batch, "seed": config.seed}
    facts |= {"provenance": trained, "exported_by": code()}
    write_model(target, description | facts, tensors, known_tokenizers(config.data, source))
    model = load(target.url)  # raises if what lies there does not open
    parameters = sum(parameter.numel() for parameter in model.parameters())
    captions = {}
    for name in ("samples", "prompts"):
        if picture := _picture(source, name, images):
            target.write(f"{name}.png", picture)
            captions[name] = caption_of(picture).partition("; row by row:")[0] or f"{name}, averaged weights"
    rows = [row for row in read_metrics(source) if row["images"] <= images]
    text = card(description | facts, parameters, rows, target.url, captions, model.conditions)
    target.write(CARD, text.encode())
    return images


def export_pipeline(run_url: str, out: str, weights: str = "ema") -> int:
    """As `export`, to a folder that `diffusers` opens as a pipeline; the export is in its folder `model`."""
    target = Storage(out)
    if target.exists(INDEX):
        raise ConfigError(f"{target.url}: holds a pipeline already; give --out another folder")
    inside = target.folder(MODEL)
    images = export(run_url, inside.url, weights)
    write_pipeline(target, load(inside.url))
    return images


def card(
    description: dict[str, Any],
    parameters: int,
    rows: Sequence[Row],
    url: str,
    pictures: Mapping[str, str],
    conditions: Collection[str] = (),
) -> str:
    """The model card in Markdown: what the model is, the figures that its own run measured, how to sample from it.

    `pictures`: captions of NAME.png beside the card, by name.
    """
    model, images = description["model"], description["images"]
    size = f"{_size(images)}, {images['channels']} channels, {images['levels']} levels"
    classes = f", {images['classes']} classes" if images["classes"] else ""
    lines = [
        "---",
        "library_name: lowerbound",
        *([] if conditions else ["pipeline_tag: unconditional-image-generation"]),
        f"tags: [{model['kind']}, elbo]",
        "---",
        "",
        f"# {model['kind']}: {parameters:,} parameters",
        "",
        f"Images: {size}{classes}. {_trained(description)} Weights: {in_words(description['weights'])}.",
        "",
        *_conditions(description, conditions),
        "",
        *_figures(rows, description["weights"]),
        "",
        *(line for name, caption in pictures.items() for line in _picture_lines(name, caption)),
        *_usage(description, url, conditions),
        "## Configuration",
        "",
        "```json",
        json.dumps(model, indent=1),
        "```",
        "",
    ]
    return "\n".join(lines)


def _size(images: dict[str, Any]) -> str:
    if images.get("patches") is None:
        return f"{images['height']} x {images['width']} pixels"
    most, side, _ = images["patches"]
    return f"of any shape, up to {most} patches of {side} x {side} pixels"


def _trained(description: dict[str, Any]) -> str:
    """On how many images; how often it has seen each of its set is known of runs that record the set's size."""
    seen, size = description["images_seen"], description.get("images_in_set")
    of = f" of a set of {size:,} ({seen / size:,.1f} times each)" if size else ""
    return f"Trained on {seen:,} images{of} in batches of {description['batch']}, seed {description['seed']}."


def _conditions(description: dict[str, Any], conditions: Collection[str]) -> list[str]:
    names = list(map(_code, description.get("class_names", ())))
    more = f" and {len(names) - NAMES:,} more, all in `config.json`" if len(names) > NAMES else ""
    listed = [f"Classes, from number 0: {', '.join(names[:NAMES])}{more}."] if names else []
    if not conditions:
        return ["Conditions: none; the classes were not given to the model." if names else "Conditions: none."]
    return [f"Conditions: {', '.join(conditions)}.", *listed]


def _usage(description: dict[str, Any], url: str, conditions: Collection[str]) -> list[str]:
    """How to sample, in Python and by command."""
    images = description["images"]
    python, options = _example_condition(description, conditions)
    means = description["model"]["kind"] in DECODING
    shape = ImageSpec.from_json(images).batch_shape
    text = f"uint8 [16, {', '.join(map(str, shape))}], levels 0 to {images['levels'] - 1}"
    if images.get("patches") is not None:
        text = "in patches; trainer.patches.whole_images(images, model.spec) has them whole"
    return [
        "## Samples",
        "",
        "```python",
        "import trainer",
        "",
        f"model = trainer.load({url!r})",
        f"images = trainer.sample(model, 16{python}, seed=0)  # {text}",
        *(["means = trainer.sample(model, 16, decode='mean')  # of p(x | z): smoother, no samples"] if means else []),
        "```",
        "",
        "```",
        f"python -m jobs.sample {shlex.quote(url)} --count 16{options} --out samples",
        "```",
        "",
    ]


def _example_condition(description: dict[str, Any], conditions: Collection[str]) -> tuple[str, str]:
    """A label and a prompt as arguments in Python and of the command; empty for a model that takes none."""
    names, python, options = description.get("class_names", ()), "", ""
    if "label" in conditions and description["images"]["classes"]:
        label = next((name for name in names if names.count(name) == 1), 0)
        python, options = f", label={label!r}", f" --label {_option(label)}"
    texts = [name for name, *_ in description["images"].get("texts", ()) if name in conditions]
    if len(texts) == 1:
        python, options = f"{python}, prompt={PROMPT!r}", f"{options} --prompt {shlex.quote(PROMPT)}"
    elif texts:
        python += f", prompt={dict.fromkeys(texts, PROMPT)}"
        options += "".join(f" --prompt {shlex.quote(f'{name}={PROMPT}')}" for name in texts)
    return python, options


def _option(label: int | str) -> str:
    """A class as --label takes it, whatever its name."""
    return shlex.quote(f"name:{label}" if isinstance(label, str) else str(label))


def _code(text: str) -> str:
    """A class name as Markdown code: it is from somebody's folders."""
    return f"`{' '.join(str(text).replace('`', '').split())}`"


def _figures(rows: Sequence[Row], weights: str) -> list[str]:
    """A table of the last validation, and of the last training figures; what they are figures of stands with them."""
    held_out = next((row for row in reversed(rows) if "validation/nats" in row), None)
    trained = next((row for row in reversed(rows) if "train/nats" in row), None)
    lines = ["| figure | value | of |", "|---|---|---|"]
    for row, split, whose in ((held_out, "validation", "averaged weights"), (trained, "train", "raw weights")):
        if row is None:
            continue
        of = f"{split} split, {whose}, at {row['images']:,} images"
        of += f", {row[f'{split}/conditions']}" if f"{split}/conditions" in row else ""
        if split == "train":
            of += ", mean over the steps since the row before"
        density = f"{split}/bpd" not in row
        error = row.get(f"{split}/standard_error")
        nats = f"{row[f'{split}/nats']:.3f}" + (f" ± {error:.3f}" if error is not None else "")
        if not density:
            lines.append(f"| negative bound, bits per dimension | {row[f'{split}/bpd']:.4f} | {of} |")
        name = "negative bound of a density, nats an image" if density else "negative bound, nats an image"
        lines.append(f"| {name} | {nats} | {of} |")
        parts = {"distortion": row[f"{split}/distortion"]}
        parts |= {f"rate {key.rsplit('/', 1)[1]}": row[key] for key in row if key.startswith(f"{split}/rate/")}
        lines += [f"| {name}, nats an image | {value:.3f} | {of} |" for name, value in parts.items()]
    if len(lines) == 2:
        return ["Nothing was measured before this checkpoint."]
    if weights not in ("ema", BEST) and held_out is not None:
        whose = f"The exported weights are {in_words(weights)}"
        lines += ["", f"{whose}; the validation figures are those of the averaged ones (EMA)."]
    return lines


def _picture_lines(name: str, caption: str) -> list[str]:
    """A picture beside the card, and below it its caption."""
    return [f"![{caption}]({name}.png)", "", f"{caption[0].upper()}{caption[1:]}.", ""]


def _picture(run_folder: Storage, name: str, images: int) -> bytes | None:
    """The picture `name` at an image count."""
    try:
        return run_folder.read(f"pictures/{name}-{images:012d}.png")
    except MissingError:
        return None


if __name__ == "__main__":
    run(main)
