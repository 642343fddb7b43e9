"""The audit as one HTML file: what is wrong first, then each model's plots and tables, then the pages of the rules.

It loads nothing, and its Content-Security-Policy lets nothing run but its own script, which sorts tables and saves plots.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_deaddir.report import plots
from pytest_deaddir.report.markup import Markup, clipped, element, joined, path, prose, text
from pytest_deaddir.report.page import PARTS, conditions, level_words
from pytest_deaddir.report.words import (
    COMPARISON,
    checks_line,
    closed_because,
    comparison,
    counted,
    facts,
    incomplete,
    label_of,
    limit_words,
    open_findings,
    shown,
    verdict,
)
from pytest_deaddir.tables import COLUMNS, NOT_NUMBERS, SCHEMA, Row

if TYPE_CHECKING:
    from pytest_deaddir.report.words import Entry
    from pytest_deaddir.rules import Rule

#: Severity → what a finding of it is called.
_NOUNS = {"error": "error", "warning": "warning", "info": "note"}

#: Verdict → how grave it is; any other is no pass.
_GRAVITY = {"passed": "ok", "passed with warnings": "warning"}

#: The anchor of what makes an audit no pass without a finding, and what is said of such audits after their number.
_TROUBLES = {
    "not-audited": "ended in an error",
    "broken": "with rules that raised",
    "unexplained": "with failures that left no finding",
    "incomplete": "incomplete",
    "unjudged": "with nothing judged",
}

#: Findings of one rule that are shown at once; a click shows the others.
_AT_ONCE = 6

#: Rows of a table above which it is laid out only when it comes near.
_LONG = 50

#: Columns that stand first in a table, before all the numbers that a phone has room for. The others are shown where a
#: reader asks for them, and not in print.
_ESSENTIAL = {
    "norms": (
        *("path", "dead_dimension", "alignment", "noise_ratio", "depth", "predicted_dead_dimension"),
        *("gamma_min", "gamma_median", "gamma_max", "kind", "role"),
    ),
    "blocks": (
        *("path", "sigma_min", "sigma_median", "sigma_max", "smin_ratio", "smin_ratio_relative"),
        *("dead_dimension", "readable", "pinpoint_site"),
    ),
}


@dataclass(frozen=True)
class _Model:
    """An entry, and its place in the report from 1, which its anchors hold."""

    place: int
    entry: Entry

    @property
    def name(self) -> str:
        return label_of(self.entry) or f"model {self.place}"

    @property
    def verdict(self) -> Markup:
        words = verdict(self.entry)
        return element("span", words, class_=f"verdict {_gravity(words)}")

    @property
    def link(self) -> Markup:
        return element("a", text(clipped(self.name, 48)), href=f"#model-{self.place}")

    def row_of(self, finding: Row) -> str | None:
        """The anchor of the row that a finding is about, where it stands in a table."""
        rows = self.entry[finding["table"]] if finding["table"] in _ESSENTIAL else []
        paths = [row["path"] for row in rows]
        return f"{finding['table']}-{self.place}-{paths.index(finding['path'])}" if finding["path"] in paths else None


def render(models: Sequence[Entry], rules: Sequence[Rule] = ()) -> str:
    """The page. ``rules``: those whose own text it can show beside what they found."""
    subjects = [_Model(place, entry) for place, entry in enumerate(models, start=1)]
    style, script = (_resource(name) for name in ("html.css", "html.js"))
    theory = element("a", "arXiv 2606.19491", href="https://arxiv.org/abs/2606.19491", rel="noreferrer")
    body = [
        _header(subjects),
        element(
            "main",
            _comparison(subjects) if len(subjects) > 1 else None,
            _findings(subjects),
            *map(_model, subjects),
            _rule_pages(subjects, rules),
        ),
        element("footer", element("p", f"Written by pytest-deaddir from {SCHEMA}. Theory: ", theory)),
        element("script", script),
    ]
    styles = " ".join(map(_hash, (style, plots.STYLE)))
    policy = f"default-src 'none'; style-src {styles}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    subject = clipped(subjects[0].name, 48) if len(subjects) == 1 else counted(len(subjects), "model")
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"{_headline(subjects)} · {subject}"),
        element("style", style),
    ]
    return f"<!doctype html>\n{element('html', element('head', *head), element('body', *body), lang='en')}\n"


def _resource(name: str) -> Markup:
    """A file of this package that goes into the page as it is."""
    return Markup(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def _hash(source: str) -> str:
    """What a Content-Security-Policy calls an inline script or style by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def _gravity(words: str) -> str:
    return _GRAVITY.get(words, "error")


# what is wrong


def _headline(subjects: Sequence[_Model]) -> str:
    """What came of the run, in a few words."""
    verdicts = [verdict(subject.entry) for subject in subjects]
    if len(verdicts) < 2:
        return verdicts[0].capitalize() if verdicts else "Nothing was audited"
    bad = [words for words in verdicts if words not in _GRAVITY]
    if bad:
        return f"{len(bad)} of {len(verdicts)} models {'failed' if set(bad) == {'failed'} else 'did not pass'}"
    warned = verdicts.count("passed with warnings")
    return f"All {len(verdicts)} models passed" + (f", {warned} with warnings" if warned else "")


def _header(subjects: Sequence[_Model]) -> Markup:
    """The headline, and how much of everything below it comes from."""
    gravities = {_gravity(verdict(subject.entry)) for subject in subjects} or {"error"}
    gravest = next(gravity for gravity in ("error", "warning", "ok") if gravity in gravities)
    severities = [finding["severity"] for subject in subjects for finding in open_findings(subject.entry)]
    troubles = [name for subject in subjects for name, *_ in _troubles(subject)]
    counts: list[str] = [
        element("a", f"{counted(troubles.count(name), 'audit')} {words}", class_="error", href=f"#{name}")
        for name, words in _TROUBLES.items()
        if name in troubles
    ]
    counts += [
        element("a", counted(severities.count(severity), noun), class_=severity, href=f"#{severity}")
        for severity, noun in _NOUNS.items()
        if severity in severities
    ]
    accepted = sum(len(subject.entry["findings"]) for subject in subjects) - len(severities)
    if accepted:
        counts.append(element("a", f"{accepted} accepted", href="#accepted"))
    return element(
        "header",
        element("p", "pytest-deaddir · audit", class_="note"),
        element("h1", _headline(subjects)),
        element("p", path(subjects[0].name), class_="subject") if len(subjects) == 1 else None,
        element("p", *(counts or ["no findings"]), class_="counts"),
        class_=gravest,
    )


def _findings(subjects: Sequence[_Model]) -> Markup:
    """Models of which too little is known, then what the rules found: by severity and rule, what is accepted last."""
    several = len(subjects) > 1
    troubles = [(subject, *trouble) for subject in subjects for trouble in _troubles(subject)]
    parts = []
    for name, words in _TROUBLES.items():
        groups = [
            _trouble(joined(subject.link, ": ") if several else None, what, more)
            for subject, of, what, more in troubles
            if of == name
        ]
        if groups:
            heading = element("h3", f"{counted(len(groups), 'audit')} {words}")
            parts.append(element("section", heading, *groups, id=name))
    found = [(subject, finding) for subject in subjects for finding in subject.entry["findings"]]
    for severity, noun in _NOUNS.items():
        these = [pair for pair in found if pair[1]["severity"] == severity and not closed_because(pair[1])]
        parts += _found(severity, counted(len(these), noun), these, several)
    accepted = [pair for pair in found if closed_because(pair[1])]
    known = any(finding["suppressed"] is None for _, finding in accepted)
    parts += _found("accepted", f"{len(accepted)} accepted{' or known' if known else ''}", accepted, several)
    if not parts:
        run = sum(subject.entry["checks"].get("run", 0) for subject in subjects)
        parts.append(element("p", f"Nothing: {counted(run, 'check')} judged what was measured." if run else "Nothing."))
    return element("section", element("h2", "What was found"), *parts, id="findings")


def _troubles(subject: _Model) -> Iterator[tuple[str, str, Markup | None]]:
    """Why a model that no rule complains about is no pass: one of :data:`_TROUBLES`, in a few words, and what there is to say."""
    checks = subject.entry["checks"]
    codes = {finding["code"] for finding in open_findings(subject.entry)}
    for rule in subject.entry.get("broken", ()):
        lines = "\n".join(map(text, rule["error"].splitlines()))
        yield "broken", f"{rule['code']} raised an error", element("pre", Markup(lines))
    if subject.entry.get("error"):
        lines = "\n".join(map(text, subject.entry["error"].splitlines()))
        yield "not-audited", "The audit ended in an error", element("pre", Markup(lines))
        return
    codes |= {rule["code"] for rule in subject.entry.get("broken", ())}
    if (bare := checks.get("failed", 0) - len(codes)) > 0:
        what = f"{counted(bare, 'check')} failed and left no finding"
        why = "What deaddir.toml accepts is out of date: the output of the run says which."
        yield "unexplained", what, element("p", why)
    if incomplete(subject.entry):
        missing = checks["planned"] - checks["run"] - checks["skipped"]
        what = f"{missing} of {counted(checks['planned'], 'check')} never reported"
        yield "incomplete", what, element("p", "What the others say is not a pass.")
    elif not subject.entry["norms"]:
        yield "unjudged", "No norm was found", element("p", "There was nothing to judge, and that is not a pass.")
    elif not checks.get("run"):
        yield "unjudged", "No rule judged what was measured", None


def _trouble(of: Markup | None, what: str, more: Markup | None) -> Markup:
    return element("div", element("h4", of, what), more, class_="group error")


def _found(name: str, heading: str, found: Sequence[tuple[_Model, Row]], several: bool) -> Iterator[Markup]:
    """A section of findings, those of one rule together; nothing where there are none."""
    rules: dict[str, list[tuple[_Model, Row]]] = {}
    for pair in found:
        rules.setdefault(pair[1]["code"], []).append(pair)
    if rules:
        groups = [_group(name, rules[code], several) for code in sorted(rules)]
        yield element("section", element("h3", heading), *groups, id=name)


def _group(name: str, found: Sequence[tuple[_Model, Row]], several: bool) -> Markup:
    """The findings of one rule."""
    rule = found[0][1]
    items = [_finding(subject, finding, several) for subject, finding in found]
    others = None
    if len(items) > _AT_ONCE:
        summary = element("summary", f"{len(items) - _AT_ONCE} more")
        others = element("details", summary, element("ul", *items[_AT_ONCE:]))
    why = element("a", "why, and what to do", href=f"#{_rule_anchor(rule['code'])}")
    return element(
        "div",
        element("h4", element("span", rule["code"], class_="code"), " ", rule["name"]),
        element("p", f"{rule['severity']} · {rule['confidence']} · ", why, class_="note"),
        element("ul", *items[:_AT_ONCE]),
        others,
        class_=f"group {name}",
    )


def _finding(subject: _Model, finding: Row, several: bool) -> Markup:
    """One finding: what, where, measured against which limit, and why it is accepted where it is."""
    facts = []
    if finding["table"] != "model":
        row = subject.row_of(finding)
        site = element("code", path(finding["path"]))
        facts.append(element("a", site, href=f"#{row}") if row else site)
    if several:
        facts.append(joined("in ", subject.link))
    for column, value in finding["measured"].items():
        limits = [limit_words(operator, limit) for operator, limit in finding["limit"].get(column, {}).items()]
        facts.append(
            prose(f"{column} = {shown(column, value)}" + (f", must be {' and '.join(limits)}" if limits else ""))
        )
    return element(
        "li",
        element("p", prose(finding["message"])),
        element("p", joined(*facts, between=" · "), class_="note"),
        element("p", why[0].upper() + why[1:]) if (why := closed_because(finding)) else None,
    )


# what was measured


def _comparison(subjects: Sequence[_Model]) -> Markup:
    """A row for each model: the paper's table."""
    headers = ["model", "verdict", *COMPARISON]
    rows = [
        element(
            "tr",
            element("th", subject.link, scope="row"),
            element("td", subject.verdict, class_="t"),
            *(_cell(column, value) for column, value in comparison(subject.entry)),
        )
        for subject in subjects
    ]
    head = [element("th", header, scope="col", class_="t" if header in headers[:3] else None) for header in headers]
    note = (
        "Of each model’s final norm. Dead dimensions are predicted/measured; the ratio is that of the block that keeps the "
        "least of σ_min, relative to the median σ."
    )
    return element(
        "section",
        element("h2", "The models"),
        _scrolling("The models", _sortable(head, rows)),
        element("p", note, class_="note"),
        id="models",
    )


def _model(subject: _Model) -> Markup:
    """A model's facts, plots and tables."""
    entry = subject.entry
    line = checks_line(entry["checks"], entry.get("error"), incomplete(entry)) if entry["checks"] else ""
    about = None
    if len(entry["model"]) > 1:  # else its audit ended in an error
        spec = [entry["model"]["spec"]] if entry["model"]["spec"] not in (None, subject.name) else []
        about = element("p", joined(*spec, *(phrase for _, phrase in facts(entry)), between=" · "), class_="note")
    return element(
        "section",
        element("h2", path(subject.name)),
        element("p", subject.verdict, " ", line),
        about,
        _figures(subject),
        _table(subject, "norms", counted(len(entry["norms"]), "norm")),
        _table(subject, "blocks", "The residual stream, block by block"),
        _everything(subject),
        id=f"model-{subject.place}",
        class_="model",
    )


def _figures(subject: _Model) -> Markup | None:
    """The plots that there are numbers for, each with what it shows."""
    entry = subject.entry
    found = [finding["path"] for finding in open_findings(entry) if finding["table"] == "blocks"]
    drawn: list[tuple[Markup | None, Markup | str, str]] = []

    def draw(heading: Markup | str, caption: str, plot: Callable[..., Markup | None], *data: Any) -> None:
        drawn.append((plot(f"plot-{subject.place}-{len(drawn) + 1}", *data), heading, caption))

    kinds = {norm["kind"] for norm in entry["norms"]} & {"layernorm", "rmsnorm"}
    for norm in entry["norms"]:
        if norm["role"] == "final":
            name = element("code", path(norm["path"] or "?"))
            draw(joined("Bottom of the spectrum of ", name), _spectrum_caption(norm), plots.spectrum, norm)
            draw(
                joined("Scale |γ| of ", name),
                "Its coordinates from the smallest on. One whose γ² is below the rounding of the output carries nothing"
                + (": there is none." if norm["dead_coordinate_count"] == 0 else "."),
                *(plots.profile, norm),
            )
    draw(
        "σ_min of the residual stream",
        "After each block. One that divides it by a large factor has taken a direction out of the stream.",
        *(plots.stream, entry["blocks"], found),
    )
    draw(
        "Scales |γ| of the norms",
        " ".join(sentence for kind, sentence in _SCALES_CAPTIONS.items() if kind in kinds),
        *(plots.scales, entry["norms"]),
    )
    along = "each kernel" if kinds == {"layernorm"} else "each norm’s γ⁻¹"
    draw(
        "Trained against a random twin",
        f"Variance along {along}, over the largest of any direction. The depth is how far training lowered it.",
        *(plots.twins, entry["norms"]),
    )
    figures = [
        element("figure", picture, element("figcaption", element("strong", heading), ". ", prose(caption)))
        for picture, heading, caption in drawn
        if picture is not None
    ]
    return element("div", *figures, class_="figures") if figures else None


_SCALES_CAPTIONS = {
    "layernorm": "The kernel of a LayerNorm lies along γ⁻¹: where the smallest scales are.",
    "rmsnorm": "An RMSNorm has no kernel: its output loses a direction only where a scale is next to nothing.",
}


def _spectrum_caption(norm: Row) -> str:
    """What is drawn of this norm, and no more."""
    predicted = "what γ alone predicts for a whitened input" if norm["predicted_bottom"] else ""
    if not norm["bottom_singular_values"]:
        return f"σ: {predicted}."
    words = f"σ measured, beside {predicted}." if predicted else "σ measured."
    if norm["bottom_thresholds"]:
        words += (
            f" The shaded range is dead: no more than rounding to {norm['dtype']} and the norm’s arithmetic explain."
        )
    return words


def _table(subject: _Model, name: str, heading: str) -> Markup | None:
    """A table with every column that holds something in any row, the essential ones first."""
    rows = subject.entry[name]
    filled = [column for column in COLUMNS[name] if any(_holds(row[column]) for row in rows)]
    if not filled:
        return None
    first = ["path", *(column for column in _ESSENTIAL[name] if column in filled and column != "path")]
    columns = first + [column for column in filled if column not in first]
    severities = {f["path"]: f["severity"] for f in reversed(open_findings(subject.entry)) if f["table"] == name}
    linked = {subject.row_of(finding) for finding in subject.entry["findings"]}
    lines = []
    for place, row in enumerate(rows):
        anchor = f"{name}-{subject.place}-{place}"
        cells = [element("th", path(row["path"] or "?"), scope="row"), *(_cell(c, row[c]) for c in columns[1:])]
        lines.append(element("tr", *cells, id=anchor if anchor in linked else None, class_=severities.get(row["path"])))
    head = [element("th", path(c), scope="col", class_="t" if c in NOT_NUMBERS else None) for c in columns]
    toggle = None
    if len(columns) > len(first):
        box = element("input", type="checkbox")
        toggle = element("label", box, f" all {len(columns)} columns")
    return element(
        "div",
        element("div", element("h3", heading), toggle, class_="heading"),
        _scrolling(f"{name} of {clipped(subject.name, 48)}", _sortable(head, lines, f"first-{len(first)}")),
        class_="table long" if len(rows) > _LONG else "table",
    )


def _everything(subject: _Model) -> Markup | None:
    """The one row of the table ``model``: all that it holds."""
    rows = [
        element("tr", element("th", column, scope="row"), element("td", prose(shown(column, value)), class_="t"))
        for column, value in subject.entry["model"].items()
        if _holds(value)
    ]
    table = _scrolling(f"The model {clipped(subject.name, 48)}", element("table", element("tbody", *rows)))
    return element("details", element("summary", "All that is known of the model and the run"), table) if rows else None


def _holds(value: Any) -> bool:
    """Whether a cell says anything."""
    return value not in (None, "", [], {})


def _cell(column: str, value: Any) -> Markup:
    """A cell of a table, with the exact number to sort by where it shows a rounded one."""
    if not _holds(value):
        return Markup('<td class="t"></td>' if column in NOT_NUMBERS else "<td></td>")
    string = shown(column, value)
    if column in NOT_NUMBERS or not isinstance(value, (int, float)):
        return Markup(f'<td class="t">{prose(string)}</td>')
    exact = f' data-v="{value!r}"' if isinstance(value, float) and float(string) != value else ""
    return Markup(f"<td{exact}>{text(string)}</td>")


def _sortable(head: Sequence[Markup], rows: Sequence[Markup], class_: str = "") -> Markup:
    body = element("tbody", *rows)
    return element("table", element("thead", element("tr", *head)), body, class_=f"sortable {class_}".strip())


def _scrolling(label: str, table: Markup) -> Markup:
    """A box of its own for what may be wider than the page; the keyboard can scroll it."""
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label=label)


# what the rules say


def _rule_anchor(code: str) -> str:
    """An id and a fragment, whatever a stranger's code is."""
    return f"rule-{code}" if code.isascii() and code.isalnum() else f"rule--{code.encode(errors='replace').hex()}"


def _rule_pages(subjects: Sequence[_Model], rules: Sequence[Rule]) -> Markup | None:
    """The pages of the rules that found something; of one that is not among ``rules``, what its findings say of it."""
    found = {finding["code"]: finding for subject in subjects for finding in subject.entry["findings"]}
    known = {rule.code: rule for rule in rules}
    pages = [_rule_page(known[code]) if code in known else _unknown_rule(found[code]) for code in sorted(found)]
    return element("section", element("h2", "The rules"), *pages, id="rules") if pages else None


def _rule_page(rule: Rule) -> Markup:
    terms = [element("div", element("dt", heading), element("dd", prose(words))) for heading, words in conditions(rule)]
    parts = [
        joined(element("h4", heading), *_paragraphs(getattr(rule, key))) for key, heading in PARTS if getattr(rule, key)
    ]
    if rule.references:
        items = [element("li", _reference(reference)) for reference in rule.references]
        parts.append(joined(element("h4", "References"), element("ul", *items)))
    facts = f"{rule.severity} · {rule.confidence} · level {level_words(rule)} · table {rule.table}"
    return _article(rule.code, rule.name, facts, element("p", rule.summary), element("dl", *terms), *parts)


def _unknown_rule(finding: Row) -> Markup:
    limits = [
        f"{column} {limit_words(operator, limit)}"
        for column, operators in finding["limit"].items()
        for operator, limit in operators.items()
    ]
    required = f"It requires {' and '.join(limits)}. " if limits else ""
    words = (
        f"{required}This report was written without the rule’s own text; --deaddir-explain={finding['code']} prints it."
    )
    facts = f"{finding['severity']} · {finding['confidence']} · table {finding['table']}"
    return _article(finding["code"], finding["name"], facts, element("p", words))


def _article(code: str, name: str, facts: str, *parts: Markup) -> Markup:
    head = element("h3", element("span", code, class_="code"), " ", name)
    return element("article", head, element("p", facts, class_="note"), *parts, id=_rule_anchor(code))


def _paragraphs(string: str) -> Iterator[Markup]:
    """Paragraphs; one that is indented in the rule's file keeps its lines."""
    for paragraph in string.strip("\n").split("\n\n"):
        lines = map(prose, paragraph.split("\n"))
        yield element("pre" if paragraph.startswith(" ") else "p", Markup("\n".join(lines)))


def _reference(reference: str) -> Markup:
    """A link, where it leads to the web: a rule file may name anything."""
    if not reference.startswith(("https://", "http://")):
        return text(reference)
    return element("a", text(reference), href=reference, rel="noreferrer")
