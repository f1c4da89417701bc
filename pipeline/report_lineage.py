"""The graph of a run's artifacts as SVG: in a row for wide screens, in a column for narrow ones."""

from dataclasses import dataclass
from html import escape

from pipeline.report_data import RunView

_DIGEST_CHARS = 10


@dataclass(frozen=True)
class Node:
    """An artifact: of a stage of this run, or of another one."""

    title: str
    kind: str
    digest: str
    status: str


@dataclass(frozen=True)
class Edge:
    """`source` was read as `role` to make `target`; both are places in the list of nodes."""

    source: int
    target: int
    role: str


def lineage(run: RunView) -> tuple[list[Node], list[Edge]]:
    """The artifacts of a run in the order of its stages, and what each was made from.

    An input that no stage of this run made (a rerun on recorded artifacts) becomes a node of its own in front.
    """
    stages = [stage for stage in run.stages if stage.digest]
    made = {stage.digest for stage in stages}
    foreign: dict[str, str] = {}
    for stage in stages:
        for role, digest in (stage.artifact.get("parents") or {}).items():
            if digest not in made:
                foreign.setdefault(str(digest), str(role))
    nodes = [Node(role, "of another run", digest, "external") for digest, role in foreign.items()]
    nodes += [Node(s.name, str(s.artifact.get("type", "")), s.digest, s.status) for s in stages]
    place = {node.digest: index for index, node in reversed(list(enumerate(nodes)))}
    edges = []
    for index, stage in enumerate(stages, start=len(foreign)):
        for role, digest in (stage.artifact.get("parents") or {}).items():
            if place[str(digest)] < index:
                edges.append(Edge(place[str(digest)], index, str(role)))
    return nodes, edges


def lineage_graphs(nodes: list[Node], edges: list[Edge]) -> str:
    """Both drawings; the style sheet shows the one that fits."""
    return _row(nodes, edges) + _column(nodes, edges)


def lineage_list(nodes: list[Node], edges: list[Edge]) -> str:
    """The same graph as sentences, for screen readers and for copying digests."""
    items = []
    for index, node in enumerate(nodes):
        parents = [f"{nodes[e.source].title} as {e.role}" for e in edges if e.target == index]
        made_from = f", made from {', '.join(parents)}" if parents else ""
        items.append(f"<li><b>{escape(node.title)}</b>{escape(made_from)}: <code>{escape(node.digest)}</code></li>")
    return f"<ul>{''.join(items)}</ul>"


def _row(nodes: list[Node], edges: list[Edge]) -> str:
    width, height, gap = 150, 64, 30
    longest = max((edge.target - edge.source for edge in edges), default=1)
    top = 14 + 20 * (longest - 1)
    parts = []
    for edge in edges:
        tip = f"<title>{escape(_sentence(nodes, edge))}</title>"
        start, end = edge.source * (width + gap), edge.target * (width + gap)
        if edge.target - edge.source == 1:
            middle = top + height / 2
            path = f"M{start + width} {middle}H{end - 3}"
        else:
            rise = 20 * (edge.target - edge.source - 1)
            out, into = start + width * 0.75, end + width * 0.25 + 8 * (edge.source - edge.target + longest)
            path = (
                f"M{out} {top}C{out + 10} {top - rise * 1.33 - 4},{into - 10} {top - rise * 1.33 - 4},{into} {top - 3}"
            )
        parts.append(f'<path class="edge s{edge.source % 6}" d="{path}" marker-end="url(#tip)">{tip}</path>')
    boxes = [_box(node, index * (width + gap), top, width, height) for index, node in enumerate(nodes)]
    total = max(len(nodes) * (width + gap) - gap, 1)
    return _svg("wide", total + 4, top + height + 4, parts + boxes)


def _column(nodes: list[Node], edges: list[Edge]) -> str:
    width, height, gap = 210, 64, 24
    longest = max((edge.target - edge.source for edge in edges), default=1)
    left = 14 + 20 * (longest - 1)
    parts = []
    for edge in edges:
        tip = f"<title>{escape(_sentence(nodes, edge))}</title>"
        start, end = edge.source * (height + gap), edge.target * (height + gap)
        if edge.target - edge.source == 1:
            path = f"M{left + width / 2} {start + height}V{end - 3}"
        else:
            reach = 20 * (edge.target - edge.source - 1)
            out, into = start + height * 0.7, end + height * 0.2 + 5 * (edge.source - edge.target + longest)
            path = f"M{left} {out}C{left - reach * 1.33 - 4} {out},{left - reach * 1.33 - 4} {into},{left - 3} {into}"
        parts.append(f'<path class="edge s{edge.source % 6}" d="{path}" marker-end="url(#tip)">{tip}</path>')
    boxes = [_box(node, left, index * (height + gap), width, height) for index, node in enumerate(nodes)]
    total = max(len(nodes) * (height + gap) - gap, 1)
    return _svg("narrow", left + width + 4, total + 4, parts + boxes)


def _sentence(nodes: list[Node], edge: Edge) -> str:
    return f"{nodes[edge.target].title} reads {nodes[edge.source].title} as {edge.role}"


def _box(node: Node, x: float, y: float, width: float, height: float) -> str:
    return (
        f'<g class="node {escape(node.status)}"><rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>'
        f'<text class="title" x="{x + 12}" y="{y + 20}">{escape(node.title[:18])}</text>'
        f'<text x="{x + 12}" y="{y + 37}">{escape(node.kind[:20])}</text>'
        f'<text class="digest" x="{x + 12}" y="{y + 54}">{escape(node.digest[:_DIGEST_CHARS])}</text>'
        f'<text class="status" x="{x + width - 10}" y="{y + 54}" text-anchor="end">{escape(node.status)}</text></g>'
    )


def _svg(name: str, width: float, height: float, parts: list[str]) -> str:
    marker = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse"><path d="M0 0L8 4L0 8z"/></marker></defs>'
    ).replace('"tip"', f'"tip-{name}"')
    drawn = "".join(parts).replace("url(#tip)", f"url(#tip-{name})")
    return (
        f'<svg class="lineage {name}" viewBox="-2 -2 {width} {height}" style="max-width:{width}px" role="img" '
        f'aria-label="Artifacts of the run and what they were made from">{marker}{drawn}</svg>'
    )
