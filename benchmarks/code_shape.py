"""The shape of the code: sizes of files, classes and functions, documentation, comments, and circles of imports.

    python benchmarks/code_shape.py                      # this repository, beside installed Stable-Baselines3
    python benchmarks/code_shape.py --beside FOLDER ...  # and beside other trees
    python benchmarks/code_shape.py --out benchmarks/results/code_shape.json

A second on any machine. It fails if a limit is exceeded: see `LIMITS`. Docstrings do not count in a function's length
(they do in a class's and a file's), nested functions count in the one around them, and an import counts wherever it
stands: in a function and under TYPE_CHECKING too.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import io
import json
import statistics
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("libero_gym", "vla_agent")
LIMITS = {"longest_file": 420, "largest_class": 320, "longest_function": 80, "circles": 0}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Shape:
    """Sizes of a tree of Python files, in lines; shares in percent.

    Attributes:
        longest_function: The longest, its docstring not counted.
        documented: Share of public modules, classes, functions and methods with a docstring.
        annotated: Share of functions whose arguments and result all have types.
        comments: Lines that hold a comment alone, per 100 lines of code.
        line_end_comments: Comments behind code, per 100 lines of code.
        circles: Groups of files that import each other.
    """

    name: str
    files: int
    median_file: int
    p90_file: int
    longest_file: int
    longest_file_is: str
    median_function: int
    longest_function: int
    longest_function_is: str
    largest_class: int
    largest_class_is: str
    documented: float
    annotated: float
    comments: float
    line_end_comments: float
    circles: list[list[str]]


def measure(name: str, folder: Path) -> Shape:
    """The shape of all Python files below a folder."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    file_lines = {str(path.relative_to(folder)): len(text.splitlines()) for path, text in texts.items()}
    functions, classes = {"": 0}, {"": 0}  # for a folder that has none
    documented, annotated = [], []
    for path, tree in trees.items():
        where = str(path.relative_to(folder))
        for node in ast.walk(tree):
            if isinstance(node, Function):
                functions[f"{where}:{node.name}"] = _length(node) - _docstring_lines(node)
                annotated.append(_is_annotated(node))
            elif isinstance(node, ast.ClassDef):
                classes[f"{where}:{node.name}"] = _length(node)
        documented += [ast.get_docstring(node) is not None for node in _public(tree)]
    own, behind, code = (sum(counts) for counts in zip(*map(_comments, texts.values()), strict=True))
    longest = {sizes_name: max(sizes, key=sizes.__getitem__) for sizes_name, sizes in
               (("file", file_lines), ("function", functions), ("class", classes))}  # fmt: skip
    return Shape(
        name=name,
        files=len(texts),
        median_file=round(statistics.median(file_lines.values())),
        p90_file=sorted(file_lines.values())[int(0.9 * (len(file_lines) - 1))],
        longest_file=file_lines[longest["file"]],
        longest_file_is=longest["file"],
        median_function=round(statistics.median([lines for name, lines in functions.items() if name] or [0])),
        longest_function=functions[longest["function"]],
        longest_function_is=longest["function"],
        largest_class=classes[longest["class"]],
        largest_class_is=longest["class"],
        documented=round(100 * statistics.mean(documented), 1),
        annotated=round(100 * statistics.mean(annotated or [True]), 1),
        comments=round(100 * own / code, 1),
        line_end_comments=round(100 * behind / code, 1),
        circles=circles(imports(folder)),
    )


def imports(*folders: Path) -> dict[str, set[str]]:
    """Which files of packages import which others, by dotted name; a package's name stands for its `__init__.py`.

    A name that a package shows lazily (its `__init__.pyi` says from where) counts as an import of that file.
    """
    paths = {_module(path, folder): path for folder in folders for path in sorted(folder.rglob("*.py"))}
    shown = {
        f"{module}.{alias.name}": f"{module}.{node.module}"
        for module, path in paths.items()
        if (stub := path.with_suffix(".pyi")).exists()
        for node in ast.parse(stub.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found |= {_home(name, shown) for name in _imported(node, module, path, {*paths, *shown})}
        graph[module] = found - {module}
    return graph


def _home(name: str, shown: dict[str, str]) -> str:
    """The file that a lazily shown name comes from; packages show names of packages."""
    attribute = name.rsplit(".", 1)[-1]
    while name in shown:
        name = f"{shown[name]}.{attribute}" if f"{shown[name]}.{attribute}" in shown else shown[name]
    return name


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of two or more that reach each other: Tarjan's strongly connected components (1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sorted(found)


def _module(path: Path, folder: Path) -> str:
    parts = [folder.name, *path.relative_to(folder).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(node: ast.AST, module: str, path: Path, known: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in known)
    if not isinstance(node, ast.ImportFrom):
        return
    base = node.module or ""
    if node.level:
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        base = ".".join([*package[: len(package) - node.level + 1], *base.split(".")]).strip(".")
    for alias in node.names:
        # `from package import file` needs the file, whatever else the package's `__init__` does.
        if f"{base}.{alias.name}" in known:
            yield f"{base}.{alias.name}"
        elif base in known:
            yield base


def _length(node: Function | ast.ClassDef) -> int:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return (node.end_lineno or first) - first + 1


def _docstring_lines(node: Function) -> int:
    first = node.body[0]
    if ast.get_docstring(node) is None or not isinstance(first, ast.Expr):
        return 0
    return (first.end_lineno or first.lineno) - first.lineno + 1


def _is_annotated(node: Function) -> bool:
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    arguments = [argument for argument in given if argument is not None and argument.arg not in ("self", "cls")]
    return node.returns is not None and all(argument.annotation is not None for argument in arguments)


def _public(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | Function]:
    """What a user may meet. The last of several overloads has the docstring of all."""
    yield tree
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, *Function.__args__)) and _is_public(node):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (part for part in node.body if isinstance(part, Function) and _is_public(part))


def _is_public(node: Function | ast.ClassDef) -> bool:
    names = {getattr(decorator, "attr", getattr(decorator, "id", None)) for decorator in node.decorator_list}
    return not node.name.startswith("_") and "overload" not in names


def _comments(text: str) -> tuple[int, int, int]:
    """Lines with a comment alone, lines with a comment behind code, and lines with code (docstrings count as none)."""
    own, behind, code, in_docstring = 0, 0, set(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            in_docstring |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    blank = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING)
    comment_lines = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comment_lines.append(token.start[0])
        elif token.type not in blank:
            code |= set(range(token.start[0], token.end[0] + 1)) - in_docstring
    for line in comment_lines:
        own, behind = (own, behind + 1) if line in code else (own + 1, behind)
    return own, behind, len(code)


def exceeded(shape: Shape) -> list[str]:
    """Sentences on the limits that a package does not keep."""
    values = asdict(shape) | {"circles": len(shape.circles)}
    wrong = [f"{shape.name}: {key} is {values[key]}, the limit {limit} ({values.get(f'{key}_is', shape.circles)})"
             for key, limit in LIMITS.items() if values[key] > limit]  # fmt: skip
    return wrong


def table(shapes: list[Shape]) -> str:
    """The measurements as a Markdown table."""
    rows = ["| | files | median / p90 / longest file | median / longest function | largest class | documented | "
            "annotated | comments per 100 (at line ends) | circles |", "| --- " * 9 + "|"]  # fmt: skip
    rows += [
        f"| {s.name} | {s.files} | {s.median_file} / {s.p90_file} / {s.longest_file} | {s.median_function} / "
        f"{s.longest_function} | {s.largest_class} | {s.documented:.0f} % | {s.annotated:.0f} % | {s.comments} "
        f"(+{s.line_end_comments}) | {len(s.circles)} |"
        for s in shapes
    ]
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="further folders to measure")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    args = parser.parse_args()
    shapes = [measure(name, ROOT / name) for name in (*PACKAGES, "examples", "benchmarks")]
    sb3 = importlib.util.find_spec("stable_baselines3")
    anchors = [Path(sb3.origin).parent] if sb3 and sb3.origin else []
    shapes += [measure("/".join(path.parts[-2:]) if path in args.beside else path.name, path)
               for path in (*anchors, *args.beside)]  # fmt: skip
    print(table(shapes))
    wrong = [sentence for shape in shapes if shape.name in PACKAGES for sentence in exceeded(shape)]
    print("\n".join(wrong) or "All limits are kept.")
    if args.out is not None:
        args.out.write_text(json.dumps([asdict(shape) for shape in shapes], indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
