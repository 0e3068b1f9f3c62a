"""Command-line options generated from a :class:`~caffetools.project.config.Config`, so that each setting is stated once."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import MISSING
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from caffetools.cli.models import complete_model
from caffetools.cli.options import not_standard_output
from caffetools.project.config import Config, flags_of

C = TypeVar("C", bound=Config)


def with_options(config: type[C]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that turns ``function(config, **others)`` into a command with an option for every field of ``config``.

    Args:
        config: The settings; positional fields become arguments.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        names = [item.name for item in dataclasses.fields(config)]

        def command(**given: Any) -> None:
            function(config(**{name: given.pop(name) for name in names}), **given)

        parameters = [*_parameters(config), *own]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return command

    return decorate


def _parameters(config: type[Config]) -> list[inspect.Parameter]:
    hints = get_type_hints(config)
    parameters = []
    for item in dataclasses.fields(config):
        info = item.metadata
        more: dict[str, Any] = {"help": info["help"], "show_default": info["shows_default"] and item.default not in (MISSING, None, False)}
        more |= {"metavar": info["metavar"]} if info["metavar"] else {}
        more |= {"autocompletion": complete_model} if item.name in ("model", "weights") else {}
        more |= {"callback": not_standard_output} if item.name == "out" else {}
        more |= {"min": info["minimum"]} if info["minimum"] is not None else {}
        declaration = typer.Argument(**more) if info["positional"] else typer.Option(*flags_of(item), **more)
        default = inspect.Parameter.empty if item.default is MISSING else item.default
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(item.name, kind, default=default, annotation=Annotated[hints[item.name], declaration]))
    return parameters
