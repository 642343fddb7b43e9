"""The HTML report: what it says, in what order, and that nothing of a stranger's becomes markup."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from xml.etree import ElementTree

import pytest

from pytest_deaddir.report.html import render
from pytest_deaddir.report.plots import LogScale
from pytest_deaddir.rules import load_rules, shipped_rules
from pytest_deaddir.tables import COLUMNS, NOT_NUMBERS, row
from report.entries import named
from report.pages import HOSTILE, RULE, broken_entry, by_class, by_id, entry, finding, hostile_entry, text_of, tree_of
from report.test_formats import HOSTILE as NAMES

SEVERAL = {
    "failing": [entry(findings=[finding()])],
    "passing": [entry()],
    "several": [entry("a"), entry("b", findings=[finding("h.0.ln_1"), finding("ln_f", severity="warning")])],
    "hostile": [hostile_entry()],
    "error": [broken_entry()],
    "error beside": [broken_entry(HOSTILE), hostile_entry()],
    "incomplete": [entry(run=2)],
    "no norms": [entry() | {"norms": [], "blocks": []}],
    "nothing measured": [
        {
            "model": row("model"),
            "norms": [row("norms")] * 2,
            "blocks": [row("blocks")] * 2,
            "findings": [],
            "checks": {},
        }
    ],
    "nothing": [],
}


def page_of(*models, rules=(RULE,)):
    return tree_of(render(models, rules))


@pytest.mark.parametrize("models", SEVERAL.values(), ids=SEVERAL)
def test_every_page_is_well_formed_and_links_only_to_what_is_there(models):
    root = page_of(*models)
    ids = [node.get("id") for node in root.iter() if node.get("id") is not None]
    assert len(ids) == len(set(ids))
    targets = [node.get("href") for node in root.iter("a")]
    assert all(target.removeprefix("#") in ids for target in targets if target.startswith("#"))
    assert all(target.startswith(("#", "https://")) for target in targets)
    described = [
        name for node in root.iter("svg") for name in (node.get("aria-labelledby"), node.get("aria-describedby"))
    ]
    assert set(described) <= set(ids)


@pytest.mark.parametrize("models", SEVERAL.values(), ids=SEVERAL)
def test_nothing_is_loaded_and_nothing_runs_but_the_page_s_own_script(models):
    page = render(models, [RULE])
    root = tree_of(page)
    loading = ("src", "srcset", "data", "action", "background", "poster", "style")
    for node in root.iter():
        assert not [name for name in node.attrib if name in loading or name.startswith("on")], node.attrib
    assert not {"img", "iframe", "object", "embed", "link", "form", "base", "image", "use"} & {
        n.tag for n in root.iter()
    }
    (policy,) = [n.get("content") for n in root.iter("meta") if n.get("http-equiv") == "Content-Security-Policy"]
    directives = dict(directive.split(" ", 1) for directive in policy.split("; "))
    assert directives["default-src"] == directives["base-uri"] == directives["form-action"] == "'none'"
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert directives["script-src"] == _hash(script)
    styles = set(re.findall(r"<style>(.*?)</style>", page, re.DOTALL))
    assert styles
    assert {_hash(style) for style in styles} <= set(directives["style-src"].split())
    assert "unsafe" not in policy
    assert not re.search(r"url\(|@import|https?:(?!//arxiv\.org|//www\.w3\.org/2000/svg)", page)


def _hash(source):
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def test_hostile_text_is_shown_with_its_invisible_characters_as_escapes():
    page = render([hostile_entry()], [RULE])
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u200b\u202e]", page)
    message = text_of(by_id(tree_of(page), "error"))
    assert "</script></style><script>document.title='ran'</script><img src=x onerror=" in message
    assert r"\x1b[31m\u202efdp\u200b\n]]>--> ' onclick=alert(1) & ünï" in message


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_changes_the_elements_of_the_page(name):
    def shape(label):
        return [(node.tag, sorted(node.attrib)) for node in page_of(named(label)).iter() if node.tag != "wbr"]

    assert shape(name or " ") == shape("harmless")


def test_a_name_of_a_hundred_thousand_characters_is_shown_with_its_ends():
    page = render([hostile_entry()], [RULE])
    assert "nnn … nnn" in page
    assert len(page) < 120_000


@pytest.mark.parametrize(
    ("models", "headline"),
    [
        ("failing", "Failed"),
        ("passing", "Passed"),
        ("several", "1 of 2 models failed"),
        ("error", "Not audited"),
        ("error beside", "2 of 2 models did not pass"),
        ("incomplete", "Incomplete"),
        ("no norms", "Nothing judged"),
        ("nothing measured", "Nothing judged"),
        ("nothing", "Nothing was audited"),
    ],
)
def test_the_first_thing_said_is_the_verdict(models, headline):
    root = page_of(*SEVERAL[models])
    assert text_of(next(root.iter("h1"))) == headline
    passed = headline == "Passed"
    assert (next(root.iter("header")).get("class") == "ok") == passed


def test_findings_come_before_what_was_measured_by_severity_with_what_is_accepted_last():
    findings = [finding(severity="info"), finding(suppressed="known"), finding(severity="warning"), finding("h.0.ln_1")]
    root = page_of(entry(findings=findings))
    order = [node.get("id") for node in root.iter("section")]
    assert order == ["findings", "error", "warning", "info", "accepted", "model-1", "rules"]
    assert text_of(by_class(root, "counts")[0]) == "1 error1 warning1 note1 accepted"
    assert "Accepted: known" in text_of(by_id(root, "accepted"))
    assert "Accepted" not in text_of(by_id(root, "error"))


def test_a_finding_leads_to_its_row_and_to_its_rule_s_page():
    root = page_of(entry(findings=[finding(), finding("h.1", code="ACME1", table="blocks", severity="warning")]))
    links = [node.get("href") for node in by_id(root, "error").iter("a")]
    assert links == ["#rule-DD101", "#norms-1-1"]
    row = by_id(root, "norms-1-1")
    assert text_of(next(row.iter("th"))) == "ln_f"
    assert row.get("class") == "error"
    page = text_of(by_id(root, "rule-DD101"))
    assert "It is algebra." in page
    assert "Compare with a <plain> run." in page
    assert "javascript:document.title='ran'" in page  # as text: the test of links above finds no link to it
    assert "    vᵀy = vᵀβ" in [node.text for node in by_id(root, "rule-DD101").iter("pre")]
    assert "noise_excess ≤ 64.0 and alignment ≥ 0.999" in text_of(by_id(root, "rule-ACME1"))


def test_every_rule_of_the_catalogue_has_its_page():
    rules = load_rules([shipped_rules()])
    findings = [finding(code=rule.code) for rule in rules]
    root = page_of(entry(findings=findings), rules=rules)
    for rule in rules:
        page = text_of(by_id(root, f"rule-{rule.code}"))
        for part in (rule.summary, rule.why, rule.how, rule.limits, rule.remedy, rule.message):
            assert all(" ".join(paragraph.split()) in page for paragraph in part.split("\n\n"))


def test_numbers_are_those_of_the_other_formats_and_sorted_by_their_exact_values():
    root = page_of(entry(findings=[finding()]))
    shown = text_of(by_id(root, "error"))
    assert "noise_excess = 1.23e+05, must be ≤ 64.0" in shown
    assert "alignment = 0.9990, must be ≥ 0.999" in shown
    cells = [cell for node in by_class(by_id(root, "model-1"), "table") for cell in node.iter("td")]
    assert ("7.78", "7.77777") in [(cell.text, cell.get("data-v")) for cell in cells]
    assert ("0.9999", "0.99986") in [(cell.text, cell.get("data-v")) for cell in cells]
    assert ("1", None) in [(cell.text, cell.get("data-v")) for cell in cells]


def test_tables_have_every_column_that_holds_something_and_no_other():
    one = entry()
    tables = by_class(page_of(one), "sortable")
    for table, rows in zip(tables, (one["norms"], one["blocks"]), strict=True):
        header, *lines = table.iter("tr")
        columns = [text_of(cell) for cell in header]
        held = {column for row in rows for column, value in row.items() if value not in (None, "", [], {})}
        assert set(columns) == held
        assert len(lines) == len(rows)
        assert all(len(list(line)) == len(columns) for line in lines)


def test_several_models_are_compared_first():
    other = entry("other", depth=None)
    other["norms"][1] |= {"noise_ratio": 2.57e14, "alignment": 0.05446, "dead_dimension": 0}
    root = page_of(entry("one", findings=[finding()]), other, broken_entry())
    assert next(node.get("id") for node in root.iter("section")) == "models"
    rows = [[text_of(cell) for cell in line] for line in by_id(root, "models").iter("tr")]
    assert rows == [
        ["model", "verdict", "kind", "d", "alignment", "noise ratio", "depth", "dead", "worst σ_min ratio"],
        ["one", "failed", "layernorm", "16", "0.9999", "4", "1.31", "1/1", "1.25e-08"],
        ["other", "passed", "layernorm", "16", "0.0545", "2.57e+14", "", "1/0", "1.25e-08"],
        ["broken", "not audited", "", "", "", "", "", "", ""],
    ]
    assert not by_class(page_of(entry()), "models")


def test_an_audit_that_ended_in_an_error_says_which():
    root = page_of(broken_entry("no such file\n<b>bold</b>"))
    assert next(root.iter("pre")).text == "no such file\n<b>bold</b>"
    assert "0 of 5 checks ran" in text_of(by_id(root, "model-1"))


def test_an_incomplete_run_is_told_before_the_findings():
    root = page_of(entry(run=2, findings=[finding(severity="warning")]))
    said = text_of(by_id(root, "findings"))
    assert said.index("2 of 5 checks never reported") < said.index("1 warning")


def test_many_findings_of_one_rule_are_folded_and_all_there():
    root = page_of(entry(findings=[finding(f"h.{number}") for number in range(100)]))
    (fold,) = by_id(root, "error").iter("details")
    assert text_of(next(fold.iter("summary"))) == "94 more"
    assert len(list(by_id(root, "error").iter("li"))) == 100


def test_a_model_of_100_blocks_with_every_number_measured_is_less_than_a_megabyte():
    one = entry()
    numbers = {column: math.pi / 3e5 for column in COLUMNS["norms"] if column not in NOT_NUMBERS}
    words = {"class": "LayerNorm", "how": "probe", "role_how": "by its values", "gamma_file": "model.safetensors"}
    name = "model.language_model.layers.{}.post_attention_layernorm".format
    one["norms"] += [one["norms"][0] | numbers | words | {"path": name(place / 2)} for place in range(200)]
    one["blocks"] += [one["blocks"][1] | {"index": place, "path": name(place)} for place in range(2, 100)]
    assert len(render([one], [RULE])) < 1_000_000


def pictures(*models):
    """Title → plot, as standalone documents."""
    page = render(models, [RULE])
    found = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    return {svg.findtext("{*}title"): svg for svg in found}


def test_plots_stand_by_themselves_and_say_in_words_what_they_show():
    drawn = pictures(entry(findings=[finding("h.1", table="blocks", severity="warning")]))
    assert {svg.tag for svg in drawn.values()} == {"{http://www.w3.org/2000/svg}svg"}
    assert {svg.get("role") for svg in drawn.values()} == {"img"}
    assert {title: svg.findtext("{*}desc") for title, svg in drawn.items()} == {
        "Bottom of the spectrum of ln_f": "σ measured, smallest first: 2.1e-08, 0.251, 0.332, 0.447; 1 of them dead. "
        "dead at or below 8e-08. predicted of γ for a whitened input: 0, 0.3, 0.4, 0.5. σ along v: 2e-08. "
        "one rounding along v: 1e-08.",
        "|γ| profile of ln_f": "|γ| from 4.8e-33 to 1.25 in 16 coordinates; dead: 3, 8.",
        "σ_min of the residual stream, block by block": "σ_min at 3 places of the residual stream; "
        "smallest 1e-09 after h.1; 1 below the noise floor; 0 not measured.",
        "Scales |γ| of every norm": "|γ| of 2 norms; smallest 4.8e-33 in ln_f; largest 1.25 in h.0.ln_1; "
        "1 norm with dead coordinates; ln_f: dead: 3, 8.",
        "Trained against a random twin": "Variance along the kernel of 1 norm over the largest variance of any direction; "
        "training lowered it by 1.31 to 1.31 orders of ten.",
    }
    defined = set(re.findall(r"\.(dd-\w+)", drawn["Scales |γ| of every norm"].findtext("{*}style")))
    used = {node.get("class") for svg in drawn.values() for node in svg.iter() if node.get("class")}
    assert used <= defined


def test_the_stream_s_plot_marks_collapses_what_is_unreadable_and_what_was_not_measured():
    one = entry(findings=[finding("h.1", table="blocks", severity="warning")])
    one["blocks"][1] |= {"sigma_min": None, "unmeasured": "its activations are not finite"}
    svg = pictures(one)["σ_min of the residual stream, block by block"]
    hints = {node.findtext("{*}title"): node.get("class") for node in svg if node.find("{*}title") is not None}
    assert hints == {
        "input of h.0: σ_min 0.1": "dd-a",
        "h.0: its activations are not finite": "dd-soft",
        "h.1: σ_min 1e-09, below the noise floor": "dd-hollow",
    }
    assert "block 1" in [node.text for node in svg if node.get("class") == "dd-badtext"]


@pytest.mark.parametrize("values", [[0.0, 4.8e-33, 1.0], [1.0, 1.0], [0.3, 0.7], [2e-16, 1e14], [0.0], [None, 5.0]])
def test_a_logarithmic_axis_holds_all_values_in_order_with_labels_in_between(values):
    scale = LogScale(values, 10, 110)
    numbers = sorted(value for value in values if value is not None)
    places = [scale.at(value) for value in numbers]
    assert places == sorted(places)
    assert all(10 <= place <= 110 for place in places)
    ticks = list(scale.ticks())
    assert 2 <= len(ticks) <= 9
    for place, label in ticks:
        superscripts = label.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
        digit, power = (
            re.fullmatch(r"(?:(\d)·)?10(-?\d+)", superscripts).groups() if label != superscripts else (label, 0)
        )
        value = float(digit or 1) * 10.0 ** int(power)
        assert scale.at(value) == pytest.approx(place)
        assert 10 <= place <= 110


def test_a_spectrum_has_no_single_noise_floor_where_the_kernel_has_several_directions():
    one = entry()
    one["norms"][1]["alignment_bottom"] = None
    assert "one rounding" not in pictures(one)["Bottom of the spectrum of ln_f"].findtext("{*}desc")


def marks(svg, class_):
    """The elements of a class in a plot itself, outside of its legend."""
    return [node for node in svg if node.get("class") == class_]


def legend_of(svg):
    """Meaning → class of its mark."""
    parts = list(svg)
    return {parts[place + 1].text: node[0].get("class") for place, node in enumerate(parts) if node.tag.endswith("}g")}


def test_a_spectrum_shows_up_to_where_it_is_dead():
    svg = pictures(entry())["Bottom of the spectrum of ln_f"]
    (band,) = marks(svg, "dd-dead")
    edge = float(band.get("x")) + float(band.get("width"))
    places = [float(node.get("cx")) for node in marks(svg, "dd-a")]
    assert places[0] < edge < places[1]
    assert band.get("y") == str(40 - 13.5)
    (floor,) = marks(svg, "dd-floor")
    assert float(floor.get("x1")) < places[0]  # above one rounding, and dead all the same
    assert not marks(svg, "dd-solver")


def test_a_spectrum_says_what_is_no_more_than_the_solver_s_own_rounding():
    one = entry()
    one["norms"][1]["bottom_singular_values"][0] = 1.26e-16
    svg = pictures(one)["Bottom of the spectrum of ln_f"]
    assert "at or below 1.78e-15 a measured σ is the solver’s round-off" in svg.findtext("{*}desc")
    (line,) = marks(svg, "dd-solver")
    below, *above = (float(node.get("cx")) for node in marks(svg, "dd-a")[:4])
    assert below < float(line.get("x1")) < min(above)


def test_a_profile_marks_and_names_the_dead_coordinates():
    svg = pictures(entry())["|γ| profile of ln_f"]
    assert len(marks(svg, "dd-bad")) == 2
    assert len(marks(svg, "dd-a")) == 3
    assert [node.text for node in marks(svg, "dd-badtext")] == ["dead: 3, 8"]
    one = entry()
    one["norms"][1] |= {"gamma_nonfinite": 1, "dead_coordinate_count": None, "predicted_dead_coordinates": None}
    svg = pictures(one)["|γ| profile of ln_f"]
    assert svg.findtext("{*}desc").endswith("in 15 coordinates; whether any is dead is not known.")
    assert legend_of(svg)["1 not finite, left out"] == "dd-bad"


def test_a_norm_whose_scale_is_not_finite_or_not_in_the_files_does_not_look_normal():
    one = entry()
    one["norms"] += [
        one["norms"][0] | {"path": "h.1.ln_1", "gamma_nonfinite": 2},
        one["norms"][0] | {"path": "h.1.ln_2", "gamma_source": "missing", "gamma_min": None, "gamma_max": None},
    ]
    svg = pictures(one)["Scales |γ| of every norm"]
    assert [node.findtext("{*}title") for node in marks(svg, "dd-bad")] == [
        "ln_f: dead: 3, 8",
        "h.1.ln_1: 2 not finite",
        "h.1.ln_2: not in the files",
    ]
    assert {"dead coordinates", "not finite", "not in the files"} < set(legend_of(svg))


@pytest.mark.parametrize(
    ("count", "words"), [(3, "dead: 1, 2, 3"), (4, "dead: 1, 2, 3, 4"), (9, "dead: 1, 2, 3, 4 and 5 more")]
)
def test_of_many_dead_coordinates_the_first_are_named(count, words):
    one = entry()
    one["norms"][1] |= {"dead_coordinate_count": count, "predicted_dead_coordinates": list(range(1, count + 1))}
    assert [node.text for node in marks(pictures(one)["Scales |γ| of every norm"], "dd-badtext")] == [words]


def test_trained_lies_below_its_twin_by_the_depth():
    svg = pictures(entry())["Trained against a random twin"]
    assert legend_of(svg) == {"trained": "dd-a", "random twin": "dd-b"}
    (trained,), (twin,) = marks(svg, "dd-a"), marks(svg, "dd-b")
    assert float(trained.get("cy")) > float(twin.get("cy"))  # y grows downwards
    assert trained.findtext("{*}title") == "ln_f: trained 1e-16, twin 2.03e-15, depth 1.31"


def captions(*models):
    return {text_of(next(node.iter("strong"))): text_of(node) for node in page_of(*models).iter("figcaption")}


def test_captions_say_what_is_drawn_of_this_kind_and_no_more():
    said = captions(entry())
    assert "beside what γ alone predicts" in said["Bottom of the spectrum of ln_f"]
    assert "The kernel of a LayerNorm" in said["Scales |γ| of the norms"]
    assert "RMSNorm" not in " ".join(said.values())
    one = entry()
    for norm in one["norms"]:
        norm |= {"kind": "rmsnorm", "predicted_bottom": None}
    one["norms"][1] |= {"bottom_thresholds": []}
    said = captions(one)
    assert said["Bottom of the spectrum of ln_f"] == "Bottom of the spectrum of ln_f. σ measured."
    assert "LayerNorm" not in " ".join(said.values())
    assert "kernel," not in said["Trained against a random twin"]
    one["norms"][1] |= {"predicted_bottom": [0.0, 0.3], "bottom_singular_values": None}
    assert captions(one)["Bottom of the spectrum of ln_f"].endswith("σ: what γ alone predicts for a whitened input.")


def test_the_header_counts_and_links_all_that_is_wrong():
    raised = entry("raised")
    raised["checks"]["failed"] = 1
    root = page_of(entry(findings=[finding(severity="warning")]), broken_entry(), broken_entry(), entry(run=2), raised)
    links = [(text_of(node), node.get("href")) for node in by_class(root, "counts")[0]]
    assert links == [
        ("2 audits ended in an error", "#not-audited"),
        ("1 audit with failures that left no finding", "#unexplained"),
        ("1 audit incomplete", "#incomplete"),
        ("1 warning", "#warning"),
    ]
    assert len(by_class(by_id(root, "not-audited"), "group")) == 2


def test_a_number_does_not_break_at_its_minus():
    page = render([entry(findings=[finding(message="|γ| down to 4.8e-33 in 2e-05")])], [RULE])
    assert '<span class="number">4.8e-33</span> in <span class="number">2e-05</span>' in page


def test_what_is_empty_stands_where_its_column_does():
    one = entry()
    one["blocks"][2]["pinpoint_site"] = "h.1.ln_1"
    table = by_class(page_of(one), "sortable")[1]
    head, *rows = ([cell.get("class") for cell in line] for line in table.iter("tr"))
    assert all(line[1:] == head[1:] for line in rows)
