"""The small changes that make mutants: which nodes of a syntax tree may change, and into what.

This module knows neither files nor tests, and picks nothing by hand: all follows from the kind of node.
"""

import ast
import copy
from collections.abc import Iterator

BINARY_SWAPS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
}
COMPARISON_SWAPS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
NAME_PAIRS = (
    ("min", "max"),
    ("amin", "amax"),
    ("argmin", "argmax"),
    ("minimum", "maximum"),
    ("sum", "mean"),
    ("any", "all"),
    ("zeros", "ones"),
    ("zeros_like", "ones_like"),
    ("new_zeros", "new_ones"),
    ("cumsum", "cumprod"),
    ("exp", "expm1"),
    ("sqrt", "rsqrt"),
    ("square", "abs"),
    ("sigmoid", "tanh"),
    ("softmax", "log_softmax"),
)
NAME_SWAPS = {a: b for a, b in NAME_PAIRS} | {b: a for a, b in NAME_PAIRS}
NAME_SWAPS |= {"logsigmoid": "sigmoid", "sign": "abs", "scatter_add": "scatter", "index_add": "index_copy"}
SYMMETRIC_CALLS = {"maximum", "minimum", "max", "min", "promote_types"}
"""Calls whose arguments may come in any order."""

Path_ = tuple[tuple[str, int | None], ...]


def mutable_nodes(node: ast.AST, path: Path_ = ()) -> Iterator[tuple[ast.AST, Path_]]:
    """Walk the expressions that compute something, with the way to each from the root."""
    if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring
    yield node, path
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases"):
            continue
        if isinstance(value, ast.AST):
            yield from mutable_nodes(value, (*path, (field, None)))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, ast.AST):
                    yield from mutable_nodes(item, (*path, (field, index)))


def mutations_of(node: ast.AST) -> Iterator[ast.AST]:
    """Make every small change of one node; each result is a new node."""
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            if type(op) in BINARY_SWAPS:
                yield ast.BinOp(left, BINARY_SWAPS[type(op)](), right)
            yield left
            yield right
            if isinstance(op, ast.Sub | ast.Div | ast.Pow | ast.FloorDiv | ast.Mod | ast.MatMult):
                yield ast.BinOp(right, op, left)
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            yield from values
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            for index, comparison in enumerate(ops):
                for other in COMPARISON_SWAPS[type(comparison)]:
                    yield ast.Compare(left, [*ops[:index], other(), *ops[index + 1 :]], comparators)
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1)
            if isinstance(value, float) and value:
                yield ast.Constant(value * 2)
                yield ast.Constant(-value)
        case ast.Constant(value=str() as value):
            yield ast.Constant(value + "_mutated")
        case ast.If(test=test, body=body, orelse=orelse):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Call():
            yield from call_mutations(node)
        case ast.Subscript(value=value, ctx=ast.Load()):
            yield value


def call_mutations(node: ast.Call) -> Iterator[ast.AST]:
    """Change a call: another function, no call at all, an argument less, arguments in another order."""
    function, args, keywords = node.func, node.args, node.keywords
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name in NAME_SWAPS:
        other: ast.expr = ast.Name(NAME_SWAPS[name], ast.Load())
        if isinstance(function, ast.Attribute):
            other = ast.Attribute(function.value, NAME_SWAPS[name], ast.Load())
        yield ast.Call(other, args, keywords)
    is_module = isinstance(function, ast.Attribute) and getattr(function.value, "id", "") == "torch"
    if isinstance(function, ast.Attribute) and not is_module:
        yield function.value  # `x.method(...)` becomes `x`: drops masks, clamps, detaches and conversions
    elif args and not isinstance(args[0], ast.Starred):
        yield args[0]  # `function(x, ...)` becomes `x`
    for index in range(len(args) - 1):
        if name not in SYMMETRIC_CALLS:
            swapped = [*args[:index], args[index + 1], args[index], *args[index + 2 :]]
            yield ast.Call(function, swapped, keywords)
    for index, keyword in enumerate(keywords):
        yield ast.Call(function, args, [*keywords[:index], *keywords[index + 1 :]])
        if keyword.arg in NAME_SWAPS:
            renamed = ast.keyword(NAME_SWAPS[keyword.arg], keyword.value)
            if all(other_keyword.arg != renamed.arg for other_keyword in keywords):
                yield ast.Call(function, args, [*keywords[:index], renamed, *keywords[index + 1 :]])


def replace_node(tree: ast.Module, path: Path_, replacement: ast.AST) -> ast.Module:
    """Copy the tree with the node at the path replaced."""
    tree, replacement = copy.deepcopy(tree), copy.deepcopy(replacement)
    parent: ast.AST = tree
    for field, index in path[:-1]:
        child = getattr(parent, field)
        parent = child if index is None else child[index]
    field, index = path[-1]
    if index is None:
        setattr(parent, field, replacement)
    else:
        getattr(parent, field)[index] = replacement
    return ast.fix_missing_locations(tree)


def describe(node: ast.AST) -> str:
    """Unparse a node on one line; of an `if`, its condition only."""
    text = f"if {ast.unparse(node.test)}" if isinstance(node, ast.If) else ast.unparse(node)
    return " ".join(text.split())
