"""The look of the pages: one style sheet, light and dark, narrow and wide."""

STYLE = """
:root {
  --page: #f6f7f9; --card: #ffffff; --ink: #1b1f27; --dim: #5b6472; --line: #dfe3e9; --accent: #2f5fd0;
  --heat: 47 95 208; --good: #19703f; --good-soft: #e2f3e8; --bad: #ab2a2a; --bad-soft: #fbe6e4; --wait: #f3e3b8;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #12151b; --card: #1a1e26; --ink: #e6e9ef; --dim: #9aa4b2; --line: #2f3642; --accent: #86aaff;
    --heat: 98 140 240; --good: #7fd6a0; --good-soft: #183526; --bad: #f39a92; --bad-soft: #402121; --wait: #54471f;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
header { margin-bottom: 1.25rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .35rem; display: flex; flex-wrap: wrap; gap: .3rem .8rem;
  align-items: center; }
h2 { font-size: 1.15rem; margin: 0 0 .6rem; }
h3 { font-size: .95rem; margin: 1rem 0 .3rem; }
p { margin: 0 0 .7rem; max-width: 46rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem 1.2rem;
  margin: 0 0 1rem; }
section > :last-child, section > .wide:last-child table { margin-bottom: 0; }
a { color: var(--accent); }
code, pre { font: .86rem/1.5 ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
pre { background: var(--page); border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem;
  margin: 0 0 .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.dim { color: var(--dim); }
.note { color: var(--dim); font-size: .9rem; }
.badge { font-size: .9rem; font-weight: 600; border-radius: 99px; padding: .15rem .75rem; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); }
.badge.good { background: var(--good-soft); } .badge.bad { background: var(--bad-soft); }
.result { font-weight: 600; } .result, .unbroken { white-space: nowrap; } .place { overflow-wrap: anywhere; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; }
td > .said { display: block; text-align: start; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); gap: .8rem; margin: 0 0 1rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span { display: block; color: var(--dim); font-size: .86rem; line-height: 1.35; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; margin: 0 0 .8rem; }
th, td { text-align: left; vertical-align: top; padding: .45rem .7rem .45rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: break-word; }
td:has(> .said, > .place, > details) { min-width: 9rem; }
tbody tr:last-child > * { border-bottom: 0; }
th { color: var(--dim); font-weight: 600; font-size: .84rem; overflow-wrap: normal; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
table.plain { width: auto; } table.plain td, table.plain th { padding-right: 1.6rem; }
table.heat { width: auto; border-collapse: separate; border-spacing: 2px; }
table.heat th, table.heat td { border: 0; vertical-align: middle; padding: .3rem .35rem; text-align: center;
  font-variant-numeric: tabular-nums; min-width: 2.4rem; overflow-wrap: normal; white-space: nowrap; }
table.heat th[scope=row] { text-align: right; position: sticky; left: 0; background: var(--card); }
table.heat.dense { font-size: .75rem; border-spacing: 1px; }
table.heat.dense th, table.heat.dense td { padding: .15rem .1rem; min-width: 1.4rem; font-size: inherit; }
table.heat td { border-radius: 4px; } table.heat td.own { outline: 2px solid var(--ink); outline-offset: -2px; }
.slots { display: flex; flex-wrap: wrap; gap: 4px; margin: 0 0 .6rem; padding: 0; list-style: none; }
.slot { display: inline-block; min-width: 2.3rem; padding: .2rem .4rem;
  border-radius: 5px; border: 1px solid var(--line);
  text-align: center;  font-size: .84rem; font-variant-numeric: tabular-nums; color: var(--dim); }
.slot.active { background: rgb(var(--heat) / .28); border-color: rgb(var(--heat) / .6); color: var(--ink); }
.slot.training { background: var(--wait); border-style: dashed; border-color: var(--dim); color: var(--ink); }
.slot.tonight { font-weight: 700; outline: 2px solid var(--ink); outline-offset: -1px; }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; align-items: center; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem 1.2rem; }
.curves figure { margin: 0; max-width: 27rem; } .curves figcaption { font-size: .9rem; font-weight: 600; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 11px system-ui, sans-serif; fill: var(--dim); font-variant-numeric: tabular-nums; }
svg text.last { fill: var(--ink); font-weight: 600; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .curve { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .dot { fill: var(--accent); stroke: var(--card); stroke-width: 2; }
.bars { display: grid; grid-template-columns: auto 1fr auto; gap: .35rem .8rem; align-items: center;
  font-size: .92rem; }
.bars .track { min-width: 3rem; } .bars .bar { height: .85rem; min-width: 2px; border-radius: 3px;
  background: var(--accent); }
details > summary { cursor: pointer; color: var(--accent); margin: .2rem 0 .5rem; }
summary > .said { color: var(--ink); } details[open] > summary > .said { display: none; }
details.long[open] > summary::after { content: "less"; } td > details > summary { margin: 0; }
button.sort { all: unset; cursor: pointer; white-space: nowrap; }
button.sort:focus-visible { outline: 2px solid var(--accent); }
button.sort::after { content: " \\2195"; opacity: .5; }
th[aria-sort=ascending] button::after { content: " \\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: " \\2193"; opacity: 1; }
@media (max-width: 40rem) {
  main { padding: 1rem .6rem 3rem; } section { padding: .9rem .8rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .5rem; } .tile { padding: .6rem .7rem; } .tile b { font-size: 1.25rem; }
  table.stack, table.stack tbody { display: block; } table.stack thead { display: none; }
  table.stack tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--line); }
  table.stack tr:last-child { border-bottom: 0; }
  table.stack td { display: grid; grid-template-columns: 6.2rem 1fr; gap: .6rem; border: 0; padding: .15rem 0;
    min-width: 0; text-align: left; white-space: normal; }
  table.sortable thead { display: block; } table.sortable thead th { display: inline-block; border: 0; }
  table.stack td:first-child { font-weight: 600; }
  table.stack td::before { content: attr(data-label); color: var(--dim); font-size: .84rem; font-weight: 400; }
}
@media print {
  :root { color-scheme: light; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  body { background: none; } main { padding: 0; }
  tr, figure, .tile, .bars, pre { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .wide { overflow: visible; } table.heat th[scope=row] { position: static; }
  table.heat.dense { font-size: .5rem; border-spacing: 0; }
  table.heat.dense th, table.heat.dense td { padding: .1rem 0; min-width: 1rem; border-radius: 0; }
  button.sort::after { display: none; }
  @supports selector(details::details-content) {
    details::details-content { content-visibility: visible; height: auto; } details.long > summary { display: none; }
  }
}
""".strip()
