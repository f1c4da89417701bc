"""Style sheet and script of the report.

Colours are of the Okabe-Ito palette, which colour-blind readers can tell apart; the script only adds reading a
chart's values with the pointer. Nothing in the page needs it.
"""

STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1a1f27;--muted:#5b6572;--line:#dfe3e8;
--grid:#eaedf0;
--s0:#0072b2;--s1:#d55e00;--s2:#009e73;--s3:#b3578d;--s4:#c98a00;--s5:#3a9fdc;
--good:#007a58;--good-bg:#e6f5ef;--warning:#8a5a00;--warning-bg:#fdf3dc;--bad:#b3261e;--bad-bg:#fdeceb;
--note:#44505e;--note-bg:#eef1f4}
@media (prefers-color-scheme:dark){:root{--bg:#12151a;--card:#1b2027;--ink:#e7ebf0;--muted:#9aa6b4;
--line:#303843;
--grid:#272e37;--s0:#56b4e9;--s1:#f0884a;--s2:#2fc79c;--s3:#e29bc4;--s4:#e6b93c;--s5:#9fb8ff;
--good:#4fd1a5;--good-bg:#12322a;--warning:#f0c25a;--warning-bg:#352a10;--bad:#ff8f87;--bad-bg:#3b1a19;
--note:#b5c0cc;--note-bg:#262d36}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans",sans-serif}
main{max-width:1160px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:1.9rem;margin:.1em 0 .5em;overflow-wrap:anywhere;line-height:1.2}
h2{font-size:1.3rem;margin:0 0 .6em}
h3{font-size:1.05rem;margin:1.6em 0 .6em}
section{margin-top:34px}
code,pre{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.86em}
pre{overflow:auto;white-space:pre-wrap;overflow-wrap:anywhere;background:var(--note-bg);padding:12px;
border-radius:8px;
margin:.5em 0 0}
details{margin-top:12px}summary{cursor:pointer;color:var(--muted)}
.eyebrow{margin:0;font-size:.75rem;letter-spacing:.08em;text-transform:uppercase;color:var(--muted)}
.muted,.hint{color:var(--muted)}.hint{font-size:.85rem;margin:.4em 0 0}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.facts{display:flex;flex-wrap:wrap;gap:10px 34px;margin:0}
.facts.card{padding:14px 16px}
.facts dt{font-size:.78rem;color:var(--muted)}.facts dd{margin:0;font-weight:600;overflow-wrap:anywhere}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin-top:18px;font-size:.9rem}
nav a{color:var(--s0);text-decoration:none}nav a:hover{text-decoration:underline}
.badge{display:inline-block;font-size:.78rem;font-weight:600;padding:1px 9px;border-radius:99px;
vertical-align:middle;
background:var(--note-bg);color:var(--note)}
.badge.completed,.badge.executed{background:var(--good-bg);color:var(--good)}
.badge.failed{background:var(--bad-bg);color:var(--bad)}
.badge.running{background:var(--warning-bg);color:var(--warning)}
.verdict{padding:18px 22px;border-radius:12px;border:1px solid var(--line);border-left:6px solid var(--note);
background:var(--card)}
.verdict h2{margin:.15em 0 .5em;font-size:1.35rem;line-height:1.3}
.verdict ul{list-style:none;margin:0;padding:0;display:grid;gap:7px}
.verdict li{display:grid;grid-template-columns:76px 1fr;gap:10px;align-items:baseline}
.verdict.good{border-left-color:var(--good)}.verdict.warning{border-left-color:var(--warning)}
.verdict.bad{border-left-color:var(--bad)}
.tag{font-size:.74rem;font-weight:700;text-align:center;border-radius:6px;padding:1px 0}
.tag.good{background:var(--good-bg);color:var(--good)}.tag.warning{background:var(--warning-bg);
color:var(--warning)}
.tag.bad{background:var(--bad-bg);color:var(--bad)}.tag.note{background:var(--note-bg);color:var(--note)}
.tiles{display:flex;flex-wrap:wrap;gap:12px}.tile{flex:1 1 145px}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px 16px;margin:0}
.tile p{margin:0}.tile .name{font-size:.82rem;color:var(--muted)}
.tile .value{font-size:1.75rem;font-weight:700;line-height:1.25;font-variant-numeric:tabular-nums}
.tile .interval,.tile .note{font-size:.8rem;color:var(--muted);font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:14px;
margin-bottom:14px}
figcaption{font-weight:600;margin-bottom:4px;overflow-wrap:anywhere}
.chart{width:100%;height:auto;display:block;overflow:visible;touch-action:pan-y}
svg text{font-size:12px;fill:var(--muted);font-family:inherit}
svg text.label{font-size:11.5px}svg text.reference{font-size:11px;fill:var(--note)}
.grid{stroke:var(--grid)}.axis,.tick{stroke:var(--muted);stroke-width:1}
line.reference{stroke:var(--note);stroke-dasharray:2 3}
.cursor{stroke:var(--muted);stroke-dasharray:3 3;visibility:hidden}.pointed .cursor{visibility:visible}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}.line.raw{opacity:.3;stroke-width:1}
.line.s1{stroke-dasharray:6 4}.line.raw.s1{stroke-dasharray:none}
.line.s0{stroke:var(--s0)}.line.s1{stroke:var(--s1)}.line.s2{stroke:var(--s2)}.line.s3{stroke:var(--s3)}
.dot.s0{fill:var(--s0)}.dot.s1{fill:var(--s1)}.dot.s2{fill:var(--s2)}.dot.s3{fill:var(--s3)}
.readout{margin:.2em 0 0;font-size:.85rem;display:flex;flex-wrap:wrap;gap:2px 16px;
font-variant-numeric:tabular-nums}
.key{display:inline-block;width:18px;height:0;border-top:3px solid;vertical-align:middle;margin-right:6px}
.key.s1{border-top-style:dashed}.key.block{height:10px;width:10px;border:0;border-radius:2px}
.key.s0{border-color:var(--s0)}.key.s1{border-color:var(--s1)}.key.s2{border-color:var(--s2)}
.key.s3{border-color:var(--s3)}.at{color:var(--muted)}
.bar{display:flex;height:22px;border-radius:6px;overflow:hidden;gap:2px;margin:6px 0}
.block.s0,.part.s0{background:var(--s0)}.block.s1,.part.s1{background:var(--s1)}
.block.s2,.part.s2{background:var(--s2)}
.block.s3,.part.s3{background:var(--s3)}.block.s4,.part.s4{background:var(--s4)}
.block.s5,.part.s5{background:var(--s5)}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:12px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:9px 14px;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap;
vertical-align:top}
thead th{font-size:.8rem;color:var(--muted);font-weight:600}tbody th{font-weight:600}
tbody tr:last-child>*{border-bottom:0}td details{margin:0}
svg.interval{width:140px;height:22px;display:block}.neutral{stroke:var(--muted);stroke-dasharray:2 2}
svg.interval .axis{stroke:var(--line)}.whisker{stroke:var(--s0);stroke-width:3;stroke-linecap:round}
.sample{margin-bottom:14px}.sides{display:grid;grid-template-columns:1fr 1fr;gap:12px;margin-top:10px}
.text{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate;max-height:20em;overflow:auto}
.prompt{font-weight:500}.response{border:1px solid var(--line);border-radius:10px;padding:10px 12px;
display:flex;
flex-direction:column}.response.winner{border:2px solid var(--s0);padding:9px 11px}.response .text{flex:1}
.side{margin:0 0 4px;display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 10px;font-size:.85rem}
.won{color:var(--s0);font-weight:600}.chips{margin:8px 0 0;display:flex;flex-wrap:wrap;gap:6px}
.chip{font-size:.78rem;background:var(--note-bg);color:var(--note);border-radius:6px;padding:1px 8px;
font-variant-numeric:tabular-nums}
.lineage{display:block;width:100%;height:auto;overflow:visible}.lineage.narrow{display:none;margin:0 auto}
.node rect{fill:var(--card);stroke:var(--s0);stroke-width:1.5}
.node.cached rect,.node.external rect{stroke-dasharray:5 4;stroke:var(--muted)}
.lineage text.title{font-weight:600;font-size:13px;fill:var(--ink)}.lineage text.status{font-size:11px}
.lineage text.digest{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:11px}
.edge{fill:none;stroke:var(--muted);stroke-width:1.6}marker path{fill:var(--muted)}
.edge.s0{stroke:var(--s0)}.edge.s1{stroke:var(--s1)}.edge.s2{stroke:var(--s2)}.edge.s3{stroke:var(--s3)}
.edge.s4{stroke:var(--s4)}.edge.s5{stroke:var(--s5)}
@media (max-width:700px){main{padding:18px 12px 40px}.lineage.wide{display:none}.lineage.narrow{display:block}
.sides{grid-template-columns:1fr}tbody th{white-space:normal}h1{font-size:1.5rem}.verdict{padding:14px}
.verdict li{grid-template-columns:66px 1fr}th,td{padding:8px 10px}}
@media print{body{background:#fff}main{max-width:none;padding:0}nav{display:none}.text{max-height:none}
.card,.tile,.verdict{break-inside:avoid}}
"""

SCRIPT = """
"use strict";
for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const chart = JSON.parse(svg.dataset.chart), [low, high, left, right] = chart.x;
  const out = svg.nextElementSibling, cursor = svg.querySelector(".cursor"), resting = out.innerHTML;
  const short = v => v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5) ? v.toExponential(1)
    : String(+v.toPrecision(Math.abs(v) < 1000 ? 3 : 6));
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const wanted = low + (x - left) / (right - left) * (high - low);
    const near = chart.series.map(s => s.points.reduce((a, b) =>
      Math.abs(b[0] - wanted) < Math.abs(a[0] - wanted) ? b : a));
    out.replaceChildren(...near.map((point, index) => {
      const entry = document.createElement("span"), key = document.createElement("span");
      const value = document.createElement("b"), at = document.createElement("span");
      entry.className = "entry"; key.className = "key s" + index; at.className = "at";
      value.textContent = short(point[1]); at.textContent = " at " + chart.unit + " " + short(point[0]);
      entry.append(key, chart.series[index].label + " ", value, at);
      return entry;
    }));
    const at = left + (near[0][0] - low) / (high - low) * (right - left);
    cursor.setAttribute("x1", at); cursor.setAttribute("x2", at); svg.classList.add("pointed");
  });
  svg.addEventListener("pointerleave", () => {
    out.innerHTML = resting; svg.classList.remove("pointed");
  });
}
"""
