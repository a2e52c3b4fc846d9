"""ONNX graphs written as formulas: `Value`s of a `Graph` are added, multiplied and reduced, and
each operation is a node.

Axes, shapes and names are numpy's. Constants become initialisers, each stored once.
"""

from __future__ import annotations

__all__ = ["OPSET", "Graph", "Value", "onnx"]

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

OPSET = 18
"""Of ONNX operators: short-time Fourier transforms came with 17, axes as inputs with 18."""

Array = np.ndarray


def onnx() -> ModuleType:
    """The package of that name.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import onnx as package
        import onnx.inliner
    except ImportError as error:
        raise ValueError(
            "exporting needs the package onnx: pip install 'sance-audio[onnx]'"
        ) from error
    return package


class Graph:
    """Nodes in the order in which they are computed."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._known: dict[tuple[Any, ...], Value] = {}
        self._helper, self._array = onnx().helper, onnx().numpy_helper

    def constant(self, value: Any, dtype: Any = np.float32) -> Value:
        """An array, or a number, as an initialiser."""
        array = np.asarray(value, dtype)
        key = array.dtype, array.shape, array.tobytes()
        if key not in self._known:
            name = f"c{len(self.constants)}"
            self.constants.append(self._array.from_array(array.copy(), name))
            self._known[key] = Value(self, name, array.dtype)
        return self._known[key]

    def integers(self, *values: int) -> Value:
        return self.constant(values, np.int64)

    def node(
        self,
        kind: str,
        *inputs: Value | None,
        dtype: Any = None,
        outputs: int = 1,
        **settings: Any,
    ) -> Any:
        """An operator's result, or its results; of the first input's type when `dtype` is None."""
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        given = ["" if value is None else value.name for value in inputs]
        self.nodes.append(self._helper.make_node(kind, given, names, **settings))
        if dtype is None and inputs[0] is not None:
            dtype = inputs[0].dtype
        found = [Value(self, name, np.dtype(dtype)) for name in names]
        return found[0] if outputs == 1 else found

    def one(self, value: int | Value) -> Value:
        """An integer, as `(1,)`."""
        return value.reshape(1) if isinstance(value, Value) else self.integers(value)

    def joined(self, values: Sequence[Value], axis: int = 0) -> Value:
        return self.node("Concat", *values, axis=axis)

    def total(self, values: Sequence[Value]) -> Value:
        """Their sum; onnxruntime has no such operator in double precision."""
        out = values[0]
        for value in values[1:]:
            out = out + value
        return out

    def range(self, stop: Value) -> Value:
        """0, 1, ... `(stop,)`, of integers."""
        zero, one = self.constant(0, np.int64), self.constant(1, np.int64)
        return self.node("Range", zero, stop.reshape(), one)

    def model(self, inputs: Sequence[Any], outputs: dict[str, Value], shapes: Any) -> Any:
        """The whole as a checked `ModelProto`.

        Arguments:
            inputs: As `onnx.helper.make_tensor_value_info` gives them.
            outputs: By name.
            shapes: Of the outputs, by name.
        """
        helper, told = self._helper, []
        for name, value in outputs.items():
            self.nodes.append(helper.make_node("Identity", [value.name], [name]))
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            told.append(helper.make_tensor_value_info(name, kind, shapes[name]))
        graph = helper.make_graph(self.nodes, "detector", inputs, told, self.constants)
        imports = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=9)
        onnx().checker.check_model(model)
        return model


class Value:
    """A tensor of a graph."""

    def __init__(self, graph: Graph, name: str, dtype: Any):
        self.graph, self.name, self.dtype = graph, name, np.dtype(dtype)

    def _of(self, other: Any) -> Value:
        return other if isinstance(other, Value) else self.graph.constant(other, self.dtype)

    def _do(self, kind: str, *others: Any, **settings: Any) -> Value:
        return self.graph.node(kind, self, *map(self._of, others), **settings)

    def __add__(self, other: Any) -> Value:
        return self._do("Add", other)

    def __sub__(self, other: Any) -> Value:
        return self._do("Sub", other)

    def __rsub__(self, other: Any) -> Value:
        return self._of(other) - self

    def __mul__(self, other: Any) -> Value:
        return self._do("Mul", other)

    def __truediv__(self, other: Any) -> Value:
        return self._do("Div", other)

    def __rtruediv__(self, other: Any) -> Value:
        return self._of(other) / self

    def __matmul__(self, other: Any) -> Value:
        return self._do("MatMul", other)

    def __rmatmul__(self, other: Any) -> Value:
        return self._of(other) @ self

    def __lt__(self, other: Any) -> Value:
        return self._do("Less", other, dtype=np.bool_)

    def __gt__(self, other: Any) -> Value:
        return self._do("Greater", other, dtype=np.bool_)

    __array_ufunc__ = None  # so that array @ value asks the value

    def square(self) -> Value:
        return self * self

    def sqrt(self) -> Value:
        return self._do("Sqrt")

    def log(self) -> Value:
        return self._do("Log")

    def cos(self) -> Value:
        return self._do("Cos")

    def silu(self) -> Value:
        return self * self._do("Sigmoid")

    def at_least(self, other: Any) -> Value:
        return self._do("Max", other)

    def at_most(self, other: Any) -> Value:
        return self._do("Min", other)

    def cast(self, dtype: Any) -> Value:
        kind = self.graph._helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self._do("Cast", dtype=dtype, to=kind)

    def _reduced(self, kind: str, axis: int | None, keep: bool) -> Value:
        axes = [] if axis is None else [self.graph.integers(axis)]
        return self.graph.node(kind, self, *axes, keepdims=int(keep))

    def sum(self, axis: int | None = None, keep: bool = False) -> Value:
        return self._reduced("ReduceSum", axis, keep)

    def mean(self, axis: int | None = None, keep: bool = False) -> Value:
        return self._reduced("ReduceMean", axis, keep)

    def max(self, axis: int | None = None, keep: bool = False) -> Value:
        return self._reduced("ReduceMax", axis, keep)

    def count(self, axis: int) -> Value:
        """The size of an axis, an integer `()`."""
        size = self.graph.node("Shape", self, dtype=np.int64, start=axis, end=axis + 1)
        return size.reshape()

    def swapped(self, *order: int) -> Value:
        return self.graph.node("Transpose", self, perm=order or (1, 0))

    def reshape(self, *shape: int) -> Value:
        return self.graph.node("Reshape", self, self.graph.integers(*shape))

    def expanded(self, *axes: int) -> Value:
        return self.graph.node("Unsqueeze", self, self.graph.integers(*axes))

    def part(self, axis: int, start: int | Value, stop: int | Value) -> Value:
        """From start to stop along an axis; stop beyond its end is its end."""
        bounds = map(self.graph.one, (start, stop))
        return self.graph.node("Slice", self, *bounds, self.graph.integers(axis))

    def rest(self, axis: int, start: int) -> Value:
        return self.part(axis, start, np.iinfo(np.int64).max)

    def at(self, indices: Value, axis: int) -> Value:
        return self.graph.node("Gather", self, indices, axis=axis)

    def steps(self, axis: int) -> Value:
        """Differences of neighbours."""
        return self.rest(axis, 1) - self.part(axis, 0, -1)

    def sorted(self, k: int | Value, largest: bool, axis: int = -1) -> tuple[Value, Value]:
        """The k largest, or smallest, in order, and where they are."""
        settings: Any = {"outputs": 2, "axis": axis, "largest": int(largest)}
        values, places = self.graph.node("TopK", self, self.graph.one(k), **settings)
        return values, Value(self.graph, places.name, np.int64)

    def padded(self, before: Value | int, after: Value | int, value: float = 0.0) -> Value:
        """The last axis with more of one value about it."""
        ends = [
            p.reshape(1) if isinstance(p, Value) else self.graph.integers(p)
            for p in (before, after)
        ]
        filling, axis = self.graph.constant(value, self.dtype), self.graph.integers(-1)
        return self.graph.node("Pad", self, self.graph.joined(ends), filling, axis)
