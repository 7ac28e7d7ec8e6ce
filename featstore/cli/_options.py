"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import contextlib
import json
import math
from typing import TYPE_CHECKING, Any

import click

from featstore import defaults
from featstore.cli._completion import complete_dataset
from featstore.errors import FeatstoreError, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.decorators import FC

    from featstore.store.dataset import Dataset

SOME_FAILED = 3  # exit code: the command is done, and some videos failed


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turn a plain ValueError, which an encoder raises for its options, into a usage error."""
    try:
        yield
    except FeatstoreError:
        raise
    except ValueError as exc:
        raise click.UsageError(plain(str(exc))) from exc


def option_group(*decorators: Callable[[Any], Any]) -> Callable[[FC], FC]:
    """Return one decorator that gives a command all of these options, which --help lists in this order."""

    def add(command: FC) -> FC:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return add


class FiniteRange(click.FloatRange):
    """A number within bounds; `nan`, which is within any, and `inf` are none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number; refuse what is not finite."""
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return found


def size(text: str) -> int:
    """Return the bytes that `500MB`, `2GiB` or a plain number mean."""
    from featstore.system.filesystems import parse_bytes

    try:
        return parse_bytes(text, least=0)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc


def in_gib(size: int) -> str:
    """Return a default size as the user would write it: `4GiB`."""
    return f"{size / 2**30:g}GiB"


def not_empty(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Refuse an empty path, as an unset variable gives: it would mean the current folder."""
    if value == "":
        raise click.BadParameter("it is empty; name a folder")
    return value


def named_values(form: str) -> Callable[..., dict[str, str]]:
    """Return a callback for an option whose values are written as NAME=VALUE, which the error calls `form`."""

    def read(
        ctx: click.Context, option: click.Parameter, values: tuple[str, ...]
    ) -> dict[str, str]:
        pairs = [value.partition("=") for value in values]
        for name, sign, value in pairs:
            if not (name and sign and value):
                raise click.BadParameter(f"{name}{sign}{value} is not {form}")
        return {name: value for name, _, value in pairs}

    return read


def json_or_text(text: str) -> Any:
    """Return the value that a text is in JSON, as of a number or true; otherwise the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def digest_prefix(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Refuse an empty digest, as an unset variable gives: it would match every feature set."""
    if value == "":
        raise click.BadParameter(
            "it is empty; give the first 4 or more digits of a feature set's digest"
        )
    return value


def open_set(cache_dir: str, dataset: str, spec: str | None, nframe: int | None = None) -> Dataset:
    """Return the feature set that `--spec` and `--nframe` name, or the dataset's default set."""
    from featstore.store.reader import FeatureStore

    there = FeatureStore(cache_dir)[dataset]
    if not (spec or nframe):
        return there
    return there.sets[there.select(nframe, spec).spec.digest]


class VariadicOption(click.Option):
    """An option that takes every word up to the next option, as in `--datasets A B C`; it may also be repeated."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Register with click's parser, which by itself gives an option a fixed number of words."""
        super().add_to_parser(parser, ctx)
        for name in self.opts:
            registered = parser._long_opt[name]
            take = registered.process

            def take_all(value: Any, state: Any, take: Any = take) -> None:
                take(value, state)
                while state.rargs and not state.rargs[0].startswith("-"):
                    take(state.rargs.pop(0), state)

            registered.process = take_all


class VideoCommand(click.Command):
    """A command whose argument is the id of a video."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Say of an option that there is not how an id is given that begins as one."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as exc:
            if exc.possibilities:  # it was meant as an option
                raise
            hint = "an id that begins with - goes last, after two dashes: -- ID"
            raise click.NoSuchOption(
                exc.option_name, f"No such option {exc.option_name!r}; {hint}.", ctx=ctx
            ) from None


def _cache_dir_option(callback: Callable[..., str | None]) -> Callable[[FC], FC]:
    return click.option(
        "--cache-dir",
        required=True,
        envvar=defaults.CACHE_DIR_VARIABLE,
        show_envvar=True,
        callback=callback,
        type=click.Path(file_okay=False),
        help="The cache directory; each folder in it is a dataset.",
    )


def _may_be_filled(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Refuse a folder that holds other things and no dataset, as a slip in the name gives."""
    from featstore.store.lost import refuse_other_folder

    if not_empty(ctx, option, value) and not ctx.resilient_parsing:
        refuse_other_folder(str(value))
    return value


cache_dir_option = _cache_dir_option(not_empty)
filled_cache_dir_option = _cache_dir_option(_may_be_filled)  # of commands that make datasets
dataset_option = click.option(
    "--dataset", required=True, shell_complete=complete_dataset, help="Name of the dataset."
)
one_dataset_option = click.option(
    "--dataset", shell_complete=complete_dataset, help="Only this dataset."
)
datasets_option = click.option(
    "--dataset", "datasets", multiple=True, help="A dataset; may be repeated.  [default: all]"
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
model_option = click.option(
    "--model-path",
    metavar="CHECKPOINT",
    help="A LongVA checkpoint: a local folder, or an id on the Hugging Face Hub.",
)
tower_option = click.option(
    "--vision-tower",
    metavar="CLIP",
    callback=not_empty,
    help="The CLIP model that the checkpoint names, if it cannot be found by that name: a local folder, or an id on "
    "the Hugging Face Hub.",
)
nframe_option = click.option(
    "--nframe",
    type=click.IntRange(1, 65536),
    default=defaults.NFRAME,
    help="Number of frames per video; with --sampling fps:R, the maximum number.",
)
which_nframe_option = click.option(
    "--nframe",
    type=click.IntRange(1, 65536),
    help="Number of frames per video, to choose another feature set than the default by it.",
)
spec_option = click.option(
    "--spec",
    callback=digest_prefix,
    help="The first 4 or more digits of a feature set's digest.  [default: the dataset's default set]",
)
device_option = click.option(
    "--device", default=defaults.DEVICE, help="Device to compute on: auto, cpu, cuda or cuda:N."
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["auto", "fp16", "bf16", "fp32"]),
    default=defaults.DTYPE,
    help="Data type to compute in; auto is fp32 on a CPU, and on CUDA fp16 for LongVA, bf16 for others.",
)
min_free_option = click.option(
    "--min-free",
    type=size,
    default=in_gib(defaults.MIN_FREE_BYTES),
    help="Bytes to leave free on the disk.",
)
max_size_option = click.option(
    "--max-size", type=size, help="Maximum size of the cache directory in bytes."
)
