"""Where each tensor of a checkpoint belongs in an engine's fused and sharded parameters. Pure: no tensor, no torch.

All ranges are in matrix views: a tensor [a, b, c] is a*b rows of c columns, [n] one row of n. Rows of a weight are its
outputs, columns its inputs. With tensor parallelism of `tp` ranks, as vLLM and SGLang cut:

    q_proj, k_proj, v_proj   -> qkv_proj      rows [q_r | k_r | v_r]; k and v of rank r: r, or r // (tp / kv) if tp > kv
    gate_proj, up_proj       -> gate_up_proj  rows [gate_r | up_r]
    q_b_proj, kv_b_proj      rows
    o_proj, down_proj        columns
    q_a_proj, kv_a_proj_with_mqa -> fused_qkv_a_proj  rows [q_a | kv_a], whole on every rank
    experts.{e}.gate/up/down -> experts.w13_weight [E, 2 I_r, H], experts.w2_weight [E, H, I_r]
    embed_tokens, lm_head    rows of the vocabulary, padded to a multiple of 64 and of tp

Block scales take the same ranges, offset and size divided by 128: every cut must be where a block ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from ..catalog import BLOCK, Output, blocks, matrix
from ..errors import CatalogMismatch, UnsupportedLayout

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """Rows x columns of an output -> the block at (row, col) of a parameter's matrix view."""

    output: Output
    rows: tuple[int, int]
    cols: tuple[int, int]
    parameter: str
    row: int = 0
    col: int = 0


@dataclass(frozen=True, slots=True)
class Naming:
    """What an engine calls its fused modules; None: it does not fuse them."""

    qkv: str | None = "qkv_proj"
    gate_up: str | None = "gate_up_proj"
    qkv_a: str | None = "fused_qkv_a_proj"
    w13: str | None = "w13_weight"  # of stacked experts, below `experts`; None: one module per expert
    w2: str = "w2_weight"
    vocab_padding: int = 64


UNFUSED = Naming(qkv=None, gate_up=None, qkv_a=None, w13=None)
VLLM = Naming()
SGLANG = Naming(qkv_a="fused_qkv_a_proj_with_mqa")


@dataclass(frozen=True, slots=True)
class Sharding:
    """This worker's part of the model."""

    tp_rank: int = 0
    tp_size: int = 1
    kv_heads: int = 1  # of the whole model; matters where tp_size exceeds it
    # Global expert -> its index in this worker's stacked weights. None: every expert, cut by tensor parallelism.
    experts: Mapping[int, int] | None = None


def expert_parallel(num_experts: int, ep_rank: int, ep_size: int) -> dict[int, int]:
    """Contiguous experts per rank, the first ranks one more where it does not divide: vLLM's "linear" placement."""
    base, more = divmod(num_experts, ep_size)
    begin = ep_rank * base + min(ep_rank, more)
    return {begin + i: i for i in range(base + (ep_rank < more))}


# ---- parsing names

_PARTS = re.compile(
    r"(?P<module>.*\.)?(?P<projection>[^.]+)\.(?P<kind>weight|bias|weight_scale_inv|weight_scale)$"
)
_EXPERT = re.compile(r"(?P<experts>.*\.experts)\.(?P<index>\d+)\.$")
_FUSED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up",
          "q_a_proj": "qkv_a", "kv_a_proj_with_mqa": "qkv_a"}  # fmt: skip
_ROWS = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "q_b_proj", "kv_b_proj"}
_COLS = {"o_proj", "down_proj"}
_OF_EXPERTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}  # Mixtral's names, and those of its heirs
_VOCAB = {"embed_tokens", "lm_head"}


@dataclass(frozen=True, slots=True)
class _Cut:
    """[begin, end) of a weight's rows or columns, that go to `at` in the parameter."""

    begin: int
    end: int
    at: int = 0

    def scaled(self, full: int, name: str) -> _Cut:
        """The same in blocks of 128. UnsupportedLayout where the cut is inside a block."""
        inside = self.begin % BLOCK or self.at % BLOCK or (self.end % BLOCK and self.end != full)
        if inside:
            raise UnsupportedLayout(
                f"'{name}': rows or columns [{self.begin}, {self.end}) of {full}, at {self.at} of the fused parameter, "
                f"do not begin and end with blocks of {BLOCK}",
                names=[name],
                next_step="use fewer tensor-parallel ranks (or expert parallelism), as the engine itself demands",
            )
        return _Cut(self.begin // BLOCK, blocks(self.end), self.at // BLOCK)

    def shifted(self, rows: int) -> _Cut:
        return _Cut(self.begin, self.end, self.at + rows)


def _share(full: int, rank: int, size: int, name: str, what: str) -> _Cut:
    if full % size:
        raise UnsupportedLayout(
            f"'{name}': {full} {what} do not divide by {size} tensor-parallel ranks",
            names=[name],
            next_step="use a number of ranks that divides them",
        )
    return _Cut(full // size * rank, full // size * (rank + 1))


@dataclass
class _Mapper:
    outputs: Mapping[str, Output]
    naming: Naming
    sharding: Sharding
    placements: list[Placement] = field(default_factory=list)

    def add(self, output: Output) -> None:
        parts = _PARTS.match(output.name)
        if parts is None:
            return self.whole(output, output.name)
        module, projection, kind = parts["module"] or "", parts["projection"], parts["kind"]
        expert = _EXPERT.match(module) if self.naming.w13 else None
        fused = _FUSED.get(projection)
        target = getattr(self.naming, fused) if fused else None
        if fused == "qkv_a" and f"{module}q_a_proj.weight" not in self.outputs:
            target = None  # without q_a_proj there is nothing to fuse kv_a_proj_with_mqa with
        if kind == "weight_scale" and len(output.shape) < 2:
            if expert or target:
                raise UnsupportedLayout(
                    f"'{output.name}': one scale per tensor does not survive the fusing of tensors",
                    names=[output.name],
                    next_step="set recipe.granularity to block or channel",
                )
            return self.whole(output, output.name)
        if expert:
            return self.expert(output, expert["experts"], int(expert["index"]), projection, kind)
        if self.sharding.tp_size == 1 and target is None:
            return self.whole(output, output.name)
        rows, cols = self.cuts(output, module, projection)
        if target:
            rows = rows.shifted(self.offset(module, projection, output.name))
        self.place(output, kind, rows, cols, f"{module}{target or projection}.{kind}")

    def whole(self, output: Output, parameter: str) -> None:
        rows, cols = matrix(output.shape)
        self.placements.append(Placement(output, (0, rows), (0, cols), parameter))

    def cuts(self, output: Output, module: str, projection: str) -> tuple[_Cut, _Cut]:
        """Rows and columns of the *weight* that this rank holds, whatever tensor of the module `output` is."""
        rows, cols = self.weight_shape(module, projection, output)
        tp_rank, tp_size = self.sharding.tp_rank, self.sharding.tp_size
        if projection in ("k_proj", "v_proj") and tp_size > self.sharding.kv_heads:
            copies = tp_size // self.sharding.kv_heads
            return _share(rows, tp_rank // copies, self.sharding.kv_heads, output.name, "rows"), _Cut(0, cols)
        if projection in _ROWS:
            return _share(rows, tp_rank, tp_size, output.name, "rows"), _Cut(0, cols)
        if projection in _COLS:
            return _Cut(0, rows), _share(cols, tp_rank, tp_size, output.name, "columns")
        if projection in _VOCAB:
            return self.vocabulary(rows), _Cut(0, cols)
        return _Cut(0, rows), _Cut(0, cols)

    def vocabulary(self, rows: int) -> _Cut:
        padding = self.naming.vocab_padding
        padded = -(-rows // padding) * padding
        per_rank = -(-padded // self.sharding.tp_size)
        begin = min(per_rank * self.sharding.tp_rank, rows)
        return _Cut(begin, min(begin + per_rank, rows))

    def weight_shape(self, module: str, projection: str, output: Output) -> tuple[int, int]:
        weight = self.outputs.get(f"{module}{projection}.weight")
        if weight is None:
            raise CatalogMismatch(
                f"'{output.name}' comes without '{module}{projection}.weight'", names=[output.name]
            )
        return matrix(weight.shape) if len(weight.shape) > 1 else (weight.shape[0], 1)

    def offset(self, module: str, projection: str, name: str) -> int:
        """Row at which this projection's part begins in the fused parameter of this rank."""
        before = {"k_proj": ["q_proj"], "v_proj": ["q_proj", "k_proj"], "up_proj": ["gate_proj"],
                  "kv_a_proj_with_mqa": ["q_a_proj"]}.get(projection, [])  # fmt: skip
        total = 0
        for other in before:
            weight = self.outputs.get(f"{module}{other}.weight")
            if weight is None:
                raise CatalogMismatch(f"'{name}' is fused with '{module}{other}.weight', which is missing", names=[name])
            rows, _ = self.cuts(weight, module, other)
            total += rows.end - rows.begin
        return total

    def expert(self, output: Output, experts: str, index: int, projection: str, kind: str) -> None:
        sharding = self.sharding
        local = index if sharding.experts is None else sharding.experts.get(index, -1)
        if local < 0:
            return  # another rank's
        tp_rank, tp_size = (sharding.tp_rank, sharding.tp_size) if sharding.experts is None else (0, 1)
        all_rows, all_cols = self.weight_shape(f"{experts}.{index}.", projection, output)
        target: str | None
        projection = _OF_EXPERTS.get(projection, projection)
        if projection == "down_proj":
            target, rows = self.naming.w2, _Cut(0, all_rows)
            cols = _share(all_cols, tp_rank, tp_size, output.name, "columns")
            height = all_rows
        elif projection in ("gate_proj", "up_proj"):
            target, cols = self.naming.w13, _Cut(0, all_cols)
            rows = _share(all_rows, tp_rank, tp_size, output.name, "rows")
            height = 2 * (rows.end - rows.begin)
            rows = rows.shifted(height // 2 if projection == "up_proj" else 0)
        else:
            raise UnsupportedLayout(
                f"'{output.name}': experts are known with gate_proj, up_proj and down_proj, or w1, w3 and w2", names=[output.name]
            )
        parameter = f"{experts}.{target}{kind.removeprefix('weight')}"
        if kind == "weight_scale_inv":
            height = blocks(height)
        self.place(output, kind, rows, cols, parameter, row_of_stack=local * (1 if kind == "bias" else height))

    def place(
        self, output: Output, kind: str, rows: _Cut, cols: _Cut, parameter: str, row_of_stack: int = 0
    ) -> None:
        """Adds the placement of one tensor of a module, given the cut of its weight."""
        name = output.name
        full_rows, full_cols = matrix(output.shape)
        if kind == "weight_scale_inv":
            weight_rows, weight_cols = matrix(self.outputs[name.removesuffix("_scale_inv")].shape)
            rows, cols = rows.scaled(weight_rows, name), cols.scaled(weight_cols, name)
        elif kind == "weight_scale":  # channel scales [N, 1] go with the rows
            cols = _Cut(0, 1)
        elif kind == "bias" or len(output.shape) < 2:  # [n] is one row of n
            rows, cols = _Cut(0, 1), rows
        if rows.end > full_rows or cols.end > full_cols:
            raise CatalogMismatch(f"'{name}' has shape {output.shape}, smaller than its weight asks for", names=[name])
        if rows.begin == rows.end or cols.begin == cols.end:
            return
        self.placements.append(
            Placement(output, (rows.begin, rows.end), (cols.begin, cols.end), parameter, rows.at + row_of_stack, cols.at)
        )


def place(
    outputs: Iterable[Output],
    naming: Naming = VLLM,
    sharding: Sharding = Sharding(),
    skip: Callable[[str], bool] = lambda name: False,
    rename: Callable[[str], str | None] = str,
) -> list[Placement]:
    """Placements of every output that this worker holds a part of; `skip(name)` leaves outputs out.

    `rename`: the engine's own way from a checkpoint's names to those of its modules, before any are fused; None leaves out.
    `skip` is given those.

    UnsupportedLayout where a cut is not at a block's end or does not divide; CatalogMismatch where a part is missing.
    """
    taken = {name: output for output in outputs if (name := rename(output.name)) is not None and not skip(name)}
    mapper = _Mapper({name: replace(output, name=name) for name, output in taken.items()}, naming, sharding)
    for output in mapper.outputs.values():
        mapper.add(output)
    return [replace(placement, output=taken[placement.output.name]) for placement in mapper.placements]


def check(
    placements: Iterable[Placement],
    parameters: Mapping[str, Shape],
    derived: Callable[[str], bool] = lambda name: False,
) -> None:
    """Whether the placements fill exactly `parameters` (name -> shape), as far as counting tells.

    CatalogMismatch lists: parameters nobody fills, parts outside a parameter, parameters filled in part or twice.
    `derived(name)`: parameters that are computed, not loaded. Padding rows of a vocabulary may stay unfilled.
    """
    filled: dict[str, int] = {}
    problems: list[str] = []
    names: list[str] = []

    def problem(name: str, text: str) -> None:
        names.append(name)
        problems.append(f"'{name}': {text}")

    for p in placements:
        shape = parameters.get(p.parameter)
        if shape is None:
            problem(p.output.name, f"the engine has no parameter '{p.parameter}'")
            continue
        rows, cols = matrix(shape)
        height, width = p.rows[1] - p.rows[0], p.cols[1] - p.cols[0]
        if p.row + height > rows or p.col + width > cols:
            problem(p.output.name, f"{height} x {width} at ({p.row}, {p.col}) do not fit '{p.parameter}' of {shape}")
        filled[p.parameter] = filled.get(p.parameter, 0) + height * width
    for name, shape in parameters.items():
        rows, cols = matrix(shape)
        got, want = filled.get(name, 0), rows * cols
        vocabulary = name.split(".")[-2:-1] and name.split(".")[-2] in _VOCAB
        if got == want or derived(name) or (vocabulary and 0 < got < want):
            continue
        problem(name, "no output goes there" if got == 0 else f"{got} of {want} elements are filled")
    if problems:
        shown = problems[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise CatalogMismatch(
            f"{len(problems)} problems between the plan and the engine's parameters:\n  " + "\n  ".join(shown),
            names=names,
        )
