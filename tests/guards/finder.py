"""The guards of a module, found in its source, and the module with one of them taken out."""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# What a comparison becomes: its bound moves by one.
_MOVED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
_SIGNS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(frozen=True)
class Guard:
    """
    One thing that can be taken out of a module.

    Args:
        module: path of the module below the package, as `core/framing.py`.
        function: the qualified name of what holds it; `""` for what runs when the module is imported.
        line, last: the first and the last line of what is changed.
        source: what is changed, on one line.
        change: what is done to it.
        number: tells apart those of a function that are otherwise the same, from 1.
        index: which of the module's it is.
    """

    module: str
    function: str
    line: int
    last: int
    source: str
    change: str
    number: int
    index: int

    @property
    def name(self) -> str:
        """What names it in `known`: it stays the same when lines move."""
        number = f" #{self.number}" if self.number > 1 else ""
        return f"{self.module} | {self.function} | {self.source} | {self.change}{number}"


@dataclass(frozen=True)
class _Found:
    function: str
    node: ast.AST
    source: str
    change: str
    apply: Callable[[], None]


def find(source: str, module: str) -> list[Guard]:
    """
    The guards in the source of a module: conditions, bounds, calls for their effect, `min` and `max`,
    operands of `and` and `or`, what is caught, and what is noted in an attribute.
    """
    seen: Counter[tuple[str, str, str]] = Counter()
    guards = []
    for index, found in enumerate(_walk(ast.parse(source))):
        key = (found.function, found.source, found.change)
        seen[key] += 1
        line: int = found.node.lineno  # type: ignore[attr-defined]  # all of them have a place
        last: int = found.node.end_lineno  # type: ignore[attr-defined]  # as above
        guards.append(Guard(module, found.function, line, last, found.source, found.change, seen[key], index))
    return guards


def without(source: str, guard: Guard) -> ast.Module:
    """The module with one of its guards taken out; what stays keeps its lines."""
    tree = ast.parse(source)
    for index, found in enumerate(_walk(tree)):
        if index == guard.index:
            found.apply()
            return ast.fix_missing_locations(tree)
    raise LookupError(f"{guard.module} changed")


def _walk(tree: ast.Module) -> Iterator[_Found]:
    return _Walk().body(tree, "")


class _Walk:
    """Walks over a tree; `function` is the qualified name of the function that a node is in."""

    def body(self, node: ast.AST, function: str, prefix: str = "") -> Iterator[_Found]:
        for field, value in ast.iter_fields(node):
            for place, child in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(child, ast.AST):
                    yield from self.node(node, field, place, child, function, prefix)

    def node(
        self, parent: ast.AST, field: str, place: int, node: ast.AST, function: str, prefix: str
    ) -> Iterator[_Found]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.ClassDef):
            yield from self.body(node, function, f"{prefix}{node.name}.")
            return
        if isinstance(node, _FUNCTIONS):
            name = "<lambda>" if isinstance(node, ast.Lambda) else node.name
            for each, value in ast.iter_fields(node):
                inner = each == "body"
                for number, child in enumerate(value if isinstance(value, list) else [value]):
                    if isinstance(child, ast.AST) and each not in ("returns", "type_params"):
                        if inner:
                            yield from self.node(
                                node, each, number, child, f"{prefix}{name}", f"{prefix}{name}.<locals>."
                            )
                        else:
                            yield from self.node(node, each, number, child, function, prefix)
            return
        if isinstance(node, ast.arg):
            return
        yield from self.guards(parent, field, place, node, function)
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                yield from self.node(node, "value", 0, node.value, function, prefix)
            return
        yield from self.body(node, function, prefix)

    def guards(
        self, parent: ast.AST, field: str, place: int, node: ast.AST, function: str
    ) -> Iterator[_Found]:
        def put(new: ast.AST) -> Callable[[], None]:
            def apply() -> None:
                value = getattr(parent, field)
                if isinstance(value, list):
                    value[place] = ast.copy_location(new, node)
                else:
                    setattr(parent, field, ast.copy_location(new, node))

            return apply

        match node:
            case ast.If() | ast.IfExp() | ast.While():
                word = "while" if isinstance(node, ast.While) else "if"
                yield from _condition(node, "test", None, node.test, word, function, _always(node))
            case ast.comprehension():
                for number, test in enumerate(node.ifs):
                    yield from _condition(node, "ifs", number, test, "if", function, True)
            case ast.Compare():
                for number, op in enumerate(node.ops):
                    if type(op) in _MOVED:
                        moved = _MOVED[type(op)]
                        new = copy.copy(node)
                        new.ops = [*node.ops[:number], moved(), *node.ops[number + 1 :]]
                        change = f"{_SIGNS[type(op)]} becomes {_SIGNS[moved]}"
                        yield _Found(function, node, _text(node), change, put(new))
            case ast.Expr(value=ast.Call()):
                yield _Found(function, node, _text(node), "not called", put(ast.Pass()))
            case ast.Assign(targets=[ast.Attribute()]) | ast.AugAssign(target=ast.Attribute()):
                if not function.endswith("__init__"):
                    yield _Found(function, node, _text(node), "not noted", put(ast.Pass()))
            case ast.Call(func=ast.Name(id="min" | "max"), args=[_, _, *_], keywords=[]):
                for each in node.args:
                    if not isinstance(each, ast.Starred):
                        yield _Found(function, node, _text(node), f"only {_text(each)}", put(each))
            case ast.Call(func=ast.Name(id="suppress"), args=[_, *_]):
                new_call = ast.Call(node.func, [], [])
                yield _Found(function, node, _text(node), "suppresses nothing", put(new_call))
            case ast.BoolOp(values=values):
                for each in values:
                    rest = [value for value in values if value is not each]
                    if not _binds(each):
                        left = rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
                        yield _Found(function, node, _text(node), f"without {_text(each)}", put(left))
            case ast.ExceptHandler():
                yield from _handler(node, function)


def _always(node: ast.If | ast.IfExp | ast.While) -> bool:
    """Whether the condition can always hold: where that ends the function, or never ends, it says little."""
    if isinstance(node, ast.If):
        return not isinstance(node.body[-1], ast.Return | ast.Raise)
    return isinstance(node, ast.IfExp)


def _condition(
    parent: ast.AST, field: str, place: int | None, test: ast.expr, word: str, function: str, always: bool
) -> Iterator[_Found]:
    for holds in (False, True) if always else (False,):

        def apply(holds: bool = holds) -> None:
            new: ast.expr = ast.Constant(holds)
            if _binds(test):
                new = ast.Subscript(ast.Tuple([test, new], ast.Load()), ast.Constant(1), ast.Load())
            else:
                # The condition stays behind what decides: so a function refers to the same variables.
                op = ast.Or() if holds else ast.And()
                new = ast.BoolOp(op, [new, test])
            ast.copy_location(new, test)
            if place is None:
                setattr(parent, field, new)
            else:
                getattr(parent, field)[place] = new

        yield _Found(function, test, f"{word} {_text(test)}", "always" if holds else "never", apply)


def _handler(node: ast.ExceptHandler, function: str) -> Iterator[_Found]:
    kind = f"except {_text(node.type)}" if node.type is not None else "except"
    first, last = node.body[0], node.body[-1]

    def reraise() -> None:
        node.body = [ast.copy_location(ast.Raise(), first)]

    if not (isinstance(first, ast.Raise) and first.exc is None):
        yield _Found(function, first if first is last else node, kind, "not caught", reraise)
    if isinstance(node.type, ast.Tuple):
        types = node.type
        for each in types.elts:

            def narrow(each: ast.expr = each) -> None:
                types.elts = [other for other in types.elts if other is not each]

            yield _Found(function, node, kind, f"without {_text(each)}", narrow)


def _binds(node: ast.AST) -> bool:
    return any(isinstance(each, ast.NamedExpr) for each in ast.walk(node))


def _text(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())
