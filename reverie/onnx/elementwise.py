"""Rules for operations on each element. onnxruntime-web is stricter than ONNX in which dtypes it takes."""

from functools import partial

import numpy as np

from reverie.onnx.graph import Graph, Operand, Value
from reverie.onnx.table import PRIMITIVES, Equation, Rule, refuse, rule

UNARY = {
    "abs": "Abs",
    "ceil": "Ceil",
    "cos": "Cos",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "log": "Log",
    "logistic": "Sigmoid",
    "neg": "Neg",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
}
BINARY = {"add": "Add", "div": "Div", "max": "Max", "min": "Min", "mul": "Mul", "sub": "Sub"}
COMPARISONS = {"eq": "Equal", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less"}
LOGIC = {"and": ("And", "BitwiseAnd"), "or": ("Or", "BitwiseOr"), "xor": ("Xor", "BitwiseXor")}
COMPARED = {np.dtype(np.uint32): np.int64, np.dtype(np.uint8): np.int32, np.dtype(bool): np.int32}

# Giles, "Approximating the erfinv function" (2010): polynomials in w - 2.5 for w < 5, else in sqrt(w) - 3.
NEAR = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503),
    *(-0.00417768164, 0.246640727, 1.50140941),
)
FAR = (
    *(-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613),
    *(0.00943887047, 1.00167406, 2.83297682),
)


def _same(g: Graph, e: Equation, *operands: Operand, kind: str) -> Value:
    return g.elementwise(kind, *operands)


def _compare(g: Graph, e: Equation, a: Operand, b: Operand, kind: str) -> Value:
    through = COMPARED.get(a.dtype, a.dtype)
    return g.elementwise(kind, g.cast(a, through), g.cast(b, through), dtype=bool)


def _logic(g: Graph, e: Equation, a: Operand, b: Operand, kinds: tuple[str, str]) -> Value:
    return g.elementwise(kinds[a.dtype != bool], a, b)


PRIMITIVES |= {name: Rule(partial(_same, kind=kind), True) for name, kind in (UNARY | BINARY).items()}
PRIMITIVES |= {name: Rule(partial(_compare, kind=kind), True) for name, kind in COMPARISONS.items()}
PRIMITIVES |= {name: Rule(partial(_logic, kinds=kinds), True) for name, kinds in LOGIC.items()}


@rule("ne", lazy=True)
def ne(g: Graph, e: Equation, a: Operand, b: Operand) -> Value:
    return g.elementwise("Not", _compare(g, e, a, b, "Equal"))


@rule("not", lazy=True)
def not_(g: Graph, e: Equation, x: Value) -> Value:
    return g.elementwise("Not" if x.dtype == bool else "BitwiseNot", x)


@rule("stop_gradient", "optimization_barrier", lazy=True)
def same(g: Graph, e: Equation, *operands: Operand) -> list[Operand]:
    return list(operands)


@rule("convert_element_type", lazy=True)
def convert_element_type(g: Graph, e: Equation, x: Operand) -> Operand:
    return g.cast(x, e.outs[0].dtype)


@rule("select_n", lazy=True)
def select_n(g: Graph, e: Equation, which: Operand, *cases: Operand) -> Value:
    if len(cases) != 2 or which.dtype != bool:
        raise refuse(e, f"{len(cases)} cases")
    return g.where(which, cases[1], cases[0])


@rule("clamp", lazy=True)
def clamp(g: Graph, e: Equation, low: Operand, x: Operand, high: Operand) -> Value:
    return g.elementwise("Min", g.elementwise("Max", x, low), high)


@rule("rem", lazy=True)
def rem(g: Graph, e: Equation, a: Operand, b: Operand) -> Value:
    return g.elementwise("Mod", a, b, fmod=int(a.dtype.kind != "u"))  # the sign is that of a


@rule("round", lazy=True)
def round_(g: Graph, e: Equation, x: Value) -> Value:
    if int(e.params["rounding_method"]) == 1:  # halves to even, as ONNX rounds
        return g.elementwise("Round", x)
    whole = g.elementwise("Floor", g.elementwise("Add", g.elementwise("Abs", x), _float(0.5)))
    return g.elementwise("Mul", g.elementwise("Sign", x), whole)


@rule("square", lazy=True)
def square(g: Graph, e: Equation, x: Value) -> Value:
    return g.elementwise("Mul", x, x)


@rule("integer_pow", lazy=True)
def integer_pow(g: Graph, e: Equation, x: Value) -> Value:
    power, squared, result = abs(e.params["y"]), x, None
    while power:  # repeated squaring, as XLA does it
        if power & 1:
            result = squared if result is None else g.elementwise("Mul", result, squared)
        power >>= 1
        squared = g.elementwise("Mul", squared, squared) if power else squared
    if result is None:
        raise refuse(e, "the power 0")
    return result if e.params["y"] > 0 else g.elementwise("Reciprocal", result)


@rule("pow", lazy=True)
def pow_(g: Graph, e: Equation, x: Operand, y: Operand) -> Value:
    return g.elementwise("Pow", x, g.cast(y, x.dtype))


@rule("exp2", lazy=True)
def exp2(g: Graph, e: Equation, x: Value) -> Value:
    return g.elementwise("Pow", _float(2), x)


@rule("rsqrt", lazy=True)
def rsqrt(g: Graph, e: Equation, x: Value) -> Value:
    return g.elementwise("Reciprocal", g.elementwise("Sqrt", x))


@rule("is_finite", lazy=True)
def is_finite(g: Graph, e: Equation, x: Value) -> Value:
    return g.elementwise("Less", g.elementwise("Abs", x), _float(np.inf), dtype=bool)


@rule("log1p", lazy=True)
def log1p(g: Graph, e: Equation, x: Value) -> Value:
    """Kahan's formula: log(u) x / (u - 1) with u = 1 + x makes good what x lost in u."""
    u = g.elementwise("Add", x, _float(1))
    lost = g.elementwise("Equal", u, _float(1), dtype=bool)
    rest = g.elementwise("Sub", g.where(lost, g.full(_float(2), u.shape), u), _float(1))
    ratio = g.elementwise("Div", x, rest)
    whole = g.elementwise("Less", u, _float(np.inf), dtype=bool)
    good = g.elementwise("Mul", g.elementwise("Log", u), g.where(whole, ratio, _float(1)))
    return g.where(lost, x, good)


@rule("expm1", lazy=True)
def expm1(g: Graph, e: Equation, x: Value) -> Value:
    """tanh(x / 2) (exp(x) + 1), exact near 0; exp(x) - 1 elsewhere."""
    power = g.elementwise("Exp", x)
    half = g.elementwise("Tanh", g.elementwise("Mul", x, _float(0.5)))
    near = g.elementwise("Mul", half, g.elementwise("Add", power, _float(1)))
    small = g.elementwise("Less", g.elementwise("Abs", x), _float(0.5), dtype=bool)
    return g.where(small, near, g.elementwise("Sub", power, _float(1)))


@rule("erf_inv", lazy=True)
def erf_inv(g: Graph, e: Equation, x: Value) -> Value:
    w = g.elementwise("Neg", log1p(g, e, g.elementwise("Mul", x, g.elementwise("Neg", x))))

    def polynomial(at: Value, factors: tuple[float, ...]) -> Value:
        total: Operand = _float(factors[0])
        for factor in factors[1:]:
            total = g.elementwise("Add", g.elementwise("Mul", total, at), _float(factor))
        return g.value(total)

    near = polynomial(g.elementwise("Sub", w, _float(2.5)), NEAR)
    far = polynomial(g.elementwise("Sub", g.elementwise("Sqrt", w), _float(3)), FAR)
    inside = g.elementwise("Mul", g.where(g.elementwise("Less", w, _float(5), dtype=bool), near, far), x)
    end = g.elementwise("Equal", g.elementwise("Abs", x), _float(1), dtype=bool)
    return g.where(end, g.elementwise("Mul", x, _float(np.inf)), inside)


@rule("shift_left", "shift_right_logical", lazy=True)
def shift(g: Graph, e: Equation, x: Operand, by: Operand) -> Operand:
    if x.dtype != np.uint32 or not isinstance(by, np.ndarray) or (by > 31).any():
        raise refuse(e, f"{x.dtype}, or a width that is not known to be below 32")
    direction = "LEFT" if e.name == "shift_left" else "RIGHT"
    return g.elementwise("BitShift", x, by, direction=direction)


@rule("bitcast_convert_type", lazy=True)
def bitcast_convert_type(g: Graph, e: Equation, x: Value) -> Value:
    """Bits of a float32, put together from sign, exponent and mantissa. (The bits of a NaN give an infinity.)"""
    if x.dtype != np.uint32 or e.outs[0].dtype != np.float32:
        raise refuse(e, f"{x.dtype} to {e.outs[0].dtype}")
    exponent = np.arange(256)
    scale = np.ldexp(np.float32(1), np.maximum(exponent, 1) - 150).astype(np.float32)
    scale[255] = np.inf
    hidden = np.where(exponent > 0, 2**23, 0).astype(np.float32)
    top = g.cast(g.elementwise("BitShift", x, np.array(23, np.uint32), direction="RIGHT"), np.int64)
    mantissa = g.cast(g.elementwise("BitwiseAnd", x, np.array(2**23 - 1, np.uint32)), np.float32)

    def of(table: np.ndarray) -> Value:
        return g.op("Gather", [table, top], x.shape, np.float32, axis=0)

    return g.elementwise("Mul", g.elementwise("Add", mantissa, of(np.tile(hidden, 2))), of(np.append(scale, -scale)))


def _float(number: float) -> np.ndarray:
    return np.array(number, np.float32)
