"""Where one mechanism needs fewer FLOPs than another, as inequalities derived from the op lists
themselves.

There are no formulas here: symbols go into ``mechanisms.lower``, the matmul FLOPs that come out are
    compared, and SymPy
solves the comparison for the rank k and the number of features m. SymPy is imported only when a
condition is asked for.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from flurka_bench.cases.case import Case
from flurka_bench.cases.registry import (
    canonical,
    get,
)
from flurka_bench.lowering import lower
from flurka_bench.words.ops import total
from flurka_bench.words.sizes import Number

Expr = Any  # a sympy expression or relation; sympy is not imported with this module


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """When mechanism ``x`` needs fewer matmul FLOPs than ``y``, in the symbols N, D, d, k, m (h = D
    / d; b = 1 drops out).

    ``inequality`` is ``flops_x < flops_y`` with everything common cancelled and nothing negative on
    either side. ``solved_for_k`` and ``solved_for_m`` are the same condition as a bound, under k ≤
    N: a relation, true or false where it always or never holds, a disjunction where the sign of the
    coefficient is open, None where the variable does not occur. At level core FLOPs are per batch
    and head.
    """

    x: str
    y: str
    level: str
    flops_x: Expr
    flops_y: Expr
    inequality: Expr
    solved_for_k: Expr
    solved_for_m: Expr

    @property
    def latex(self) -> str:
        """The inequality as LaTeX."""
        import sympy

        return str(sympy.latex(self.inequality))

    def holds(self, **sizes: int) -> bool:
        """Whether the inequality holds for numbers given by symbol name: ``holds(N=8192, D=512,
        d=64, k=512, m=64)``."""
        return bool(
            self.inequality.subs(
                {symbol: sizes[symbol.name] for symbol in self.inequality.free_symbols}
            )
        )


def symbols() -> dict[str, Expr]:
    """The positive symbols N, D, d, k, m by name."""
    import sympy

    return {name: sympy.Symbol(name, positive=True) for name in ("N", "D", "d", "k", "m")}


@lru_cache(maxsize=512)
def flops(
    name: str,
    level: str = "layer",
    order: str | None = None,
    *,
    pass_: str = "forward",
    share_kv: bool = False,
    share_heads: bool = True,
    compression: str = "dense",
) -> Expr:
    """Matmul FLOPs of a mechanism for one batch (at level core: and one head), as an expanded
    expression."""
    import sympy

    of = symbols()
    case = Case(
        mechanism=name,
        level=level,
        order=order,
        pass_=pass_,
        batch=1,
        share_kv=share_kv,
        share_heads=share_heads,
        compression=compression,
        num_heads=1 if level == "core" else of["D"] / of["d"],
        head_dim=of["d"],
        seq_len=of["N"],
        rank=of["k"],
        num_features=of["m"],
    )
    return sympy.expand(total(lower(case, "cuda"), "matmul_flops"))


def conditions(
    x: str,
    y: str,
    level: str = "layer",
    order_x: str | None = None,
    order_y: str | None = None,
    **options: Any,
) -> Condition:
    """When ``x`` in its order beats ``y`` in its order by matmul FLOPs.

    ``options`` are those of ``flops``: pass_, share_kv, share_heads, compression. Raises
        RequestError for unknown names
    and for orders that a mechanism does not have.
    """
    import sympy

    get(x), get(y)
    flops_x, flops_y = flops(x, level, order_x, **options), flops(y, level, order_y, **options)
    difference = sympy.expand(flops_x - flops_y)
    return Condition(
        x=x, y=y, level=level, flops_x=flops_x, flops_y=flops_y, inequality=_cancelled(difference),
        solved_for_k=_solve(difference, "k"), solved_for_m=_solve(difference, "m"),
    )  # fmt: skip


def inequality(
    x: str,
    y: str,
    level: str = "layer",
    order_x: str | None = None,
    order_y: str | None = None,
    **options: Any,
) -> Expr:
    """The ``inequality`` of ``conditions`` alone, without solving it for k and m."""
    import sympy

    return _cancelled(
        sympy.expand(flops(x, level, order_x, **options) - flops(y, level, order_y, **options))
    )


def holds(case_x: Case, case_y: Case) -> Number:
    """Whether ``case_x`` needs fewer matmul FLOPs than ``case_y``: a bool, or an array of them for
    arrays."""
    return total(lower(canonical(case_x), "cuda"), "matmul_flops") < total(
        lower(canonical(case_y), "cuda"), "matmul_flops"
    )


def _cancelled(difference: Expr) -> Expr:
    """``difference < 0`` with positive terms on the left, negative ones on the right, and common
    factors gone."""
    import sympy

    terms = sympy.Add.make_args(_numerator(difference))
    divisor = sympy.gcd(list(terms))
    terms = [sympy.cancel(term / divisor) for term in terms] if difference != 0 else []
    left = [term for term in terms if term.as_coeff_Mul()[0] > 0]
    right = [-term for term in terms if term.as_coeff_Mul()[0] < 0]
    return sympy.StrictLessThan(_tidy(sympy.Add(*left)), _tidy(sympy.Add(*right)))


def _numerator(expression: Expr) -> Expr:
    """The expression over its common denominator, which is a product of sizes and so positive."""
    import sympy

    return sympy.expand(sympy.fraction(sympy.together(expression))[0])


def _tidy(expression: Expr) -> Expr:
    """What all terms share in front of what is left, signs untouched."""
    import sympy

    shared = sympy.gcd(list(sympy.Add.make_args(expression)))
    return shared * sympy.expand(expression / shared) if expression != 0 else expression


def _solve(difference: Expr, name: str) -> Expr | None:
    """``difference < 0`` as a bound on one symbol, in which FLOPs are linear."""
    import sympy

    variable = symbols()[name]
    if variable not in difference.free_symbols:
        return None
    slope, rest = sympy.Poly(_numerator(difference), variable).all_coeffs()
    common = sympy.gcd([*sympy.Add.make_args(slope), *sympy.Add.make_args(rest)])
    slope, rest = sympy.expand(slope / common), sympy.expand(rest / common)
    slope_sign, rest_sign = _sign(slope), _sign(rest)
    # written so that nothing under the fraction bar is negative where the bound applies
    downwards = slope_sign == -1 or (slope_sign is None and rest_sign == 1)
    top, bottom = (rest, -slope) if downwards else (-rest, slope)
    bound = _tidy(top) / _tidy(bottom)
    below, above = sympy.StrictLessThan(variable, bound), sympy.StrictGreaterThan(variable, bound)
    if slope_sign is not None:
        return below if slope_sign > 0 else above
    rising, falling = _cancelled(-slope), _cancelled(slope)
    if sympy.cancel(
        rest / slope
    ).is_positive:  # then the bound is negative, and the slope alone decides
        return falling
    if rest_sign == 1:  # a rising difference that starts above zero stays there
        return sympy.And(falling, above)
    if rest_sign == -1:
        return sympy.Or(sympy.Not(rising), below)
    return sympy.Or(sympy.And(rising, below), sympy.And(falling, above))


def _sign(expression: Expr) -> int | None:
    """The sign that ``expression`` has for all positive sizes with k ≤ N and d ≤ D, or None where
    both occur."""
    import sympy

    of = symbols()
    slack, heads = sympy.Symbol("s", nonnegative=True), sympy.Symbol("t", nonnegative=True)
    widened = sympy.expand(
        expression.subs(
            {of["N"]: of["k"] + slack, of["D"]: of["d"] * (1 + heads)}, simultaneous=True
        )
    )
    coefficients = {sympy.sign(term.as_coeff_Mul()[0]) for term in sympy.Add.make_args(widened)}
    return int(coefficients.pop()) if len(coefficients) == 1 else None
