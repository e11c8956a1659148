"""The page around the sections: style, the sorting of tables, and nothing that is loaded from elsewhere."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

_STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{margin:0;background:#fff;color:#222;font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",
"DejaVu Sans",sans-serif;-webkit-print-color-adjust:exact;print-color-adjust:exact}
main,header>div,nav>div{max-width:1180px;margin:0 auto;padding:0 24px}
header{background:#f5f6f8;border-bottom:1px solid #e3e5e8;padding:22px 0 16px}
h1{font-size:24px;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:19px;margin:0 0 4px;line-height:1.3}
h3{font-size:15px;margin:18px 0 4px}
p{margin:4px 0 10px;max-width:96ch}
.dim,.note{color:#5f6368}
.note{font-size:13.5px}
nav{position:sticky;top:0;background:#fff;border-bottom:1px solid #e3e5e8;z-index:3}
nav>div{display:flex;flex-wrap:wrap;gap:2px 13px;padding-top:7px;padding-bottom:7px;font-size:13.5px}
nav a{color:#0b57a4;text-decoration:none}
nav a:hover{text-decoration:underline}
section{padding:26px 0 8px;border-bottom:1px solid #eceef0;scroll-margin-top:38px}
section:last-child{border-bottom:0}
.row{display:flex;flex-wrap:wrap;gap:16px 36px;align-items:flex-start}
.row>*{min-width:0}
.row>div>p{width:0;min-width:100%}
figure{margin:6px 0 12px}
figcaption{font-size:13.5px;color:#5f6368;max-width:84ch}
svg{max-width:100%;height:auto;display:block;font-family:inherit;font-variant-numeric:tabular-nums}
.cards{display:flex;flex-wrap:wrap;gap:12px;margin:12px 0 16px}
.card{border:1px solid #dfe2e6;border-radius:6px;padding:9px 15px 10px;min-width:158px}
.card b{display:block;font-size:25px;line-height:1.25;font-variant-numeric:tabular-nums}
.card small{display:block;color:#5f6368;font-size:13px;font-variant-numeric:tabular-nums}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums;margin:6px 0 12px}
th,td{padding:4px 10px;text-align:right;border-bottom:1px solid #eceef0;vertical-align:baseline}
th{font-weight:600;border-bottom:1px solid #b9bdc3;background:#fff;vertical-align:bottom}
th:first-child,td:first-child,.l{text-align:left}
th,td{white-space:nowrap}
td.id,td.tell,td.v{white-space:normal}
td.id{overflow-wrap:anywhere;min-width:230px}
tr.lead td{font-weight:600}
td.tell{text-align:left;color:#5f6368;font-size:13.5px}
.cells td,.cells th{padding:4px 8px}
.cells td.c{text-align:center;min-width:52px;border:1px solid #fff}
.cells th{text-align:center}
.cells th:first-child{text-align:left}
.cells td.c small{display:block;opacity:.85;font-size:12px}
.scroll{max-height:560px;overflow:auto;border:1px solid #dfe2e6;border-radius:6px;margin:8px 0 12px}
.scroll table{margin:0;width:100%}
.scroll th{position:sticky;top:0;z-index:1;box-shadow:0 1px 0 #b9bdc3;border:0}
th button{all:unset;cursor:pointer;font:inherit}
th button:hover{text-decoration:underline}
th button:focus-visible{outline:2px solid #0b57a4;outline-offset:2px}
th button:after{content:"\\2195";color:#a5a9af;padding-left:4px;font-weight:400}
th[aria-sort=ascending] button:after{content:"\\2191";color:#222}
th[aria-sort=descending] button:after{content:"\\2193";color:#222}
.shot{margin:14px 0 20px;break-inside:avoid}
.shot .id{font-weight:600;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(5,minmax(0,1fr));gap:8px;margin-top:4px;max-width:1132px}
.tiles figure{margin:0}
.tiles img{width:100%;display:block;border-radius:3px;background:#111}
.tiles figcaption{font-size:12.5px}
.key{display:inline-block;width:11px;height:11px;border-radius:2px;margin:0 5px -1px 12px;border:1px solid #0003}
.keys{margin-right:26px;white-space:nowrap}
pre{background:#f5f6f8;border:1px solid #e3e5e8;border-radius:6px;padding:10px 12px;font-size:12.5px;line-height:1.4;
overflow:auto;max-height:420px;white-space:pre-wrap;overflow-wrap:anywhere}
td.v{text-align:left;overflow-wrap:anywhere;max-width:640px}
td.v:first-child{overflow-wrap:normal}
tr.differs td{background:#fff6e0}
.better{color:#00694c;font-weight:600}
.worse{color:#a84300;font-weight:600}
@media screen and (max-width:820px){
main,header>div,nav>div{padding-left:14px;padding-right:14px}
nav>div{flex-wrap:nowrap;overflow-x:auto;white-space:nowrap}
.row{display:block}
.row>div>p{width:auto;min-width:0}
table:not(.scroll table){display:block;overflow-x:auto}
td,th{padding:4px 7px}
td.tell{min-width:210px}
td.id{min-width:150px}
.tiles{grid-template-columns:repeat(3,minmax(0,1fr))}
.cards{gap:8px}
.card{min-width:140px;padding:7px 11px 8px}
}
@media print{
@page{margin:13mm}
body{font-size:10.5pt}
nav{display:none}
header{background:none;padding-top:0}
main,header>div{padding:0;max-width:none}
h2,h3,section>p:not(:last-child){break-after:avoid}
p{break-inside:avoid}
main{zoom:.78}
figure,.card,.shot,tr,.keep{break-inside:avoid}
section{padding:14px 0 2px}
.row{gap:8px 18px}
.row:has(>figure+div:last-child){flex-wrap:nowrap}
.row>div:has(>h3){flex:0 1 47%}
.row:has(>figure+div:last-child)>figure{flex:0 1 auto}
.scroll,pre{max-height:none;overflow:visible;border:0;padding-left:0}
.scroll th{position:static}
.scroll tr:nth-child(n+41),.config{display:none}
.scroll td,.scroll th{padding:3px 4px;font-size:8pt}
td.id{min-width:150px}
#parameters h2+table tr:nth-child(-n+4){break-after:avoid}
section:not(#images):not(#worst):not(#median):not(#pictures):not(#parameters){break-inside:avoid}
th button:after{content:""!important}
table{font-size:9.5pt}
.row:has(>figure+div:last-child)>div{flex:none}
.row:has(>figure+div:last-child)>div table{font-size:8.5pt}
.row:has(>figure+div:last-child)>div :is(td,th){padding:3px 5px}
.print{display:block!important}
}
.print{display:none}
"""

# Sorts by the cell's data-v where it is given, else by its text; a second press turns the order.
_SCRIPT = """
document.querySelectorAll("table.sort").forEach(function(t){
var heads=t.tHead.rows[0].cells;
Array.prototype.forEach.call(heads,function(h,i){h.querySelector("button").addEventListener("click",function(){
var down=h.getAttribute("aria-sort")?h.getAttribute("aria-sort")==="ascending":h.dataset.first==="down";
var key=function(r){var v=r.cells[i].dataset.v;return v===undefined?r.cells[i].textContent:v===""?NaN:+v};
var rows=Array.prototype.map.call(t.tBodies[0].rows,function(r){return[key(r),r]});
rows.sort(function(a,b){var x=a[0],y=b[0];
if(x!==x||y!==y)return(x!==x)-(y!==y);
if(typeof x==="string"||typeof y==="string")return(down?-1:1)*String(x).localeCompare(y,undefined,{numeric:true});
return(down?-1:1)*(x-y)});
rows.forEach(function(r){t.tBodies[0].appendChild(r[1])});
Array.prototype.forEach.call(heads,function(o){o.removeAttribute("aria-sort")});
h.setAttribute("aria-sort",down?"descending":"ascending")})})});
"""


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, its title, HTML that is ready to be shown, and a short name for the links."""

    anchor: str
    title: str
    html: str
    short: str = ""


@dataclass(frozen=True)
class Cell:
    """A table's cell.

    Attributes:
        text: Escaped when written.
        value: To sort by, if not the text; NaN sorts last.
        style: CSS.
        kind: CSS class.
        small: A second line, escaped too.
    """

    text: str
    value: float | None = None
    style: str = ""
    kind: str = ""
    small: str = ""

    def html(self) -> str:
        given = ""
        if self.value is not None:
            given += f' data-v="{self.value:.6g}"' if self.value == self.value else ' data-v=""'
        if self.style:
            given += f' style="{escape(self.style)}"'
        if self.kind:
            given += f' class="{escape(self.kind)}"'
        below = f"<small>{escape(self.small)}</small>" if self.small else ""
        return f"<td{given}>{escape(self.text)}{below}</td>"


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[Cell | str]],
    kind: str = "",
    row_kinds: Sequence[str] = (),
    sort: Sequence[str] | None = None,
) -> str:
    """A table.

    Args:
        heads: The first row, escaped when written; none where all are empty.
        rows: Cells; text stands for a plain cell.
        kind: CSS class.
        row_kinds: CSS class of each row.
        sort: For a table that can be sorted: `up` or `down` for each column, which way its first press sorts.
    """
    if sort is None:
        top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    else:
        top = "".join(
            f'<th scope="col" data-first="{way}"><button type="button">{escape(head)}</button></th>'
            for head, way in zip(heads, sort, strict=True)
        )
        kind = f"{kind} sort".strip()
    body = []
    for index, row in enumerate(rows):
        cells = "".join((c if isinstance(c, Cell) else Cell(c)).html() for c in row)
        of = f' class="{row_kinds[index]}"' if row_kinds and row_kinds[index] else ""
        body.append(f"<tr{of}>{cells}</tr>")
    of = f' class="{kind}"' if kind else ""
    head = f"<thead><tr>{top}</tr></thead>" if any(heads) else ""
    return f"<table{of}>{head}<tbody>{''.join(body)}</tbody></table>"


def figure(drawing: str, caption: str = "") -> str:
    """A drawing with its caption, which is escaped."""
    told = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    width = re.search(r'width="([\d.]+)" role', drawing)
    style = f' style="max-width:{width[1]}px"' if width else ""
    return f"<figure{style}>{drawing}{told}</figure>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{escape(text)}</p>"


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole document."""
    links = "".join(f'<a href="#{s.anchor}">{escape(s.short or s.title)}</a>' for s in sections)
    parts = "".join(
        f'<section id="{s.anchor}"><h2>{escape(s.title)}</h2>{s.html}</section>' for s in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<header><div><h1>{escape(title)}</h1><div class="dim">{escape(subtitle)}</div></div></header>'
        f"<nav><div>{links}</div></nav><main>{parts}</main><script>{_SCRIPT}</script></body></html>\n"
    )


def flat(record: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A record's leaves as (dotted name, text), in order; empty groups and None are left out."""
    if isinstance(record, dict):
        return [
            leaf
            for key, value in record.items()
            for leaf in flat(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(record, list | tuple):
        if any(isinstance(value, dict | list | tuple) for value in record):
            return [leaf for n, value in enumerate(record) for leaf in flat(value, f"{prefix}.{n}")]
        return [(prefix, ", ".join(str(value) for value in record))] if record else []
    return [] if record is None else [(prefix, str(record))]
