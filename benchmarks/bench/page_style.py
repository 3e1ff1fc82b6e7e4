"""How the report looks, on a bright and on a dark screen and on paper."""

STYLE = """
:root { --ink: #1c2330; --soft: #5b6575; --paper: #fff; --card: #f6f8fa; --edge: #d8dee6; --bad: #c62828; --good: #2e7d32;
 --host: #2f6fb0; --device: #7a4fb5; --rest: #e0a030; --total: #1c2330;
 --c0: #1f6fb4; --c1: #d9730d; --c2: #2e8b57; --c3: #a83279; --c4: #7a5c00; --c5: #0a8a99; --c6: #6b4fc0; --c7: #7d7d7d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #a3adba; --paper: #14181e; --card: #1c222b;
 --edge: #36404c; --bad: #ff6b6b; --good: #66bb6a; --host: #5b9fe0; --device: #b08cf0; --rest: #e0b050;
 --total: #cfd6df; --c0: #5aa9f0; --c1: #f5a04a; --c2: #5cc98c; --c3: #e57ab8; --c4: #d9b93b; --c5: #45c8d8; --c6: #a48cf0;
 --c7: #b0b0b0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 24px; background: var(--paper); color: var(--ink);
 font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { margin: 0 0 8px; font-size: 26px; } h2 { margin: 40px 0 4px; font-size: 19px; border-bottom: 1px solid var(--edge);
 padding-bottom: 6px; } h3 { margin: 0 0 8px; font-size: 16px; }
small, .note, caption, dt { color: var(--soft); } small { font-size: 12px; } .note { margin: 4px 0 12px; font-size: 14px; }
.legend { list-style: none; margin: 0; padding: 0; } .swatch { display: inline-block; width: 14px; height: 14px;
 border-radius: 3px; margin-right: 8px; vertical-align: -2px; background: currentColor; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 16px; margin: 14px 0 20px; }
article { background: var(--card); border: 1px solid var(--edge); border-radius: 8px; padding: 14px 16px; min-width: 0; }
article.bad { border: 2px solid var(--bad); } .invalid, .valid { font-size: 12px; font-weight: 700; padding: 2px 7px;
 border-radius: 4px; color: var(--paper); white-space: nowrap; } .invalid { background: var(--bad); }
.valid { background: var(--good); } .reasons { color: var(--bad); font-weight: 600; margin: 0 0 10px; padding-left: 20px; }
dl { display: grid; grid-template-columns: 76px 1fr; gap: 2px 10px; margin: 0; font-size: 13px; }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; margin: 8px 0; min-width: 60%; }
caption { text-align: left; font-size: 13px; padding-bottom: 4px; } th, td { padding: 4px 10px 4px 0; text-align: left;
 border-bottom: 1px solid var(--edge); vertical-align: top; } th { font-weight: 600; } thead th { vertical-align: bottom; } th.figure { text-align: right; }
.spans { white-space: nowrap; color: var(--soft); }
td.figure { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.grid-of-charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(460px, 1fr)); gap: 16px; }
figure { margin: 8px 0; min-width: 0; } figcaption { font-size: 13px; font-weight: 600; margin-bottom: 4px; }
figcaption small { font-weight: 400; display: block; } th small { display: block; font-weight: 400; width: 170px; } svg { width: 100%; height: auto; display: block; }
summary { cursor: pointer; color: var(--soft); margin: 10px 0; }
svg text { fill: var(--ink); font-size: 11px; } svg .tick, svg .name { fill: var(--soft); } svg .row { font-size: 12px; }
svg .over { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
.grid { stroke: var(--edge); stroke-width: 1; } .line { fill: none; stroke: currentColor; stroke-width: 2; }
.line.thin { stroke-width: 1.1; } .line.filled { fill: currentColor; fill-opacity: 0.14; stroke-width: 1.5; }
.dashed { stroke-dasharray: 6 4; } .limit { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 7 4; }
.late { fill: var(--bad); stroke: currentColor; } .mark { fill: currentColor; } .bar.host { fill: var(--host); } .bar.device { fill: var(--device); }
.bar.rest { fill: var(--rest); } .bar.total { fill: var(--total); }
.point { stroke: none; fill-opacity: 0.65; } .point.pale { fill-opacity: 0.28; } .point.good { fill: var(--good); }
.point.bad { fill: var(--bad); } .point.best { stroke: var(--ink); stroke-width: 1.5; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); }
.c4 { color: var(--c4); } .c5 { color: var(--c5); } .c6 { color: var(--c6); } .c7 { color: var(--c7); }
@media print { details { display: block; } body { max-width: none; } section { break-inside: avoid-page; } }
""".strip()
