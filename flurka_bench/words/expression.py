"""A condition over a case's fields, such as ``rank > seq_len / 4 and mechanism != 'full-math'``.

The text is parsed by Python's own grammar, checked against a short list of allowed nodes, and then
walked: nothing is ever evaluated as code. Comparison with a field that a case does not have (the
rank of full attention) is false.
"""

import ast
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flurka_bench.words.errors import (
    RequestError,
    unknown,
)

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne, ast.In: lambda left, right: left in right, ast.NotIn: lambda left, right: left not in right,
}  # fmt: skip
_LONGEST = 400  # characters: bounds the depth of the tree and the size of its numbers


class Expression:
    """A parsed condition. Raises RequestError for anything but comparisons and + - * / // % over
    the known names."""

    def __init__(self, text: str, names: Iterable[str]) -> None:
        self.text = text
        if len(text) > _LONGEST:
            raise RequestError(f"an expression has at most {_LONGEST} characters, got {len(text)}")
        try:
            # "pass" is a field of ours and a keyword of Python's
            self._tree = ast.parse(re.sub(r"\bpass\b", "pass_", text), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise RequestError(
                f"cannot read the expression {text!r}: {getattr(error, 'msg', error)}"
            ) from None
        self._check(self._tree, {name if name != "pass" else "pass_" for name in names})
        if not isinstance(self._tree, ast.Compare | ast.BoolOp | ast.UnaryOp):
            raise RequestError(
                f"the expression {text!r} is not a condition (like 'rank > seq_len / 4')"
            )

    def holds(self, record: Mapping[str, Any]) -> bool:
        """Whether the condition holds for a record of a case (``Case.as_record``). Raises
        RequestError where types do not mix."""
        try:
            return bool(_value(self._tree, record))
        except (TypeError, ArithmeticError) as error:
            raise RequestError(
                f"the expression {self.text!r} cannot be computed: {error}"
            ) from None

    def _check(self, node: ast.expr, names: set[str]) -> None:
        match node:
            case ast.Name(id=name):
                if name not in names:
                    raise unknown(
                        f"name in the expression {self.text!r}",
                        name,
                        {entry.rstrip("_") for entry in names},
                    )
                children: list[ast.expr] = []
            case ast.Constant(value=bool() | int() | float() | str()):
                children = []
            case ast.BoolOp(values=children):
                pass
            case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
                children = [operand]
            case ast.BinOp(left=left, right=right, op=op) if type(op) in _ARITHMETIC:
                children = [left, right]
            case ast.Compare(left=left, comparators=rights, ops=ops) if all(
                type(op) in _COMPARISONS for op in ops
            ):
                children = [left, *rights]
            case ast.List(elts=children) | ast.Tuple(elts=children):
                pass
            case _:
                raise RequestError(
                    f"the expression {self.text!r} may hold names, numbers, texts, and/or/not, comparisons, in, + - * / // %; "
                    f"got {type(node).__name__}"
                )
        for child in children:
            self._check(child, names)


def _value(node: ast.expr, record: Mapping[str, Any]) -> Any:
    match node:
        case ast.Name(id=name):
            return record["pass" if name == "pass_" else name]
        case ast.Constant(value=value):
            return value
        case ast.List(elts=children) | ast.Tuple(elts=children):
            return [_value(child, record) for child in children]
        case ast.BoolOp(op=ast.And(), values=children):
            return all(_value(child, record) for child in children)
        case ast.BoolOp(values=children):
            return any(_value(child, record) for child in children)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, record)
        case ast.UnaryOp(operand=operand):
            value = _value(operand, record)
            return None if value is None else -value
        case ast.BinOp(op=sign, left=left, right=right):
            values = _value(left, record), _value(right, record)
            return None if None in values else _number(sign, *values)
        case ast.Compare(left=left, ops=ops, comparators=rights):
            current = _value(left, record)
            for op, right in zip(ops, rights):
                following = _value(right, record)
                if (
                    current is None
                    or following is None
                    or not _COMPARISONS[type(op)](current, following)
                ):
                    return False
                current = following
            return True
    raise AssertionError(f"unchecked node {node!r}")


def _number(op: ast.operator, left: Any, right: Any) -> Any:
    if not all(isinstance(value, int | float) for value in (left, right)):
        raise TypeError("arithmetic takes numbers")  # 'a' * 10**9 would otherwise fill the memory
    return _ARITHMETIC[type(op)](left, right)
