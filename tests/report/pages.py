"""What the tests of the HTML report share: entries to render, and a strict reader of the page."""

from __future__ import annotations

from html.parser import HTMLParser
from xml.etree import ElementTree

from pytest_deaddir.rules.definition import Rule
from pytest_deaddir.tables import row

#: What would run, or be hidden, if anything of it reached the page as it is.
HOSTILE = (
    "</script></style><script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"
    "\x1b[31m\u202efdp\u200b\n]]>--> ' onclick=alert(1) & ünï"
)

RULE = Rule(
    code="DD101",
    name="kernel-not-bottom-direction",
    severity="error",
    table="norms",
    summary="A LayerNorm's output varies where it cannot.",
    source="rules/DD101.toml",
    require={"noise_excess": {"max": 64.0}},
    message="γ⁻¹ of {path} is not dead",
    confidence="measured",
    why="\nIt is algebra.\n\n    vᵀy = vᵀβ\n",
    remedy="Compare with a <plain> run.",
    references=("https://arxiv.org/abs/2606.19491", "javascript:document.title='ran'"),
)


def finding(path="ln_f", *, code="DD101", severity="error", table="norms", message=None, suppressed=None):
    return {
        "code": code,
        "name": "kernel-not-bottom-direction",
        "severity": severity,
        "confidence": "measured",
        "table": table,
        "path": path,
        "message": message or f"γ⁻¹ of {path} is not dead",
        "measured": {"noise_excess": 123456.789, "alignment": 0.99896},
        "limit": {"noise_excess": {"max": 64.0}, "alignment": {"min": 0.999}},
        "suppressed": suppressed,
    }


def entry(spec="org/model", *, findings=(), planned=5, run=4, **model):
    """A model of two norms and a stream of two blocks, at level full."""
    failed = len({f["code"] for f in findings if f["severity"] == "error" and f["suppressed"] is None})
    warned = len({f["code"] for f in findings if f["severity"] == "warning" and f["suppressed"] is None})
    facts = {"spec": spec, "architecture": "GPT2Model", "parameters": 124_439_808, "width": 16, "level": "full"}
    facts |= {"normalisation": "layernorm", "dtype": "float32", "device": "cpu", "final_norm": "ln_f", "depth": 1.3071}
    facts |= {"samples": 64, "samples_per_width": 4.0, "inputs": "text", "inputs_source": "own"}
    facts |= {"seconds": {"read": 0.01, "forward": 1.5}}
    norm = {"kind": "layernorm", "features": 16, "samples": 64, "gamma_median": 0.65, "gamma_max": 1.25}
    norm |= {"predicted_dead_dimension": 1, "dead_dimension": 1, "alignment": 0.99986, "unmeasured": ""}
    final = {"alignment_bottom": 0.99986, "eigenvalue": 4e-16, "eigenvalue_relative": 1e-16, "noise_ratio": 4.0}
    final |= {"twin_eigenvalue_relative": 2.03e-15, "depth": 1.3071, "predicted_bottom": [0.0, 0.3, 0.4, 0.5]}
    final |= {"bottom_singular_values": [2.1e-8, 0.251, 0.332, 0.447], "bottom_thresholds": [8e-8], "sigma_max": 2.0}
    final |= {"gamma_profile": [4.8e-33, 2e-9, 0.3, 0.65, 1.25], "predicted_dead_coordinates": [3, 8]}
    stream = {"stack": "h", "features": 16, "sigma_median": 0.5, "sigma_max": 2.0, "inconclusive": ""}
    blocks = [
        stream | {"index": -1, "path": "input of h.0", "sigma_min": 0.1, "readable": True},
        stream | {"index": 0, "path": "h.0", "sigma_min": 0.08, "readable": True, "smin_ratio_relative": 0.8},
        stream | {"index": 1, "path": "h.1", "sigma_min": 1e-9, "readable": False, "smin_ratio_relative": 1.25e-8},
    ]
    return {
        "model": row("model", **(facts | model)),
        "norms": [
            row("norms", **norm, path="h.0.ln_1", role="block", gamma_min=0.2, noise_ratio=7.77777),
            row("norms", **norm, **final, path="ln_f", role="final", gamma_min=4.8e-33, dead_coordinate_count=2),
        ],
        "blocks": [row("blocks", **block) for block in blocks],
        "findings": list(findings),
        "checks": {
            "planned": planned,
            "run": run,
            "passed": run - failed,
            "failed": failed,
            "warned": warned,
            "skipped": 1,
        },
    }


def hostile_entry():
    """Everything that a stranger names is an attempt."""
    attempt = entry(HOSTILE, findings=[finding(HOSTILE, code="X<1>", message=HOSTILE), finding("h.0", table=HOSTILE)])
    attempt["model"] |= {
        "architecture": HOSTILE,
        "inputs": HOSTILE,
        "unsafe_names": [HOSTILE] * 3,
        "final_norm": HOSTILE,
    }
    attempt["norms"][0] |= {"path": HOSTILE, "class": HOSTILE, "how": HOSTILE}
    attempt["norms"][1] |= {"path": "n" * 100_000}
    attempt["blocks"][2] |= {"path": HOSTILE, "pinpoint_site": HOSTILE}
    return attempt | {"label": HOSTILE}


def broken_entry(error="the header ends after 12 bytes\nof 4096"):
    """What is reported of a model whose audit ended in an error."""
    checks = {"planned": 5, "run": 0, "passed": 0, "failed": 0, "warned": 0, "skipped": 0}
    return {"model": {"spec": "broken"}, "norms": [], "blocks": [], "findings": [], "checks": checks, "error": error}


class _Reader(HTMLParser):
    """Builds a tree; a tag that closes another than the one that is open is an AssertionError."""

    VOID = frozenset(("meta", "input", "wbr"))

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tree = ElementTree.TreeBuilder()
        self.open = []
        self.doctype = None

    def handle_decl(self, decl):
        self.doctype = decl

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        self.tree.start(tag, dict(attrs))
        if tag in self.VOID:
            self.tree.end(tag)
        else:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        raise AssertionError(f"<{tag}/> is not HTML")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.tree.end(tag)

    def handle_data(self, data):
        if self.open:
            self.tree.data(data)


def tree_of(page):
    """The root of a page that is well-formed."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    assert reader.doctype == "doctype html"
    return reader.tree.close()


def text_of(node):
    """All text below a node, with single spaces."""
    return " ".join("".join(node.itertext()).split())


def by_id(root, name):
    """The one element of an id."""
    (node,) = [node for node in root.iter() if node.get("id") == name]
    return node


def by_class(root, name):
    """The elements of a class."""
    return [node for node in root.iter() if name in (node.get("class") or "").split()]
