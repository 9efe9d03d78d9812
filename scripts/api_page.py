"""Write docs/api.md, the page of the public interface, from docstrings.

python scripts/api_page.py --output docs/api.md
"""

import argparse
import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import handjax

HEAD = """# Python

`import handjax` takes milliseconds: each name is loaded on its first use. The names
below are the whole public interface; everything else may change between releases.
Made by `python scripts/api_page.py --output docs/api.md`.
"""


def page() -> str:
    """Return the page: each name of `handjax.__all__` with its call and docstring."""
    return "\n".join([HEAD, *(_section(name) for name in handjax.__all__)])


def _section(name: str) -> str:
    thing = getattr(handjax, name)
    if inspect.ismodule(thing):
        # `handjax.train` is an entry, and a function when it is called.
        thing = getattr(thing, name)
    is_function = inspect.isfunction(thing)
    shown = f"handjax.{name}{_arguments(thing) if is_function else ''}"
    text = [shown, "", inspect.getdoc(thing) or ""]
    if hasattr(thing, "_fields"):
        text += ["", "Fields:", *_fields(thing)]
    if not is_function and not issubclass(thing, Exception):
        text += [line for method in _methods(thing) for line in method]
    return "\n".join([f"## {name}", "", "```text", *text, "```", ""])


def _fields(record: type) -> Iterator[str]:
    """Yield the fields of a record: type and shape, then what stands below it."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    assert isinstance(tree, ast.ClassDef)
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign):
            continue
        yield f"    {ast.unparse(node.target)}: {ast.unparse(node.annotation)}"
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            yield from textwrap.wrap(
                " ".join(str(after.value.value).split()),
                80,
                initial_indent=" " * 8,
                subsequent_indent=" " * 8,
            )


def _methods(kind: type) -> Iterator[list[str]]:
    """Yield the public methods of a class: call, and first line of the docstring."""
    for name, method in vars(kind).items():
        function = getattr(method, "__func__", method)
        if not name.startswith("_") and inspect.isfunction(function):
            summary = (inspect.getdoc(function) or "").partition("\n")[0]
            yield ["", f"{name}{_arguments(function)}", f"    {summary}"]


def _arguments(function: Callable) -> str:
    """Return the arguments without annotations, which docstrings say better."""
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in ("self", "cls")
    ]
    return str(inspect.Signature(parameters))


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    arguments = parser.parse_args()
    arguments.output.write_text(page(), encoding="utf-8")
    print(f"{arguments.output}: {len(handjax.__all__)} names")


if __name__ == "__main__":
    main()
