"""Write what is generated of the documentation: the pages and the tables of the rules, and the schemas of a rule file, of
deaddir.toml and of a report.

    python docs/generate.py

A test compares the files with what this would write.
"""

from pathlib import Path

from pytest_deaddir.gate import gate_schema_text
from pytest_deaddir.report.page import markdown_page, markdown_table
from pytest_deaddir.report.schema import report_schema_text
from pytest_deaddir.rules import load_rules, shipped_rules
from pytest_deaddir.rules.schema import schema_text

ROOT = Path(__file__).parent.parent

INDEX = """# The catalogue

{table}

One page for each rule of the folder `rules/`, made of the rule's own file; `pytest --deaddir-explain=DD101` prints the
same page. [Rules](../reference/rules.md) tells how they are judged and chosen, and what the words mean.
"""

#: In other pages the catalogue's table stands between these.
BEGIN, END = "<!-- rules: written by docs/generate.py -->", "<!-- end of rules -->"


def generated() -> dict[Path, str]:
    """Path → what is to stand there."""
    rules = load_rules([shipped_rules()])
    pages = {ROOT / "docs" / "rules" / f"{rule.code}.md": markdown_page(rule) for rule in rules}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before, _, rest = readme.partition(BEGIN)
    after = rest.partition(END)[2]
    return pages | {
        ROOT / "docs" / "rules" / "index.md": INDEX.format(table=markdown_table(rules, "")),
        ROOT / "docs" / "schemas" / "rule.schema.json": schema_text(),
        ROOT / "docs" / "schemas" / "gate.schema.json": gate_schema_text(),
        ROOT / "docs" / "schemas" / "report.schema.json": report_schema_text(),
        ROOT / "README.md": f"{before}{BEGIN}\n{markdown_table(rules, 'docs/rules/')}\n{END}{after}",
    }


def main() -> None:
    """Write all of it; a page whose rule is gone goes too."""
    files = generated()
    for page in (ROOT / "docs" / "rules").glob("*.md"):
        if page not in files:
            page.unlink()
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
