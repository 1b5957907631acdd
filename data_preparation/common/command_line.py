"""Command lines from dataclasses.

A dataclass whose fields are made with `flag()` is the only place that states a flag, its default, its help text and its
allowed values. `parse` makes an instance from a command line, `to_argv` a command line from an instance, and
`markdown_table` the table of the README.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import math
import os
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

from data_preparation.common.errors import UserError, os_error_text
from data_preparation.common.limits import limit_error_text

T = TypeVar("T")


def flag(
    default: Any,
    help: str,
    *,
    short: str | None = None,
    choices: Sequence[str] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    allowed: str | None = None,
    may_change: bool = False,
    path: bool = False,
    in_model: bool = False,
    words: Mapping[str, Any] | None = None,
) -> Any:
    """A dataclass field that is also a command-line flag.

    Args:
        choices: allowed values, case-insensitive, stored as spelled here.
        minimum, maximum: inclusive; they hold for each item of a list.
        allowed: describes the allowed values in the help if the type does not say enough.
        may_change: the flag may differ when a run is resumed: it affects how or where the run computes, not the result.
        path: the value is a file or folder. It is made absolute for jobs, which start in another folder.
        in_model: the network is built from this file, so an exported model has a copy.
        words: further allowed words, and the values that they stand for.
    """
    metadata: dict[str, Any] = dict(
        help=help, short=short, choices=choices, minimum=minimum, maximum=maximum, allowed=allowed
    )
    metadata |= dict(may_change=may_change, path=path, in_model=in_model, words=words or {})
    return dataclasses.field(default=default, metadata=metadata)


def _item_type(annotation: Any) -> tuple[type, bool]:
    """(type of one value, whether the flag takes several values) for a field's annotation; `X | None` counts as X."""
    if type(None) in typing.get_args(annotation):
        (annotation,) = (a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    return annotation, False


@functools.cache  # evaluating the annotations of a class is slow
def _types(cls: type) -> dict[str, tuple[type, bool]]:
    hints = typing.get_type_hints(cls)
    return {field.name: _item_type(hints[field.name]) for field in dataclasses.fields(cls) if field.metadata}


def allowed_text(cls: type, name: str) -> str:
    """The allowed values of a flag, as shown in its help and in the README."""
    field = next(f for f in dataclasses.fields(cls) if f.name == name)
    item, several = _types(cls)[name]
    meta = field.metadata
    if meta["allowed"]:
        return meta["allowed"]
    if meta["choices"]:
        return ", ".join(meta["choices"])
    if item is bool:
        return "True, False"
    text = {int: "whole number", float: "number", Path: "path", str: "text"}[item]
    low, high = meta["minimum"], meta["maximum"]
    if low is not None or high is not None:
        text += f" in [{-math.inf if low is None else low:g}, {math.inf if high is None else high:g}]"
    text = ", ".join([text, *meta["words"]])
    return f"one or more: {text}" if several else text


def _converter(cls: type, field: dataclasses.Field) -> Callable[[str], Any]:
    item, _ = _types(cls)[field.name]
    meta = field.metadata

    def convert(text: str) -> Any:
        text = text.strip()

        def refuse(hint: str = "") -> argparse.ArgumentTypeError:
            return argparse.ArgumentTypeError(
                f"'{text}' is not allowed; allowed: {allowed_text(cls, field.name)}{hint}"
            )

        if item is bool:
            if text.lower() not in ("true", "false"):
                raise refuse()
            return text.lower() == "true"
        if meta["choices"]:
            for choice in meta["choices"]:
                if text.lower() == choice.lower():
                    return choice
            close = difflib.get_close_matches(text.lower(), [c.lower() for c in meta["choices"]], 1)
            raise refuse(f" (did you mean {close[0]}?)" if close else "")
        if text.lower() in meta["words"]:
            return meta["words"][text.lower()]
        try:
            value = item(text)
        except ValueError:
            raise refuse() from None
        if isinstance(value, (int, float)):
            low, high = meta["minimum"], meta["maximum"]
            if value != value or (low is not None and value < low) or (high is not None and value > high):
                raise refuse()
        return value

    return convert


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UserError(message)


def build_parser(cls: type, prog: str | None = None, description: str | None = None) -> argparse.ArgumentParser:
    """An argparse parser with one flag for each field of `cls` that was made with `flag()`."""
    parser = _Parser(prog=prog, description=description or cls.__doc__, allow_abbrev=False)
    for field in dataclasses.fields(cls):
        if not field.metadata:
            continue
        item, several = _types(cls)[field.name]
        names = ([field.metadata["short"]] if field.metadata["short"] else []) + [f"--{field.name}"]
        help_text = (
            f"{field.metadata['help']} Allowed: {allowed_text(cls, field.name)}. Default: {default_text(field)}."
        )
        parser.add_argument(
            *names,
            dest=field.name,
            default=argparse.SUPPRESS,
            type=_converter(cls, field),
            # a boolean flag without a value means True
            **(dict(nargs="+") if several else dict(nargs="?", const=True) if item is bool else {}),
            metavar="VALUE",
            help=help_text.replace("%", "%%"),
        )
    return parser


def default_text(field: dataclasses.Field) -> str:
    """A default as a user would type it, or the text that the field's metadata has for it."""
    if text := field.metadata.get("default"):
        return text
    if isinstance(field.default, tuple) and field.default:
        return " ".join(str(item) for item in field.default)
    return "none" if field.default in (None, ()) else str(field.default)


def parse(
    cls: type[T],
    argv: Sequence[str],
    prog: str | None = None,
    description: str | None = None,
    others: Mapping[str, type] | None = None,
) -> T:
    """Parse a command line into an instance of the dataclass `cls`; the last of repeated flags wins.

    Raises:
        UserError: all faults that `flag_faults` finds, or else the one that the dataclass's `__post_init__` raises.
    """
    cls = _class_for(cls, argv)
    parser = build_parser(cls, prog, description)
    try:
        known, unknown = parser.parse_known_args(_protect_negative_numbers(argv))
    except UserError as error:  # argparse stops at the first fault
        raise UserError.of(flag_faults(cls, argv, others) or [str(error)]) from None
    if unknown:
        raise UserError.of(flag_faults(cls, argv, others) or [unknown_flag_text(cls, unknown[0], others)])
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(known).items()}
    return cls(**values)


def flag_faults(cls: type, argv: Sequence[str], others: Mapping[str, type] | None = None) -> list[str]:
    """A message for each fault of a command line.

    Faults are unknown flags (the message has the most similar known one), missing values, and values that are not
    allowed. `others` are dataclasses whose flags belong elsewhere, by the text that tells the user where.
    """
    cls = _class_for(cls, argv)
    parser = build_parser(cls)
    types, spellings = _types(cls), _spellings(cls)
    found = []
    for name, values in _flags_with_values(_protect_negative_numbers(argv), spellings):
        if name in ("-h", "--help"):
            continue
        if name not in spellings:
            found += [unknown_flag_text(cls, word, others) for word in ([name] if name else values)]
            continue
        _, several = types[spellings[name].removeprefix("--")]
        own, extra = (values, []) if several else (values[:1], values[1:])
        # parse one value at a time, so that every wrong one is reported
        for words in [[name, value] for value in own] or [[name]]:
            try:
                parser.parse_args(words)
            except UserError as error:
                found.append(str(error))
        if extra:
            found.append(f"{name} takes one value: leave out '{' '.join(extra)}'")
    return list(dict.fromkeys(found))


def split_flags(cls: type[T], argv: Sequence[str], prog: str, also: type) -> tuple[T, list[str]]:
    """Parse a command line that also has flags of the dataclass `also`: (instance of `cls`, remaining words).

    Raises:
        UserError: as `parse`.
    """
    if {"-h", "--help"} & set(argv):
        build_parser(cls, prog).print_help()
        print("\nThe flags of training are also accepted:\n")
        parse(also, argv, prog=prog)
    own: list[str] = []
    rest: list[str] = []
    for name, values in _flags_with_values(argv, {**_spellings(_class_for(also, argv)), **_spellings(cls)}):
        words = [name, *values] if name else values
        (own if name in _spellings(cls) else rest).extend(words)
    return parse(cls, own, prog), rest


def _class_for(cls: type, argv: Sequence[str]) -> type:
    """`cls`, or the class that its `for_argv` returns: some flags (such as --model) decide which other flags exist."""
    return getattr(cls, "for_argv", lambda _: cls)(argv)


def _protect_negative_numbers(argv: Sequence[str]) -> list[str]:
    """Put a space before '-1e-5' and the like, which argparse would take for flags."""
    return [f" {word}" if _is_negative_number(word) else word for word in argv]


def _flags_with_values(words: Sequence[str], known: Iterable[str]) -> list[tuple[str, list[str]]]:
    """(flag, the words after it) for each flag of a command line; the words before the first flag come with ''."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("-") and name in known:
            found.append((name, [value] if equals else []))
        elif word.startswith("-") and word != "-":
            found.append((word, []))
        else:
            found[-1][1].append(word)
    return found


def collect_faults(faults: list[str], make: Callable[..., T], *arguments: Any) -> T | None:
    """The result of a call, or None if it raises a UserError, whose messages are appended to `faults`."""
    try:
        return make(*arguments)
    except UserError as error:
        faults += str(error).splitlines()
        return None


def parse_command(commands: Mapping[str, type], argv: Sequence[str], prog: str) -> tuple[str, Any]:
    """Parse a command line that begins with a command: (name of the command, instance of its dataclass).

    Raises:
        UserError: the command is missing or unknown, or as `parse`.
    """
    listed = ", ".join(commands)
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: {prog} COMMAND [flags]; the commands (each has its own --help):\n")
        for name, cls in commands.items():
            print(f"  {name:<12} {(cls.__doc__ or '').strip().splitlines()[0]}")
        raise SystemExit(0)
    if not argv or argv[0] not in commands:
        close = difflib.get_close_matches(argv[0], commands, 1) if argv else []
        given = f"'{argv[0]}' is not a command" if argv else "a command is missing"
        raise UserError(f"{given}; give one of: {listed}" + (f" (did you mean {close[0]}?)" if close else ""))
    name = argv[0]
    return name, parse(commands[name], argv[1:], prog=f"{prog} {name}")


def parse_named(cls: type[T], argv: Sequence[str], prog: str) -> tuple[str, T]:
    """Parse a command line that begins with a name: (name, instance of `cls`).

    The last word of `prog` is the kind of name, such as RUN.

    Raises:
        UserError: the name is missing, or as `parse`.
    """
    if {"-h", "--help"} & set(argv):
        parse(cls, ["--help"], prog=prog)
    if not argv or argv[0].startswith("-"):
        raise UserError(f"the name of the {prog.split()[-1].lower()} is missing: give it first ({prog})")
    return argv[0], parse(cls, argv[1:], prog=prog)


def _is_negative_number(word: str) -> bool:
    try:
        return word.startswith("-") and float(word) <= 0
    except ValueError:
        return False


def unknown_flag_text(cls: type, text: str, others: Mapping[str, type] | None = None) -> str:
    """A message about a word on the command line that is not a flag of `cls`; `others` as in `flag_faults`."""
    text = text.strip()
    given = text.split("=")[0]
    for where, other in (others or {}).items():
        if given in _spellings(other) or _inactive_flag_text(other, given):
            return f"unknown flag '{given}' here: {where}"
    if inactive := _inactive_flag_text(cls, given):
        return inactive
    bare = {spelling.lstrip("-"): flag_name for spelling, flag_name in _spellings(cls).items()}
    close = difflib.get_close_matches(given.lstrip("-"), bare, 1) if given.startswith("-") else []
    return f"unknown flag or value '{text}'; " + (
        f"did you mean {bare[close[0]]}?" if close else "see --help for all flags"
    )


def _inactive_flag_text(cls: type, given: str) -> str | None:
    """A message about a flag that `cls` has only with other values of its flags, or None."""
    return getattr(cls, "unknown_flag_text", lambda _: None)(given)


def _spellings(cls: type) -> dict[str, str]:
    """The long form of a flag, by each of its spellings."""
    fields = [field for field in dataclasses.fields(cls) if field.metadata]
    return {
        spelling: f"--{field.name}"
        for field in fields
        for spelling in (f"--{field.name}", field.metadata["short"])
        if spelling
    }


def to_argv(config: Any, only: Collection[str] | None = None) -> list[str]:
    """The command line that gives `config`, without flags at their defaults and without flags that are not in `only`."""
    argv: list[str] = []
    for field in dataclasses.fields(config):
        if only is not None and field.name not in only:
            continue
        value = getattr(config, field.name)
        if field.metadata and value != field.default and value is not None:
            value = next((word for word, meant in field.metadata["words"].items() if meant == value), value)
            if isinstance(value, tuple):
                argv += [f"--{field.name}", *map(str, value)]
            elif str(value).startswith("-"):  # otherwise argparse takes it for a flag
                argv.append(f"--{field.name}={value}")
            else:
                argv += [f"--{field.name}", str(value)]
    return argv


def markdown_table(cls: type) -> str:
    """The flags of `cls` as a Markdown table."""
    rows = ["| flag | short | default | allowed | what it does |", "|---|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        if field.metadata:
            short = f"`{field.metadata['short']}`" if field.metadata["short"] else ""
            cells = [f"`--{field.name}`", short, f"`{default_text(field)}`", allowed_text(cls, field.name)]
            rows.append("| " + " | ".join(c.replace("|", "\\|") for c in [*cells, field.metadata["help"]]) + " |")
    return "\n".join(rows)


def run(main: Callable[[Sequence[str]], int | None]) -> typing.NoReturn:
    """Call `main` with the command line and exit; a UserError becomes its message on stderr and exit status 2."""
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        _print_to_stderr(f"error: {line}" for line in str(error).splitlines())
        status = 2
    except BrokenPipeError:  # the reader of the pipe (head, less) has exited
        _discard(sys.stdout)
        status = 141
    except OSError as error:
        _print_to_stderr([f"error: {os_error_text(error)}"])
        status = 2
    except KeyboardInterrupt:
        _print_to_stderr(["stopped by Ctrl-C"])
        status = 130
    except (RuntimeError, MemoryError) as error:
        if not (text := limit_error_text(error)):
            raise
        print(f"error: {text}", file=sys.stderr)
        status = 2
    raise SystemExit(status or 0)


def _print_to_stderr(lines: Iterable[str]) -> None:
    """Print lines to stderr; without a terminal or reader only the exit status remains."""
    try:
        for line in lines:
            print(line, file=sys.stderr)
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Redirect a stream without a reader to /dev/null; otherwise Python fails to flush it and exits with status 120."""
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), stream.fileno())
