"""Formulas from files, as sympy expressions and then as TensorFlow functions. Nothing of a file is ever executed.

sympy's own parser runs `eval` on the text. Here Python's grammar only reads the formula into a tree, and the tree is translated
node by node: numbers, names, arithmetic, comparisons and a list of functions; anything else is an error.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Mapping
from typing import Any

import sympy

from recon.quantitative.model import ModelError
from recon.quantitative.tensors import as_complex, real_like

_FUNCTIONS: dict[str, Callable[..., sympy.Basic]] = {
    "exp": sympy.exp, "log": sympy.log, "ln": sympy.log, "sqrt": sympy.sqrt, "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan,
    "asin": sympy.asin, "acos": sympy.acos, "atan": sympy.atan, "sinh": sympy.sinh, "cosh": sympy.cosh, "tanh": sympy.tanh,
    "erf": sympy.erf, "abs": sympy.Abs, "Abs": sympy.Abs, "max": sympy.Max, "Max": sympy.Max, "min": sympy.Min, "Min": sympy.Min,
    "where": lambda condition, yes, no: _where(condition, yes, no),
}  # fmt: skip
_CONSTANTS = {"pi": sympy.pi, "I": sympy.I, "E": sympy.E}
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
}
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {ast.Lt: sympy.Lt, ast.LtE: sympy.Le, ast.Gt: sympy.Gt, ast.GtE: sympy.Ge}
_LONGEST = 10_000


def parse(text: str, names: Collection[str], where: str) -> sympy.Basic:
    """The expression of a formula.

    Args:
        text: in Python's notation; ``^`` is a power too.
        names: allowed in it; they win over the constants pi, E (2.718...) and I (the imaginary unit).
        where: for the error: "signal of VFA".

    Raises:
        ModelError: the text is no formula, or uses a name or construction that is not allowed.
    """
    if len(text) > _LONGEST:
        raise ModelError(f"{where} is longer than {_LONGEST} characters")
    try:
        tree = ast.parse(text.strip().replace("^", "**"), mode="eval")
        return _translate(tree.body, frozenset(names), where)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{where} is not a formula: {text!r} ({error})") from error


def _translate(node: ast.AST, names: frozenset[str], where: str) -> Any:
    def inner(part: ast.AST) -> Any:
        return _translate(part, names, where)

    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return sympy.Integer(node.value) if isinstance(node.value, int) else sympy.Float(node.value)
    if isinstance(node, ast.Name):
        if node.id in names:
            return symbol(node.id)
        if node.id in _CONSTANTS:
            return _CONSTANTS[node.id]
        raise ModelError(f"{where} uses {node.id}, which is neither an unknown nor a parameter ({', '.join(sorted(names))})")
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = inner(node.left), inner(node.right)
        if isinstance(node.op, ast.Pow) and right.is_number and abs(right) > 100:
            raise ModelError(f"{where} has the power {right}; at most 100 is allowed")
        return _BINARY[type(node.op)](left, right)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return -inner(node.operand) if isinstance(node.op, ast.USub) else inner(node.operand)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
        return _COMPARISONS[type(node.ops[0])](inner(node.left), inner(node.comparators[0]))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        if node.func.id not in _FUNCTIONS:
            raise ModelError(f"{where} calls {node.func.id}; the functions are {', '.join(sorted(_FUNCTIONS))}")
        return _FUNCTIONS[node.func.id](*(inner(part) for part in node.args))
    raise ModelError(f"{where} holds {ast.unparse(node)!r}; only numbers, names, + - * / **, comparisons and functions are allowed")


def _where(condition: Any, yes: Any, no: Any) -> sympy.Basic:
    if not isinstance(condition, sympy.logic.boolalg.Boolean) or isinstance(condition, sympy.Symbol):
        raise TypeError("where wants a comparison first: where(a < b, yes, no)")
    return sympy.Piecewise((yes, condition), (no, True))


def symbol(name: str) -> sympy.Symbol:
    """The symbol of a name. Its own class of names: it never is a constant or function of sympy, whatever it is called."""
    return sympy.Symbol(name)


def evaluate(expression: sympy.Basic, values: Mapping[str, Any], like: Any) -> Any:
    """A sympy expression in TensorFlow; common subexpressions are computed once.

    Args:
        values: real or complex tensors by name.
        like: a tensor; its precision is that of constants.
    """
    shared, (reduced,) = sympy.cse([expression], symbols=sympy.numbered_symbols("_shared"))
    known = {symbol(name): value for name, value in values.items()}
    for name, part in shared:
        known[name] = _compute(part, known, like)
    return _compute(reduced, known, like)


def _compute(node: sympy.Basic, known: Mapping[sympy.Symbol, Any], like: Any) -> Any:
    import tensorflow as tf

    if node in known:
        return known[node]
    if node is sympy.I:
        return tf.complex(real_like(0.0, like), real_like(1.0, like))
    if node.is_number and node.is_real:
        return real_like(float(node), like)
    if isinstance(node, sympy.Pow):
        return _power(node, known, like)
    if isinstance(node, sympy.Piecewise):
        (yes, condition), (no, _) = node.args
        return tf.where(_compute(condition, known, like), *_promoted([_compute(yes, known, like), _compute(no, known, like)]))
    parts = [_compute(part, known, like) for part in node.args]
    if node in (sympy.true, sympy.false):
        return tf.constant(bool(node))
    for kind, function in _tensor_functions().items():
        if isinstance(node, kind):
            result = parts[0]
            if len(parts) == 1:
                return function(result)
            parts = _promoted(parts)
            result = parts[0]
            for part in parts[1:]:
                result = function(result, part)
            return result
    raise ModelError(f"{node.func.__name__} cannot be computed in a signal model")


def _power(node: sympy.Pow, known: Mapping[sympy.Symbol, Any], like: Any) -> Any:
    import tensorflow as tf

    base, exponent = node.args
    value = _compute(base, known, like)
    if exponent == -1:
        return tf.math.reciprocal(value)
    if exponent == sympy.Rational(1, 2):
        return tf.sqrt(value)
    if exponent == sympy.Rational(-1, 2):
        return tf.math.reciprocal(tf.sqrt(value))
    if exponent.is_Integer and abs(int(exponent)) <= 8:
        # Products: the derivative of a general power takes the logarithm of its base, which may be negative.
        result = value
        for _ in range(abs(int(exponent)) - 1):
            result = result * value
        return result if exponent > 0 else tf.math.reciprocal(result)
    return tf.pow(*_promoted([value, _compute(exponent, known, like)]))


def _promoted(parts: list[Any]) -> list[Any]:
    """All complex where one is: TensorFlow does not mix the two."""
    dtype = next((part.dtype for part in parts if part.dtype.is_complex), None)
    return [as_complex(part, dtype) for part in parts] if dtype is not None else parts


def _tensor_functions() -> dict[Any, Callable[..., Any]]:
    import tensorflow as tf

    return {
        sympy.Add: lambda a, b: a + b,
        sympy.Mul: lambda a, b: a * b,
        sympy.exp: tf.exp,
        sympy.log: tf.math.log,
        sympy.sin: tf.sin,
        sympy.cos: tf.cos,
        sympy.tan: tf.tan,
        sympy.asin: tf.asin,
        sympy.acos: tf.acos,
        sympy.atan: tf.atan,
        sympy.sinh: tf.sinh,
        sympy.cosh: tf.cosh,
        sympy.tanh: tf.tanh,
        sympy.erf: tf.math.erf,
        sympy.Abs: tf.abs,
        sympy.Max: tf.maximum,
        sympy.Min: tf.minimum,
        sympy.StrictLessThan: tf.less,
        sympy.LessThan: tf.less_equal,
        sympy.StrictGreaterThan: tf.greater,
        sympy.GreaterThan: tf.greater_equal,
    }
