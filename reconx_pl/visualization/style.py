"""The style sheet of the report: one column, system fonts, dark on light, no outside resource."""

STYLE = """
:root { color-scheme: light; --ink: #1a1c21; --quiet: #616773; --line: #e2e5ea; --wash: #f6f7f9; --accent: #2b6cb0;
  --warn: #8a4b08; --warn-wash: #fdf4e7; --good: #1e6b45; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", "Noto Sans", "DejaVu Sans", Arial, sans-serif; font-variant-numeric: tabular-nums; }
main, header.top { max-width: 1080px; margin: 0 auto; padding: 0 24px; }
header.top { padding-top: 56px; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 6px; font-weight: 680; }
h2 { font-size: 1.3rem; line-height: 1.3; letter-spacing: -0.01em; margin: 56px 0 12px; font-weight: 650; }
h3 { font-size: 1.05rem; margin: 0; font-weight: 650; overflow-wrap: anywhere; }
p { margin: 0 0 12px; max-width: 46em; }
a { color: var(--accent); text-underline-offset: 2px; }
.facts { color: var(--quiet); margin: 0 0 24px; }
.facts b { color: var(--ink); font-weight: 600; }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--warn); font-weight: 600; }
.note { color: var(--quiet); font-size: 0.875rem; max-width: 58em; }
.box { border-left: 3px solid var(--line); background: var(--wash); padding: 14px 18px; margin: 0 0 16px;
  border-radius: 0 6px 6px 0; }
.box.warn { border-color: #d9822b; background: var(--warn-wash); }
.box { overflow-wrap: anywhere; }
.box p { max-width: 54em; }
.box p:last-child, .box ul:last-child { margin-bottom: 0; }
.box ul { margin: 6px 0 0; padding-left: 20px; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; margin: 0 0 10px; }
table { border-collapse: collapse; width: 100%; font-size: 0.94rem; }
th, td { padding: 9px 14px 9px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 13em; }
thead th { color: var(--quiet); font-weight: 550; font-size: 0.84rem; border-bottom: 1px solid #c9ced6;
  vertical-align: bottom; }
tbody tr:last-child td { border-bottom: 1px solid #c9ced6; }
tr.aside td { color: var(--quiet); }
td.best { font-weight: 700; color: var(--accent); }
table.settings td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top;
  padding: 6px 14px 6px 0; }
table.settings td:first-child { color: var(--quiet); min-width: 9em; width: 34%; }
code { font: 0.88em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
.time { display: flex; height: 26px; border-radius: 5px; overflow: hidden; margin: 4px 0 12px; }
.time span { display: block; min-width: 2px; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 22px; padding: 0; margin: 0 0 12px;
  font-size: 0.9rem; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 7px; }
.legend span { color: var(--quiet); }
.curves { display: flex; flex-wrap: wrap; gap: 12px 24px; margin-bottom: 8px; }
.curves figure { flex: 1 1 320px; max-width: 640px; margin: 0; }
.curves img { width: 100%; height: auto; display: block; }
article { border-top: 1px solid var(--line); padding: 26px 0 30px; }
article .head { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline; gap: 4px 24px;
  margin-bottom: 4px; }
article .head .note { margin: 0; }
.open { display: inline-block; padding: 10px 18px; border-radius: 6px; background: #2b6cb0; color: #fff;
  text-decoration: none; }
.verdict { font-size: 1.05rem; max-width: 52em; }
figure { margin: 12px 0 0; }
figcaption { color: var(--quiet); font-size: 0.84rem; margin-top: 4px; }
.sheet img { display: block; width: 100%; min-width: 760px; height: auto; }
.clips { display: flex; flex-wrap: wrap; gap: 18px; margin-top: 14px; }
.clips figure { margin: 0; }
video { display: block; width: 260px; max-width: 100%; height: auto; background: var(--wash); border-radius: 4px;
  image-rendering: pixelated; }
details summary { cursor: pointer; color: var(--accent); font-size: 0.9rem; margin: 10px 0; }
footer { color: var(--quiet); font-size: 0.84rem; border-top: 1px solid var(--line); margin-top: 56px;
  padding: 18px 0 48px; }
@media (max-width: 640px) {
  main, header.top { padding-left: 16px; padding-right: 16px; }
  header.top { padding-top: 32px; }
  h1 { font-size: 1.6rem; }
  h2 { margin-top: 40px; }
  th, td { padding-right: 10px; }
  th:first-child, td:first-child { min-width: 10em; }
  .clips figure, .clips video { width: 100%; }
}
@media print { article { break-inside: avoid; } }
"""
