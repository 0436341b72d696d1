"""The output of training.py: tables that read well in a terminal and are Markdown, and a CSV."""

from __future__ import annotations

import itertools
from typing import Dict, List

import peak
from candidates import HMLSTM
from results import write_rows
from turns import over


def print_table(rows: List[Dict[str, str]]) -> None:
    """Rows with the same keys, the columns; the first is aligned to the left, the others to the right."""
    columns = list(rows[0])
    widths = [max(len(column), *(len(row[column]) for row in rows)) for column in columns]

    def line(cells):
        (first, *rest), (width, *others) = cells, widths
        print("| " + " | ".join([first.ljust(width), *map(str.rjust, rest, others)]) + " |")

    line(columns)
    line([":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])])
    for row in rows:
        line([row[column] for column in columns])
    print(flush=True)


def figures(contestant, peaks):
    """Of the main table and the CSV."""
    limit = contestant.update_gflop / peaks[contestant.precision]["gflops"]
    return {
        "candidate": contestant.title,
        "precision": contestant.precision,
        "batch": contestant.batch,
        "parameters": contestant.model["parameters"],
        "ms_an_update": 1e3 * contestant.update_seconds,
        "ms_min": 1e3 * min(contestant.seconds),
        "ms_max": 1e3 * max(contestant.seconds),
        "characters_a_second": contestant.speed,
        "gflop_an_update": contestant.update_gflop,
        "ms_limit": 1e3 * limit,
        "share_of_limit": limit / contestant.update_seconds,
    }


def print_figures(contestants, peaks):
    rows = []
    for contestant in contestants:
        found = figures(contestant, peaks)
        row = {"": contestant.label, "parameters": "{parameters:,}", "ms an update": "{ms_an_update:.1f}"}
        row.update({"min - max": "{ms_min:.1f} - {ms_max:.1f}", "characters/s": "{characters_a_second:,.0f}"})
        row.update({"GFLOP": "{gflop_an_update:.4g}", "limit, ms": "{ms_limit:.4g}"})
        row["share of the limit"] = "{share_of_limit:.3f}"
        rows.append({column: text.format(**found) for column, text in row.items()})
    print("Whole updates, the arithmetic that they need, and its share of the time")
    print_table(rows)


def print_ratios(contestants):
    """Of characters a second, within turns."""
    own, rows = [c for c in contestants if c.title == HMLSTM], []
    for other in contestants:
        row = {"": other.label}
        for contestant in own:
            row[contestant.label] = "-" if contestant is other else str(over(contestant.ratios(other)))
        rows.append(row)
    if len(rows) > 1:
        print("Characters a second, times those of")
        print_table(rows)


def print_rates(contestants):
    rows = []
    for contestant in (c for c in contestants if not c.lstm):
        row = {"": contestant.label}
        for layer, share in enumerate(contestant.shares, start=1):
            row[f"layer {layer}"] = f"{share.update:.3f} / {share.copy:.3f} / {share.flush:.3f}"
        rows.append(row)
    print("UPDATE / COPY / FLUSH, shares of steps, during the updates timed")
    print_table(rows)


def print_parts(title, contestants, parts, form):
    """parts: of each contestant {name: number}; the rows are all names."""
    names = list(dict.fromkeys(itertools.chain(*parts)))
    rows = []
    for name in names:
        cells = {c.label: form.format(found[name]) if name in found else "" for c, found in zip(contestants, parts)}
        rows.append({"": name, **cells})
    print(title)
    print_table(rows)


def print_all(args, contestants, peaks):
    threads = f"{args.threads} thread" + "s" * (args.threads > 1)
    batches = ", ".join(str(batch) for batch in dict.fromkeys(c.batch for c in contestants))
    print(f"{peak.processor()}; {threads}")
    print(f"recipe {' '.join([args.recipe, *args.settings])}, B {batches}, {', '.join(args.precision)}")
    for precision, found in peaks.items():
        shape = " x ".join(map(str, found["shape"]))
        print(f"best product in {precision}: {found['gflops']:.0f} GFLOP/s ({shape}, by {found['by']})")
    print()
    print_figures(contestants, peaks)
    print_ratios(contestants)
    print_rates(contestants)
    needed = [{**c.multiply_adds, "sum": sum(c.multiply_adds.values())} for c in contestants]
    needed = [{name: 1e-3 * number for name, number in found.items()} for found in needed]
    print_parts("Thousands of multiply-adds that a character needs, forward", contestants, needed, "{:.1f}")
    if args.profiled:
        parts = [{name: 1e3 * seconds for name, seconds in in_order(c.parts).items()} for c in contestants]
        title = f"Milliseconds an update, of {args.profiled} under torch's profiler"
        print_parts(title, contestants, parts, "{:.1f}")


def in_order(parts):
    """Parts from the largest, each before what it consists of, and their sum."""
    whole = {name: seconds for name, seconds in parts.items() if ", of it " not in name}
    found = {}
    for name in sorted(whole, key=whole.get, reverse=True):
        found[name] = whole[name]
        found.update((inner, parts[inner]) for inner in parts if inner.startswith(f"{name}, of it "))
    return {**found, "sum": sum(whole.values())}


def write_csv(path, contestants, peaks):
    rows = []
    for contestant in contestants:
        row = figures(contestant, peaks)
        row["peak_gflops"] = peaks[contestant.precision]["gflops"]
        for layer, share in enumerate(contestant.shares or [], start=1):
            row.update({f"{name}{layer}": value for name, value in share._asdict().items()})
        row.update({f"ms {name}": 1e3 * seconds for name, seconds in contestant.parts.items()})
        rows.append({name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()})
    columns = list(dict.fromkeys(itertools.chain(*rows)))
    write_rows(path, [columns, *([row.get(column, "") for column in columns] for row in rows)])
